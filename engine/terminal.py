"""Tell a person of a run on the terminal: the first lines, the live figures, the summary with advice, and the end."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from engine.command_line import OptionError
from engine.parallel import LaunchError
from engine.run_folder import RunError, Stopped
from engine.update import OutOfMemory
from models import tiny
from models.policy import PolicyError
from problems.source import ProblemError

# Errors whose message tells a person what is wrong. Any other is a bug, and its traceback is needed.
EXPECTED = OptionError, RunError, OutOfMemory, torch.OutOfMemoryError, PolicyError, ProblemError, LaunchError
FEW = 20  # held-out problems, below which their figures say little
BAR = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix}"  # within 80 columns, also in runs of many hours
IN_BAR = {"train_pass_rate": "right", "gated_frac": "gated"}
IN_SUMMARY = {
    "tokens_solution": "tokens in solutions",
    "tokens_meta": "tokens in predictions",
    "gated_frac": "problems gated",
    "cutoff_frac": "solutions cut",
    "experts_cloned": "expert predictions imitated",
    "unparsed_predictions": "predictions not parsed",
    "skipped_updates": "updates lost to NaN or inf",
    "prompts_too_long": "prompts too long, left out",
}


@contextlib.contextmanager
def ending(script: str, to_continue: str = "") -> Iterator[None]:
    """End the script with a message and an exit status, without a traceback, unless it ends by a bug.

    to_continue: what to do after Ctrl-C. Characters that the terminal lacks, such as most on Windows' cp1252, are
    printed as their codes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except Stopped as stop:
        print(f"\n{stop}")
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        print(f"\n{script}: ended at once{to_continue}", file=sys.stderr)
        sys.exit(130)
    except EXPECTED as error:
        sys.exit(f"{script}: {error}")


def first_lines(policy: Any, source: Any, held_out: Sequence[Any], model: str) -> str:
    """Return what a run works with and on, and warnings of what will make its figures worthless.

    source, held_out: the `Source` and its problems to evaluate on.  model: the option.
    """
    device = torch.cuda.get_device_name() if policy.device.type == "cuda" else policy.device
    precision = " and ".join(str(kind).removeprefix("torch.") for kind in (policy.sampling_dtype, policy.update_dtype))
    lines = [
        f"device {device}, {torch.get_num_threads()} threads, precision of sampling and updates {precision}",
        f"{source.name}: {source.size}; evaluated on {len(held_out)} of these",
    ]
    if len(held_out) < FEW:
        lines.append(f"warning: with so few problems held out, a single one changes pass@1 by {1 / len(held_out):.2f}")
    letters = tiny.untaught(problem.text for problem in held_out) if tiny.is_embedded(model) else ""
    if letters:
        lines.append(f"warning: the embedded policy was never taught {letters!r}; such problems need another --model")
    return "\n".join(lines)


def live(rows: Sequence[dict]) -> str:
    """Return the figures that a person wants to see while waiting, held-out pass@1 first."""
    shown = [f"held-out pass@1 {row['eval_pass1']:.3f}" for row in _evaluated(rows)[-1:]]
    shown += [f"{label} {rows[-1][name]:.2f}" for name, label in IN_BAR.items() if rows[-1].get(name) is not None]
    return ", ".join(shown)


def _evaluated(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if row.get("eval_pass1") is not None]


def summary(rows: Sequence[dict]) -> str:
    """Return a table of the held-out figures before and after training, and of what the training cost."""
    first, *_, last = _evaluated(rows) * 2
    steps = [f"step {row['step']}" for row in (first, last)]
    lines = [f"{'held-out problems':<28}{steps[0]:>10}{steps[1]:>10}{'change':>10}"]
    for name in ("eval_pass1", *(name for name in last if name.startswith("eval_reward_"))):
        before, after = first.get(name), last[name]
        label = "pass@1" if name == "eval_pass1" else f"{name.removeprefix('eval_reward_')} reward"
        if before is not None and after is not None:
            lines.append(f"{label:<28}{before:>10.3f}{after:>10.3f}{after - before:>+10.3f}")
    lines.append("")
    for name, label in IN_SUMMARY.items():
        if name.endswith("_frac"):
            shares = [row.get(name) or 0.0 for row in rows if row["step"]]
            lines.append(f"{label:<28}{sum(shares) / max(1, len(shares)):>10.1%} on average over all steps")
        elif last.get(name) or name not in ("skipped_updates", "prompts_too_long"):
            lines.append(f"{label:<28}{last.get(name, 0):>10,}")
    return "\n".join([*lines, f"{'wall time':<28}{last['wall_s']:>9.0f}s", *_advice(rows)])


def _advice(rows: Sequence[dict]) -> Iterator[str]:
    """Yield what to try after a run in which nothing was right, or no prediction could be read."""

    def never(name: str) -> bool:
        values = [row[name] for row in rows if row.get(name) is not None]
        return bool(values) and not any(values)

    if never("train_pass_rate"):
        yield "\nNo solution was right, so there was nothing to learn from. Try easier problems (--levels 1), or"
        yield f"--max-new-tokens: {rows[-1].get('truncated_frac') or 0:.0%} of the last solutions were cut short."
    if never("parsed_frac"):
        yield "\nNo prediction could be read (rollouts.jsonl shows them). Try a larger --max-meta-tokens."
    if never("train_pass_rate") or never("parsed_frac"):
        yield "A model that is too weak needs a warm start first: python -m models.warm_start --help"
