"""The options of `train.py`: one dataclass, one line of help each, and the presets that make variants of them.

A variant is a set of defaults: `--algo grpo|masa|masa-efficient`, and another set for real models, since what suits
a model of half a million parameters does not suit one of a billion. Any single flag overrides any preset.
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from problems.tasks import GENERATORS
from rewards import COMPONENTS

# What --algo switches. GRPO is MASA with no meta rollouts; MASA-efficient has gate, cutoff and experts on.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"predictions": 0, "gate": False, "cutoff": False, "experts": False},
    "masa": {"gate": False, "cutoff": False, "experts": False},
    "masa-efficient": {},
}
# What is different for any model but the embedded one. Values of the paper where it names them.
REAL_MODEL: dict[str, Any] = {
    "data": "words",
    "predictions": 4,
    "meta_weight": 1.0,
    "gate_easy": True,
    "expert_steps": 200,
    "lr": 1e-6,
    "expert_lr": 1e-6,
    "weight_decay": 0.1,
    "warmup_steps": 20,
    "max_prompt_tokens": 512,
    "max_new_tokens": 1024,
    "max_meta_tokens": 128,
    "max_cache_tokens": 2**17,
    "token_budget": 8192,
    "steps": 200,
    "efficient_from": 50,
    "eval_problems": 64,
    "eval_samples": 4,
}

# What a run did whose config.json is older than the option: the paper's gate.
OLDER_RUNS: dict[str, Any] = {"gate_easy": True, "gate_loss": 1.0}


class OptionError(ValueError):
    """Options that cannot be used, or not together; the message names them."""


def option(default: Any, group: str, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": text, "choices": choices})


@dataclass
class Options:
    algo: str = option("masa-efficient", "what to run", "preset of the options below", tuple(ALGORITHMS))
    model: str = option("tiny", "what to run", "tiny (the embedded policy), a model directory or a hub id")
    data: str = option(
        "arithmetic", "what to run", f"{', '.join(GENERATORS)}, a .jsonl/.json/.parquet file or a hub id"
    )
    levels: str = option("", "what to run", "keep only problems of these levels, such as 1,2,3; empty for all")
    hopeless: float = option(0.15, "what to run", "share of problems beyond the embedded policy (arithmetic only)")
    steps: int = option(160, "what to run", "updates of the policy")
    seed: int = option(0, "what to run", "of problems and draws; the same seed gives the same run")
    out: str = option("", "what to run", "output folder; empty for a new one under runs/")
    resume: bool = option(False, "what to run", "go on from the last checkpoint in --out, with the options found there")
    device: str = option("auto", "what to run", "auto takes CUDA where there is one", ("auto", "cpu", "cuda"))
    dtype: str = option(
        "auto", "what to run", "of forward passes; auto takes bf16 where it is faster", ("auto", "float32", "bfloat16")
    )
    shard: bool = option(False, "what to run", "under torchrun: split weights and optimizer over the devices (FSDP2)")
    trust_remote_code: bool = option(
        False, "what to run", "run the Python files that come with the model: they can do all that you can do"
    )

    problems: int = option(16, "rollouts", "problems in a batch (P)")
    samples: int = option(16, "rollouts", "solutions to each problem (G)")
    predictions: int = option(2, "rollouts", "meta-predictions for each problem (M); 0 for none")
    max_prompt_tokens: int = option(128, "rollouts", "problems with a longer prompt are skipped and counted")
    max_new_tokens: int = option(96, "rollouts", "longest solution, in tokens")
    max_meta_tokens: int = option(24, "rollouts", "longest meta-prediction, in tokens")
    temperature: float = option(1.0, "rollouts", "of all rollouts")
    top_p: float = option(1.0, "rollouts", "nucleus sampling; 1 draws from all tokens")
    max_cache_tokens: int = option(2**20, "rollouts", "rows x length in the sampler's cache; more is split")

    reward_length: bool = option(True, "meta rewards", "reward predicted lengths that right solutions really have")
    reward_difficulty: bool = option(True, "meta rewards", "reward predicted pass rates near the actual ones")
    reward_notion: bool = option(True, "meta rewards", "reward notions that stand in right solutions")
    meta_weight: float = option(0.3, "meta rewards", "weight of the meta loss beside the solution loss")

    lr: float = option(1e-4, "update", "learning rate (AdamW)")
    warmup_steps: int = option(5, "update", "steps over which the learning rate rises from 0")
    weight_decay: float = option(0.0, "update", "of AdamW")
    max_grad_norm: float = option(1.0, "update", "gradients are clipped to this norm")
    clip_low: float = option(0.2, "update", "the ratio is clipped below 1 - this")
    clip_high: float = option(0.28, "update", "the ratio is clipped above 1 + this (clip-higher)")
    aggregation: str = option(
        "token-mean", "update", "what the loss is a mean over", ("token-mean", "sequence-mean", "dr-grpo")
    )
    normalize_std: bool = option(True, "update", "divide advantages by the standard deviation of their group")
    kl_coef: float = option(0.0, "update", "weight of a KL penalty (k3) to the policy before training; 0 for none")
    minibatches: int = option(1, "update", "optimizer steps for each batch of rollouts")
    token_budget: int = option(2048, "update", "padded tokens in a micro-batch: lower it when memory runs out")
    gradient_checkpointing: bool = option(False, "update", "compute activations twice instead of keeping them")

    efficient_from: int = option(30, "MASA-efficient", "from this step on predict, gate, then solve")
    gate: bool = option(True, "MASA-efficient", "do not solve problems predicted all wrong")
    gate_std: float = option(0.1, "MASA-efficient", "predictions agree when their standard deviation is below this")
    gate_margin: float = option(0.1, "MASA-efficient", "a mean this near to 0 is predicted all wrong")
    gate_easy: bool = option(False, "MASA-efficient", "nor those predicted all right: a mean as near to 1")
    gate_loss: float = option(
        0.2,
        "MASA-efficient",
        "predictions are acted on while the gate would skip at most this share of what teaches",
    )
    fill: str = option("nothing", "MASA-efficient", "what takes a gated problem's place", ("nothing", "fresh"))
    cutoff: bool = option(True, "MASA-efficient", "stop solutions that grow far beyond the predicted length")
    cutoff_multiplier: float = option(2.0, "MASA-efficient", "how far: this times the median predicted length")
    explore: float = option(
        0.1, "MASA-efficient", "share of problems neither gated nor cut, to judge gate and cutoff on"
    )
    experts: bool = option(True, "MASA-efficient", "imitate the best predictions, corrected by what really happened")
    expert_lr: float = option(3e-4, "MASA-efficient", "learning rate of the imitation, at first")
    expert_steps: int = option(160, "MASA-efficient", "in so many steps it falls to 0, on a line")
    expert_batch: int = option(16, "MASA-efficient", "expert predictions in one step of imitation")
    expert_notion: float = option(0.2, "MASA-efficient", "least notion reward of a prediction to imitate")
    expert_failures: bool = option(
        True, "MASA-efficient", "imitate pass rate 0 on problems that came out all wrong, which have no expert else"
    )
    hints: bool = option(False, "MASA-efficient", "tell the solver the predicted notions")

    select: str = option(
        "in-order",
        "beyond the paper",
        "solve the next problems, or those of largest p(1-p)",
        ("in-order", "informative"),
    )
    candidates: int = option(3, "beyond the paper", "--select informative: problems predicted for each that is solved")
    share_samples: bool = option(False, "beyond the paper", "share a batch's solutions out by predicted p(1-p)")
    dynamic_sampling: bool = option(
        False, "to compare with", "DAPO: draw on until P problems are neither all right nor all wrong"
    )
    oracle_gate: int = option(
        0, "to compare with", "skip what so many uncounted solutions show to be all right or all wrong; 0 for off"
    )

    eval_every: int = option(40, "evaluation and output", "steps between evaluations on held-out problems")
    eval_problems: int = option(96, "evaluation and output", "held-out problems")
    eval_samples: int = option(16, "evaluation and output", "solutions to each of them")
    eval_predictions: int = option(
        4, "evaluation and output", "meta-predictions for each of them; also under --algo grpo"
    )
    save_every: int = option(40, "evaluation and output", "steps between checkpoints")
    keep: int = option(
        2, "evaluation and output", "checkpoints to keep: should the last be damaged, the one before is used"
    )
    transcripts: int = option(2, "evaluation and output", "problems whose rollouts are written out at each step")

    def __post_init__(self) -> None:
        """Raise OptionError for values that make no sense, alone or together."""
        for name in ("problems", "samples", "steps", "max_new_tokens", "max_meta_tokens", "max_prompt_tokens"):
            self._expect(getattr(self, name) >= 1, name, "at least 1")
        for name in ("minibatches", "token_budget", "expert_batch", "eval_every", "eval_problems"):
            self._expect(getattr(self, name) >= 1, name, "at least 1")
        for name in ("save_every", "expert_steps", "max_cache_tokens", "eval_samples", "keep", "candidates"):
            self._expect(getattr(self, name) >= 1, name, "at least 1")
        for name in ("predictions", "warmup_steps", "eval_predictions", "transcripts", "kl_coef", "meta_weight"):
            self._expect(getattr(self, name) >= 0, name, "at least 0")
        self._expect(self.oracle_gate >= 0, "oracle_gate", "at least 0")
        for name in ("weight_decay", "clip_low", "clip_high", "gate_std", "gate_margin", "efficient_from"):
            self._expect(getattr(self, name) >= 0, name, "at least 0")
        for name in ("max_grad_norm", "cutoff_multiplier"):
            self._expect(getattr(self, name) > 0, name, "above 0")
        for name in ("explore", "hopeless", "gate_loss", "expert_notion"):
            self._expect(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")
        self._expect(self.samples >= 2, "samples", "at least 2: an advantage is a comparison within a group")
        self._expect(self.temperature > 0, "temperature", "above 0: greedy rollouts are all the same")
        self._expect(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._expect(self.lr > 0 and self.expert_lr > 0, "lr", "above 0, as is --expert-lr")
        for name in ("gate", "cutoff", "experts", "hints"):
            if getattr(self, name) and self.predictions == 0:
                raise OptionError(f"--{name} needs --predictions above 0: there is nothing to go by")
        choosing = self.select != "in-order" and self.oracle_gate == 0  # an oracle needs no prediction
        for flag, is_on in (("select informative", choosing), ("share-samples", self.share_samples)):
            if is_on and self.predictions == 0:
                raise OptionError(f"--{flag} needs --predictions above 0: there is nothing to go by")
        for name, choices in ((f.name, f.metadata["choices"]) for f in dataclasses.fields(self)):
            self._expect(not choices or getattr(self, name) in choices, name, f"one of {choices}")
        self._expect(all(x.strip().isdecimal() for x in self.levels.split(",") if x), "levels", "numbers such as 1,2,3")

    def _expect(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise OptionError(f"--{name.replace('_', '-')}: found {getattr(self, name)!r}, expected {expected}")

    @property
    def reward_components(self) -> tuple[str, ...]:
        """The alignment rewards that are on."""
        return tuple(name for name in COMPONENTS if getattr(self, f"reward_{name}"))

    @property
    def chosen_levels(self) -> tuple[int, ...] | None:
        return tuple(int(level) for level in self.levels.split(",") if level) or None


def preset(algo: str, model: str) -> dict[str, Any]:
    """The defaults of an algorithm for a model, where they differ from those of `Options`."""
    return ({} if is_embedded(model) else REAL_MODEL) | ALGORITHMS[algo]


def is_embedded(model: str) -> bool:
    """Is it the embedded policy, or a checkpoint of it? (tiny.py marks its config so.)"""
    try:
        return model == "tiny" or "masa_embedded" in json.loads((Path(model) / "config.json").read_text())
    except (OSError, ValueError):
        return False


def resolve_options(given: dict[str, Any]) -> tuple[Options, Path]:
    """Options from what the command line gave, over a resumed run's own, over the presets; and the run folder."""
    algo, model = given.get("algo", "masa-efficient"), given.get("model", "tiny")
    name = f"{algo}-{Path(model).name}-seed{given.get('seed', 0)}"
    run = Path(given.get("out") or Path("runs") / name)
    numbered = [run, *(path for n in range(2, 1000) if (path := run.with_name(f"{run.name}-{n}")).exists())]
    if given.get("resume"):
        run = run if given.get("out") else numbered[-1]  # the newest of them
        if (run / "config.json").is_file():
            try:
                found = json.loads((run / "config.json").read_text())
            except ValueError as error:
                raise OptionError(
                    f"{run / 'config.json'}: not JSON ({error}); start again with another --out"
                ) from error
            if given.get("algo", found["algo"]) != found["algo"]:
                raise OptionError(f"--algo {algo}: {run} is a run of {found['algo']}; leave --algo out to resume it")
            return Options(**OLDER_RUNS | found | given), run
    elif (run / "metrics.jsonl").exists():
        if given.get("out"):
            raise OptionError(
                f"--out {run}: holds a run already; add --resume to go on with it, or name another folder"
            )
        run = run.with_name(f"{run.name}-{len(numbered) + 1}")
    return Options(**preset(algo, model) | given), run


