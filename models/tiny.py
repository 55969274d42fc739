"""The embedded policy: a small Llama trained in this file, so that everything runs without a network.

    python -m models.tiny              # print some of the demonstrations that it is trained on
    python -m models.tiny --rebuild    # train it again and write models/tiny_policy (about ten minutes)

It is a *model organism* (README.md): built so that everything the paper speaks of really occurs. A hard step that is
done correctly says what it does ("carry"), so notions tell correct rollouts from wrong ones. Some solutions check their
steps ("ok 17;", or "no;" and a second attempt), so correct ones vary in length, and rambling ("hm") ends in a wrong
answer. Predictions are well-formed but random: meta-awareness is learned in RL, never given.

The result is an ordinary model directory (config, weights, tokenizer with chat template), with one exception: the
tokenizer is always made by `build_tokenizer` and never read from the directory, because the prompt instructions of
masa.py are tokens of it. Left out: everything that a real pretrained model knows.
"""

import argparse
import random
import string
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

import grpo
import masa
from models.policy import Policy, PolicyError
from problems.arithmetic import Step, chain_steps, notion_of
from problems.source import Problem, load_problems

DIRECTORY = Path(__file__).parent / "tiny_policy"
MARK = "masa_embedded"  # this key in config.json marks the embedded policy and its checkpoints
REBUILD = "train the embedded policy again, which takes about ten minutes: python -m models.tiny --rebuild"

# What the demonstrations say and how often they go wrong. All rates are probabilities.
MAX_SOLUTION_TOKENS = 96
NOTIONS = ("carry", "borrow", "flip")
OTHER_NOTIONS = ("ok", "hm", "times", "double", "zero")  # said rarely, never, or only in wrong solutions
HARD_STEP_ERROR, STEP_ERROR = 0.35, 0.01
CHECKED_SHARE, CHECK_RATE = 0.5, 0.6  # half of the solutions check 60% of their steps
NOTICED_ERRORS = 0.7  # a check notices a wrong step with this probability
DERAIL_RATE = 0.05
META_SHARE, HINT_SHARE = 0.3, 0.15

# A trained BPE tokenizer would have merged recurring strings, so each of these is one token. A prediction then costs
# 11 tokens: as little beside a solution as it costs a real model. The weights know a piece only by its position in
# this tuple. A piece can therefore be reworded without harm, but adding, removing or moving one needs a new policy.
PIECES = (
    *(masa.SOLVE_INSTRUCTION, masa.HINT_INSTRUCTION, masa.META_INSTRUCTION, masa.META_INSTRUCTION_END),
    *('{"pass_rate": ', ', "solution_length": ', ', "notions": ["', '", "', '"]}'),  # predictions
    *("\\boxed{", "ok ", "no;", "hm ", *(f" {notion} " for notion in NOTIONS)),  # solutions
    *(NOTIONS + OTHER_NOTIONS),
)
SPECIAL = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>"]
CHAT_TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<assistant>"

SHAPE = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"max_position_embeddings": 256, "tie_word_embeddings": True}
# Qwen3 also normalizes queries and keys. Two of its attention heads share one head of keys and values.
FAMILIES: dict[str, Any] = {"llama": LlamaConfig, "qwen3": partial(Qwen3Config, num_key_value_heads=2, head_dim=24)}
WARM_START_STEPS, WARM_START_BATCH, WARM_START_LR = 900, 96, 3e-3
WARM_START_SEED = -1  # the problem stream of the warm start; the seeds of runs are 0 or more


def directory() -> Path:
    """Return the model directory of the embedded policy. Raise PolicyError if one of its files is missing."""
    for path in (DIRECTORY / "config.json", DIRECTORY / "model.safetensors"):
        if not path.is_file():
            raise PolicyError(f"{path} is missing; {REBUILD}")
    return DIRECTORY


def newest_checkpoint(model: str | Path) -> str | Path:
    """Return the newest checkpoint if `model` is the folder of a run, else `model` itself."""
    steps = sorted(Path(model).glob("checkpoints/step-*"), key=lambda path: (len(path.name), path.name))
    return steps[-1] if steps else model


