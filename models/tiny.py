"""The embedded policy: a small Llama that is warm-started here, so that everything runs without a network.

It is a *model organism*, built so that all the paper speaks of is really there, on a laptop and in minutes:

- it knows arithmetic but forgets: in a chain such as 9+8-4, a step with a carry, a borrow or a change of sign
  goes wrong about a third of the time, so the pass rate falls with the number of hard steps;
- a hard step done right says what it does ("carry"), so notions tell right rollouts from wrong ones;
- some problems are beyond it (long products): always wrong, and long. Some are trivial;
- right solutions vary in length (some check their steps: "ok 17;", or "no;" and once more), and rambling ("hm") ends
  in a wrong answer;
- its predictions about itself are well-formed and random: meta-awareness is learned in RL, never given.

It is saved as an ordinary model directory (config, weights, tokenizer with chat template), and loaded like any
other. `python tiny.py --rebuild` makes a directory such as the one in this repository.
`python tiny.py` shows demonstrations. Left out: everything a real pretrained model knows.
"""

import argparse
import hashlib
import os
import random
import shutil
import string
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

import masa
from problems import tasks

SHIPPED = Path(__file__).parent / "tiny_policy"
RECIPE_FILE = "recipe.txt"
MAX_SOLUTION_TOKENS = 96

NOTIONS = ("carry", "borrow", "flip")
OTHER_NOTIONS = ("ok", "hm", "times", "double", "zero")  # said seldom, never or only in wrong solutions
HARD_STEP_ERROR, STEP_ERROR = 0.35, 0.01
CHECKED_SHARE, CHECK_RATE = 0.5, 0.6  # half of the solutions check 60% of their steps
SEEN_ERRORS = 0.7  # a check sees so many of the errors
DERAIL_RATE = 0.05
META_SHARE, HINT_SHARE = 0.3, 0.15

SPECIAL = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>"]
# A trained BPE would have merged what recurs; so do we. A prediction then costs 11 tokens, as short beside a
# solution as it is for a real model.
PIECES = [
    masa.SOLVE_INSTRUCTION,
    masa.HINT_INSTRUCTION,
    masa.META_INSTRUCTION,
    masa.META_INSTRUCTION_END,
    '{"pass_rate": ',
    ', "solution_length": ',
    ', "notions": ["',
    '", "',
    '"]}',
    "\\boxed{",
    "ok ",
    "no;",
    "hm ",
    *(f" {notion} " for notion in NOTIONS),
    *NOTIONS,
    *OTHER_NOTIONS,
]
CHAT_TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<assistant>"

SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
# Qwen3 normalizes queries and keys, and two heads share one of keys and values.
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig,
    "qwen3": partial(Qwen3Config, num_key_value_heads=2, head_dim=24),
}
WARM_START_STEPS, WARM_START_BATCH, WARM_START_LR = 900, 96, 3e-3
WARM_START_SEED = -1  # problems that no run with a seed of its own begins with


def solution_demonstration(problem: tasks.Problem, rng: random.Random) -> str:
    """A solution as a forgetful calculator writes it: often right, terse or checked, at times derailed."""
    if "*" in problem.text:
        return _product_demonstration(problem, rng)
    check_rate = CHECK_RATE if rng.random() < CHECKED_SHARE else 0.0
    steps = tasks.chain_steps(problem.text)
    derail_at = rng.randrange(len(steps)) if rng.random() < DERAIL_RATE else None
    text, total = "", steps[0].total_before
    for k, step in enumerate(steps):
        written, result, right = _write_step(total, step, rng)
        text += written
        if rng.random() < check_rate:
            if right or rng.random() >= SEEN_ERRORS:
                text += f"ok {result};"
            else:
                written, result, _ = _write_step(total, step, rng)
                text += f"no;{written}"
        total = result  # after a wrong step the chain goes on from the wrong total
        if k == derail_at:
            for _ in range(rng.randint(6, 11)):
                total += rng.choice((-10, -1, 1, 10))
                text += f"hm {total};"
            break
    return f"{text}\\boxed{{{total}}}"


def _write_step(total: int, step: tasks.Step, rng: random.Random) -> tuple[str, int, bool]:
    """One step from `total`, at times done wrong: its text, its result, and whether that is right."""
    after = total + step.digit if step.op_sign == "+" else total - step.digit
    notion, result = tasks.notion_of(total, step.op_sign, step.digit), after
    if notion and rng.random() < HARD_STEP_ERROR:
        result, notion = _forget(total, after, notion), ""
    elif not notion and rng.random() < STEP_ERROR:
        result += rng.choice((-1, 1))
    said = f" {notion} " if notion else ""
    return f"{total}{step.op_sign}{step.digit}={said}{result};", result, result == after


def _forget(before: int, after: int, notion: str) -> int:
    """The wrong result of a hard step: the carry or borrow is dropped, the change of sign is missed."""
    away_from_zero = 1 if before >= 0 else -1
    return {"carry": after - 10 * away_from_zero, "borrow": after + 10 * away_from_zero, "flip": -after}[notion]


def _product_demonstration(problem: tasks.Problem, rng: random.Random) -> str:
    """Partial products that lead nowhere: long, and always wrong."""
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
    """A well-formed prediction that knows nothing; longest: predicted length, in tokens, at least 5."""
    chosen = rng.sample(notions, rng.randint(1, 3))
    rate = rng.randint(0, masa.PASS_RATE_SCALE) / masa.PASS_RATE_SCALE
    return masa.render_meta(masa.MetaPrediction(rate, rng.randint(5, longest), tuple(chosen)))


