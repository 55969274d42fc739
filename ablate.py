"""Ablations: variants x seeds, each run a process with a folder of its own, then a table.

    python ablate.py --seeds 5 --variants grpo,masa,masa-efficient,oracle-gate --out runs/main
    python ablate.py --seeds 2 --variants grpo,grpo+lr=2e-4,grpo+lr=5e-5 --out runs/sweep
    python ablate.py --seeds 3 --variants grpo,dapo --out runs/words -- --model DIRECTORY --levels 1,2

A variant is a dictionary of options of train.py; +name=value changes one. Whatever follows -- goes to every run. The
same command continues where it stopped: finished runs are not run again, interrupted ones resume. DIR/VARIANT/seed-N is
a run folder, and DIR/comparison.md has the tables; `python -m lab.report DIR` adds a page with pictures.
"""

import argparse
import importlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from engine.command_line import OptionError, add_flags, as_flags, declared, make
from engine.runs import Planned, last_lines, run_all
from engine.terminal import ending
from rewards import COMPONENTS
from train import Options, build_parser

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"algo": "grpo"},
    "dapo": {"algo": "grpo", "variant": "dapo"},
    "oracle-gate": {"algo": "grpo", "variant": "oracle-gate"},
    "history": {"algo": "grpo", "variant": "history", "efficient_from": 10, "explore": 0.05},
    "masa-read": {"algo": "masa-read"},
    "read-dapo": {"algo": "masa-read", "variant": "read,dapo"},
    "read-history": {"algo": "masa-read", "variant": "history,read"},
    "masa": {"algo": "masa"},
    "masa-dapo": {"algo": "masa", "variant": "dapo"},
    "masa-efficient": {"algo": "masa-efficient"},
    "masa-paper": {"algo": "masa-paper"},
    "efficient-no-gate": {"algo": "masa-efficient", "gate": "off"},
    "efficient-gate-easy": {"algo": "masa-efficient", "gate": "both", "gate_loss": 1.0},  # and what is all correct
    "efficient-no-cutoff": {"algo": "masa-efficient", "cutoff": 0.0},
    "efficient-no-experts": {"algo": "masa-efficient", "experts": False},
    "efficient-hints": {"algo": "masa-efficient", "hints": "votes"},
    # Named after the paper's two phases: the first never acts on predictions, the second always.
    "parallel": {"algo": "masa-efficient", "efficient_from": 10**9},
    "sequential": {"algo": "masa-efficient", "efficient_from": 1, "gate_loss": 1.0},
}
for name in COMPONENTS:  # trained with this alignment reward alone, or with the two others
    VARIANTS[f"masa-only-{name}"] = {"algo": "masa", "meta_rewards": name}
    VARIANTS[f"masa-no-{name}"] = {"algo": "masa", "meta_rewards": ",".join(c for c in COMPONENTS if c != name)}


@dataclass
class AblateOptions:
    """The comparison."""

    seeds: Annotated[int, "seeds of each variant", {"least": 1}] = 5
    first_seed: Annotated[int, "the first of them; take others to confirm a result"] = 0
    variants: Annotated[str, "comma-separated names, or all"] = "grpo,masa,masa-efficient,oracle-gate"
    steps: Annotated[int, "steps of each run; 0 for as many as train.py makes", {"least": 0}] = 0
    jobs: Annotated[int, "runs at a time, sharing the cores", {"least": 1}] = 1
    out: Annotated[str, "output folder"] = "runs/ablation"


def variant_options(text: str) -> dict[str, Any]:
    """Return the options of NAME or NAME+option=value+...  Raises OptionError for what is unknown."""
    name, *changes = text.split("+")
    if name not in VARIANTS:
        raise OptionError(f"--variants: found {name!r}, expected some of {', '.join(VARIANTS)}")
    kinds = {option.name: option.kind for part in Options.parts().values() for option in declared(part)}
    values: dict[str, Any] = {}
    for option, _, value in (change.partition("=") for change in changes):
        if (key := option.replace("-", "_")) not in kinds:
            raise OptionError(f"--variants: found {option!r} in {text!r}, expected an option of train.py")
        values[key] = value.lower() not in ("false", "0", "no", "off") if kinds[key] is bool else value
    return VARIANTS[name] | vars(build_parser().parse_args(as_flags(values)))


def plan(options: AblateOptions, train_options: list[str]) -> list[Planned]:
    """Return all runs, seed by seed, so that an early stop leaves whole comparisons.  Raises OptionError."""
    names = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    shared = vars(build_parser().parse_args(train_options))
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            chosen = shared | variant_options(name) | {"seed": seed}
            chosen["steps"] = options.steps or Options.of(chosen).run.steps
            runs.append(Planned(name, Path(options.out, name, f"seed-{seed}"), chosen))
            runs[-1].check(Options.of(chosen).flat())
    return runs


def parse_arguments() -> tuple[AblateOptions, list[str]]:
    """Return the options, and those of train.py that go to every run.  Raises OptionError."""
    listed = (f"  {name:<22}{' '.join(as_flags(chosen))}" for name, chosen in VARIANTS.items())
    parser = argparse.ArgumentParser(
        description="\n".join([__doc__, "variants:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="ablate.py [OPTIONS] [-- OPTIONS OF train.py]",
    )
    add_flags(parser, [AblateOptions])
    parser.add_argument("train_options", nargs="*", metavar="-- OPTIONS", help="options of train.py for every run")
    given = vars(parser.parse_args())
    return make(AblateOptions, given), given["train_options"]


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs, too, as Ctrl-C does
    with ending("ablate.py", "; the same command continues from the last checkpoints"):
        options, train_options = parse_arguments()
        runs = plan(options, train_options)
        print(f"{len(runs)} runs into {options.out}, {sum(run.finished() for run in runs)} of them finished already")
        failed = run_all(runs, options.jobs)
    out, compare = Path(options.out), importlib.import_module("lab.compare")
    finished = [compare.read_run(run.folder) for run in runs if run.finished()]
    if finished:
        text = compare.markdown(compare.compare(finished))
        (out / "comparison.md").write_text(text + "\n")
        print(f"\n{text}\n\ntables: {out / 'comparison.md'}; a page with pictures: python -m lab.report {out}")
    if failed:
        print(*map(last_lines, failed), sep="\n", file=sys.stderr)
        sys.exit(f"ablate.py: {len(failed)} of {len(runs)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