def is_embedded(model: str | Path) -> bool:
    """Return whether `model` is "tiny", the directory of an embedded policy, or the folder of a run of one."""
    try:
        config = Path(newest_checkpoint(model)) / "config.json"
        return model == "tiny" or f'"{MARK}"' in config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def untaught(texts: Iterable[str]) -> str:
    """Return the characters of problems that the embedded policy has never seen in one."""
    return "".join(sorted(set().union(*texts) - set("0123456789+-*")))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token for each printable character and one for each of PIECES.

    A tokenizer that was saved with a model knows the instructions of masa.py as they were worded then, and would split
    reworded ones into characters. Built from the code, an instruction keeps its token, so every checkpoint still works
    as long as the number of tokens is the same (`loading.load` checks that).
    """
    characters = [c for c in string.printable if c not in "\r\x0b\x0c"]
    vocabulary = {token: index for index, token in enumerate(SPECIAL + characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, chat_template=CHAT_TEMPLATE)


def solution_demonstration(problem: Problem, rng: random.Random) -> str:
    """Write a solution as a forgetful calculator would: often right, terse or checked, sometimes derailed."""
    if "*" in problem.text:
        return _product_demonstration(problem, rng)
    check_rate = CHECK_RATE if rng.random() < CHECKED_SHARE else 0.0
    steps = chain_steps(problem.text)
    derails = rng.random() < DERAIL_RATE
    text, total = "", steps[0].total_before
    for step in steps[: rng.randrange(len(steps)) + 1] if derails else steps:
        written, result, right = _write_step(total, step, rng)
        text += written
        if rng.random() < check_rate:
            if right or rng.random() >= NOTICED_ERRORS:
                text += f"ok {result};"
            else:
                written, result, _ = _write_step(total, step, rng)
                text += f"no;{written}"
        total = result  # a chain continues from its own total, also from a wrong one
    for _ in range(rng.randint(6, 11) if derails else 0):
        total += rng.choice((-10, -1, 1, 10))
        text += f"hm {total};"
    return f"{text}\\boxed{{{total}}}"


def _write_step(total: int, step: Step, rng: random.Random) -> tuple[str, int, bool]:
    """Write one step that starts from `total`. Return its text, its result, and whether the result is right."""
    result = after = total + step.total_after - step.total_before
    notion = notion_of(total, step.op_sign, step.digit)
    if notion and rng.random() < HARD_STEP_ERROR:  # the carry or borrow is dropped, or the change of sign missed
        ten = 10 if total >= 0 else -10
        result, notion = {"carry": after - ten, "borrow": after + ten, "flip": -after}[notion], ""
    elif not notion and rng.random() < STEP_ERROR:
        result += rng.choice((-1, 1))
    said = f" {notion} " if notion else ""
    return f"{total}{step.op_sign}{step.digit}={said}{result};", result, result == after


def _product_demonstration(problem: Problem, rng: random.Random) -> str:
    """Write partial products that lead nowhere: long, and always wrong."""
    first, second = problem.text.split("*")
    text = ""
    for _ in range(rng.randint(4, 6)):
        digit = rng.choice(second)
        text += f"{first}*{digit}={int(first) * int(digit) + rng.choice((-100, -10, 10, 100))};"
    wrong = int(problem.answer) + rng.choice((-1, 1)) * rng.randint(1, 9999)
    return f"{text}\\boxed{{{wrong}}}"


def meta_demonstration(
    rng: random.Random, notions: tuple[str, ...] = NOTIONS + OTHER_NOTIONS, longest: int = MAX_SOLUTION_TOKENS
) -> str:
    """Write a random prediction: the form without knowledge. longest: highest predicted length, 5 tokens or more."""
    chosen = rng.sample(notions, rng.randint(1, 3))
    rate = rng.randint(0, masa.PASS_RATE_SCALE) / masa.PASS_RATE_SCALE
    return masa.render_meta(masa.MetaPrediction(rate, rng.randint(5, longest), tuple(chosen)))


def demonstration(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """Return a (user message, answer) pair to imitate: a prediction, or a solution with or without a hint."""
    if rng.random() < META_SHARE:
        return masa.meta_prompt(problem.text, MAX_SOLUTION_TOKENS), meta_demonstration(rng)
    hint = rng.sample(NOTIONS + OTHER_NOTIONS, rng.randint(1, 3)) if rng.random() < HINT_SHARE else []
    return masa.solution_prompt(problem.text, hint), solution_demonstration(problem, rng)


def build_model(tokenizer: PreTrainedTokenizerFast, family: str = "llama", seed: int = 0) -> Any:
    """Return a model with 0.46 M random float32 parameters. family: one of FAMILIES."""
    torch.manual_seed(seed)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = FAMILIES[family](**SHAPE, **tokens, eos_token_id=tokenizer.eos_token_id, **{MARK: True})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def warm_start(steps: int, family: str = "llama") -> Policy:
    """Train a policy on `steps` batches of demonstrations, and return it in bf16.

    It is trained in float64 and then rounded to bf16. The same processor with the same number of threads gives the same
    weights. Another number of threads adds up in another order; rounding errors grow from step to step, and training
    ends in other weights, which solve and predict just as well.
    """
    tokenizer = build_tokenizer()
    policy = Policy(build_model(tokenizer, family).to(torch.float64), tokenizer, frozenset())
    source, rng = load_problems("arithmetic"), random.Random(0)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=WARM_START_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=WARM_START_LR, total_steps=steps)
    for step in (bar := tqdm(range(steps), desc="warm start of the embedded policy", unit="step")):
        problems = source.train(WARM_START_SEED, step * WARM_START_BATCH, WARM_START_BATCH)
        pairs = [demonstration(problem, rng) for problem in problems]
        samples = [policy.demonstration(*pair) for pair in pairs]
        figures = policy.imitate(optimizer, samples, grpo.UpdateOptions())
        schedule.step()
        bar.set_postfix(loss=f"{figures['expert_loss']:.3f}")
    policy.model.to(torch.bfloat16).eval()
    return policy


def main() -> None:
    parser = argparse.ArgumentParser(description="Print demonstrations of the embedded policy, or train it again.")
    parser.add_argument("--rebuild", action="store_true", help="train the embedded policy (about ten minutes)")
    parser.add_argument("--out", type=Path, default=DIRECTORY, help="folder to write (default: models/tiny_policy)")
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="architecture (default: llama)")
    arguments = parser.parse_args()
    if arguments.family != "llama" and arguments.out == DIRECTORY:
        parser.error(f"--family {arguments.family}: found no --out; models/tiny_policy holds a llama, so name another")
    if arguments.rebuild:
        arguments.out.mkdir(parents=True, exist_ok=True)  # first: a folder that cannot be made should fail at once
        warm_start(WARM_START_STEPS, arguments.family).save(arguments.out)
        return
    rng, tokenizer = random.Random(0), build_tokenizer()
    for problem in load_problems("arithmetic").train(seed=0, start=0, count=6):
        for text in (solution_demonstration(problem, rng), meta_demonstration(rng)):
            print(f"{problem.text:>12} (level {problem.level}) -> {text}  [{len(tokenizer.encode(text))} tokens]")


if __name__ == "__main__":
    main()