def demonstration(problem: tasks.Problem, rng: random.Random) -> tuple[str, str]:
    """One (user message, answer) pair to imitate: a solution, with or without a hint, or a prediction."""
    if rng.random() < META_SHARE:
        return masa.meta_prompt(problem.text, MAX_SOLUTION_TOKENS), meta_demonstration(rng)
    hint = rng.sample(NOTIONS + OTHER_NOTIONS, rng.randint(1, 3)) if rng.random() < HINT_SHARE else []
    return masa.solution_prompt(problem.text, hint), solution_demonstration(problem, rng)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, and the recurring pieces as tokens of their own."""
    characters = [c for c in string.printable if c not in "\r\x0b\x0c"]
    vocabulary = {token: index for index, token in enumerate(SPECIAL + characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, family: str = "llama") -> Any:
    """A random model of that `SHAPE`, 0.46 M parameters, in float32; `family`: one of FAMILIES."""
    torch.manual_seed(seed)
    config = FAMILIES[family](
        **SHAPE,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.update({"masa_embedded": True})  # its checkpoints are known for what they are: see options.is_embedded
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _encoded(tokenizer, message: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a demonstration: of its prompt, and of the answer with its end."""
    prompt_ids = tokenizer.apply_chat_template([{"role": "user", "content": message}], return_dict=False)
    return prompt_ids, tokenizer.encode(answer) + [tokenizer.eos_token_id]


def _training_batch(tokenizer, source, rng: random.Random, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded input_ids (B, L) and labels (B, L), -100 wherever nothing is to be learned."""
    problems = source.train(WARM_START_SEED, first, WARM_START_BATCH)
    rows = [_encoded(tokenizer, *demonstration(problem, rng)) for problem in problems]
    longest = max(len(prompt_ids) + len(answer_ids) for prompt_ids, answer_ids in rows)
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt_ids, answer_ids) in enumerate(rows):
        end = len(prompt_ids) + len(answer_ids)
        input_ids[row, :end] = torch.tensor(prompt_ids + answer_ids)
        labels[row, len(prompt_ids) : end] = torch.tensor(answer_ids)
    return input_ids, labels


def warm_start(
    steps: int, dtype: torch.dtype = torch.float64, family: str = "llama"
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Train the policy on demonstrations; returns (model, tokenizer).

    In float64, then rounded to bf16. The same processor and number of threads give the same weights; another number
    rounds otherwise, which shows after 60 steps, and 900 make other weights that do the same.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, family=family)
    model.to(dtype).train()
    source, rng = tasks.load_problems("arithmetic"), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=WARM_START_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=WARM_START_LR, total_steps=steps)
    for step in (bar := tqdm(range(steps), desc="warm start of the embedded policy", unit="step")):
        input_ids, labels = _training_batch(tokenizer, source, rng, step * WARM_START_BATCH)
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.to(torch.bfloat16).eval(), tokenizer


def recipe() -> str:
    """A fingerprint of all that the weights depend on: a changed recipe makes a new policy.

    Of tokens, not of texts: an instruction is one token, however it is worded.
    """
    rng, tokenizer = random.Random(0), build_tokenizer()
    problems = tasks.load_problems("arithmetic").train(seed=0, start=0, count=200)
    parts = [
        [_encoded(tokenizer, *demonstration(problem, rng)) for problem in problems],
        len(tokenizer),
        sorted(SHAPE.items()),
        (WARM_START_STEPS, WARM_START_BATCH, WARM_START_LR, WARM_START_SEED),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def ensure() -> Path:
    """The directory of the embedded policy; one whose recipe was changed is warm-started once, and cached."""
    fingerprint = recipe()
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "masa" / f"tiny-{fingerprint}"
    for directory in (SHIPPED, cached):
        if (directory / RECIPE_FILE).is_file() and (directory / RECIPE_FILE).read_text() == fingerprint:
            return directory
    save(cached)
    return cached


def save(directory: Path, family: str = "llama") -> None:
    """Warm-start a policy and put its directory in place in one move."""
    model, tokenizer = warm_start(WARM_START_STEPS, family=family)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=directory.parent))
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / RECIPE_FILE).write_text(recipe())
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(aside, directory)


def main() -> None:
    parser = argparse.ArgumentParser(description="The embedded policy: show its demonstrations, or make it again.")
    parser.add_argument("--rebuild", action="store_true", help=f"warm-start it again and write {SHIPPED.name}/")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where to write it")
    parser.add_argument(
        "--family", choices=FAMILIES, help="of the model, with --out (default: llama, as in tiny_policy)"
    )
    arguments = parser.parse_args()
    if arguments.family and arguments.out == SHIPPED:
        parser.error(f"--family {arguments.family}: name another folder with --out; {SHIPPED.name} is a llama")
    if arguments.rebuild:
        return save(arguments.out, arguments.family or "llama")
    rng = random.Random(0)
    tokenizer = build_tokenizer()
    for problem in tasks.load_problems("arithmetic").train(seed=0, start=0, count=6):
        for text in (solution_demonstration(problem, rng), meta_demonstration(rng)):
            print(f"{problem.text:>12} (level {problem.level}) -> {text}  [{len(tokenizer.encode(text))} tokens]")


if __name__ == "__main__":
    main()