def build_parser() -> argparse.ArgumentParser:
    """A parser made from `Options`, in its groups; what is not given stays absent, so that presets can tell."""
    parser = argparse.ArgumentParser(
        description="Train a language model by GRPO or MASA. Without options: MASA-efficient on the embedded policy.",
        epilog="A preset may change a default: see ALGORITHMS and REAL_MODEL in options.py, or config.json of a run.",
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        group = field.metadata["group"]
        groups.setdefault(group, parser.add_argument_group(group))
        arguments: dict[str, Any] = {"help": f"{field.metadata['help']} (default: {_shown(field)})"}
        if field.type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments |= {"type": field.type, "choices": field.metadata["choices"]}
            if not field.metadata["choices"]:
                arguments["metavar"] = {"int": "N", "float": "X", "str": "TEXT"}[type(field.default).__name__]
        groups[group].add_argument(f"--{field.name.replace('_', '-')}", **arguments)
    return parser


def _shown(field: dataclasses.Field) -> str:
    """The default as help shows it, with those of the presets."""
    others = [f"{algo}: {values[field.name]}" for algo, values in ALGORITHMS.items() if field.name in values]
    if field.name in REAL_MODEL:
        others.append(f"real models: {REAL_MODEL[field.name]}")
    return "; ".join([str(field.default) or "empty", *others])
