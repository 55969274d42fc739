"""Use the rewards of this repository in TRL: two steps of its GRPOTrainer on the embedded policy.

    .venv/bin/pip install trl datasets
    .venv/bin/python tests/try_trl.py

Each problem is in the data set twice, once to be solved and once to be predicted, and TRL passes every column of the
data set to the reward function. A prediction is scored against the solutions to its problem, so the two rows of a
problem must be in the same batch.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import masa
from models.loading import load
from problems.source import load_problems
from rewards import alignment_rewards, solution_reward

SAMPLES, LONGEST = 4, 96  # completions of each prompt; longest completion, in tokens


def masa_reward(prompts, completions, completion_ids, kind, problem, answer, **rest) -> list[float]:
    """Return a reward for each completion: 1 or 0 for a solution, the mean alignment reward for a prediction."""
    texts = [completion[0]["content"] for completion in completions]
    rewards = [solution_reward(text, truth) for text, truth in zip(texts, answer, strict=True)]
    for index, text in enumerate(texts):
        if kind[index] == "meta":
            solved = [i for i in range(len(texts)) if kind[i] == "solution" and problem[i] == problem[index]]
            responses, correct = [texts[i] for i in solved], [rewards[i] == 1.0 for i in solved]
            lengths = [len(completion_ids[i]) for i in solved if rewards[i] == 1.0]
            pass_rate, prediction = sum(correct) / len(correct), masa.parse_meta(text)
            aligned = alignment_rewards(prediction, lengths, pass_rate, responses, correct, problem[index])
            rewards[index] = aligned.mean()
    return rewards


def main() -> None:
    rows = []
    for problem in load_problems("arithmetic").train(0, 0, 8):
        columns = {"problem": problem.text, "answer": problem.answer}
        messages = {"solution": masa.solution_prompt(problem.text), "meta": masa.meta_prompt(problem.text, LONGEST)}
        for kind, message in messages.items():
            rows.append({"prompt": [{"role": "user", "content": message}], "kind": kind} | columns)
    embedded = load("tiny", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=2,
            num_generations=SAMPLES,
            per_device_train_batch_size=4 * SAMPLES,  # two problems, each solved and predicted
            shuffle_dataset=False,  # otherwise the two rows of a problem would be separated
            max_completion_length=LONGEST,
            **{"learning_rate": 1e-4, "use_cpu": True, "bf16": False, "logging_steps": 1, "report_to": []},
        )
        data = {"train_dataset": Dataset.from_list(rows), "processing_class": embedded.tokenizer}
        trainer = GRPOTrainer(embedded.model, masa_reward, config, **data)
        trainer.train()
    for row in trainer.state.log_history:
        if "reward" in row:
            print(f"step {row['step']}: mean reward {row['reward']:.3f}")


if __name__ == "__main__":
    main()
