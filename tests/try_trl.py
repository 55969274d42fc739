"""The rewards of this repository as reward functions of TRL: two steps of its GRPOTrainer on the embedded policy.

    pip install trl datasets
    python tests/try_trl.py

Each problem stands in the data set twice, once to be solved and once to be predicted; TRL hands every column of it to
the reward functions. A prediction is scored against the solutions of its problem, so both must be in one batch.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import masa
from models import policy
from problems import tasks
from rewards import alignment_rewards, solution_reward

SAMPLES, LONGEST = 4, 96  # completions of a prompt; tokens of a completion


def masa_reward(prompts, completions, completion_ids, kind, problem, answer, **rest) -> list[float]:
    """Of a solution: is it right?  Of a prediction: the mean of its alignment rewards."""
    texts = [completion[0]["content"] for completion in completions]
    rewards = [solution_reward(text, truth) for text, truth in zip(texts, answer, strict=True)]
    for index, text in enumerate(texts):
        if kind[index] == "meta":
            solved = [i for i, of in enumerate(problem) if kind[i] == "solution" and of == problem[index]]
            right = [rewards[i] == 1.0 for i in solved]
            lengths = [len(completion_ids[i]) for i in solved if rewards[i] == 1.0]
            rates = sum(right) / len(right)
            responses = [texts[i] for i in solved]
            aligned = alignment_rewards(masa.parse_meta(text), lengths, rates, responses, right, problem[index])
            rewards[index] = aligned.mean()
    return rewards


def main() -> None:
    rows = []
    for problem in tasks.load_problems("arithmetic").train(0, 0, 8):
        shared = {"problem": problem.text, "answer": problem.answer}
        messages = {"solution": masa.solution_prompt(problem.text), "meta": masa.meta_prompt(problem.text, LONGEST)}
        for kind, message in messages.items():
            rows.append({"prompt": [{"role": "user", "content": message}], "kind": kind} | shared)
    embedded = policy.load("tiny", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=2,
            num_generations=SAMPLES,
            per_device_train_batch_size=4 * SAMPLES,  # two problems, each solved and predicted
            shuffle_dataset=False,  # else the two rows of a problem would come apart
            max_completion_length=LONGEST,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            report_to=[],
        )
        trainer = GRPOTrainer(
            model=embedded.model,
            reward_funcs=masa_reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=embedded.tokenizer,
        )
        trainer.train()
    for row in trainer.state.log_history:
        if "reward" in row:
            print(f"step {row['step']}: mean reward {row['reward']:.3f}")


if __name__ == "__main__":
    main()
