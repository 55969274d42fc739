"""Ablations: variants x seeds, each run a process with a folder of its own, then a table.

    python ablate.py --seeds 5 --variants grpo,masa,masa-efficient,oracle-gate --out runs/main
    python ablate.py --seeds 2 --variants grpo,grpo+lr=2e-4,grpo+lr=5e-5 --out runs/sweep
    python ablate.py --seeds 3 --variants grpo,dapo --out runs/words -- --model DIRECTORY --levels 1,2

A variant is a dictionary of options of train.py; +name=value changes one. Whatever follows -- goes to every run. The
same command continues where it stopped: finished runs are not run again, interrupted ones resume. DIR/VARIANT/seed-N is
a run folder, DIR/comparison.md has the tables, and --report adds a page with pictures, DIR/report.html.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.command_line import OptionError, declared
from train import PARTS, Options, build_parser

TRAIN = Path(__file__).parent / "train.py"
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"algo": "grpo"},
    "grpo-kl": {"algo": "grpo", "kl_coef": 0.01},
    "dapo": {"algo": "grpo", "variant": "dapo"},
    "oracle-gate": {"algo": "grpo", "variant": "oracle-gate"},
    "masa": {"algo": "masa"},
    "masa-no-length": {"algo": "masa", "meta_rewards": "difficulty,notion"},
    "masa-no-difficulty": {"algo": "masa", "meta_rewards": "length,notion"},
    "masa-no-notion": {"algo": "masa", "meta_rewards": "length,difficulty"},
    "masa-efficient": {"algo": "masa-efficient"},
    "efficient-no-gate": {"algo": "masa-efficient", "gate": "off"},
    "efficient-gate-easy": {"algo": "masa-efficient", "gate": "both", "gate_loss": 1.0},  # skips what is all right, too
    "efficient-no-cutoff": {"algo": "masa-efficient", "cutoff": 0.0},
    "efficient-no-experts": {"algo": "masa-efficient", "experts": False},
    "efficient-no-failures": {"algo": "masa-efficient", "expert_failures": False},
    "efficient-hints": {"algo": "masa-efficient", "hints": True},
    "efficient-kl": {"algo": "masa-efficient", "kl_coef": 0.01},
    "efficient-refill": {"algo": "masa-efficient", "variant": "refill"},
    "parallel": {"algo": "masa-efficient", "efficient_from": 10**9},  # never acts on predictions
    "sequential": {"algo": "masa-efficient", "efficient_from": 1, "gate_loss": 1.0},  # always does
}
MAY_DIFFER = ("out", "resume", "device", "steps")  # options that may be others when a run is continued
POLL_SECONDS = 0.5
LOG_LINES = 5  # shown of a failed run


@dataclass
class Planned:
    """A run to be made: its variant, its folder, and the options it is given."""

    variant: str
    folder: Path
    options: dict[str, Any]

    def flags(self) -> list[str]:
        flags = []
        for name, value in self.options.items():
            flag = name.replace("_", "-")
            is_bool = isinstance(value, bool)
            flags.append(f"--{'' if value else 'no-'}{flag}" if is_bool else f"--{flag}={value}")
        return flags

    def command(self) -> list[str]:
        return [sys.executable, str(TRAIN), "--resume", f"--out={self.folder}", *self.flags()]

    def steps_done(self) -> int:
        """Return the last whole step in metrics.jsonl, 0 before there is one."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def finished(self) -> bool:
        steps = self.options["steps"]
        return self.steps_done() == steps and (self.folder / "checkpoints" / f"step-{steps}").exists()

    def check(self) -> None:
        """Raise OptionError if the options make no sense, or if the folder holds a run that was made with others."""
        file = self.folder / "config.json"
        config = json.loads(file.read_text()) if file.exists() else {}
        for name, wanted in Options.of(self.options).flat().items():
            if name not in MAY_DIFFER and name in config and config[name] != wanted:
                raise OptionError(f"{file}: found {name} = {config[name]!r}, expected {wanted!r}; name another --out")
        if self.steps_done() > self.options["steps"]:
            raise OptionError(
                f"{self.folder}: found {self.steps_done()} steps, expected at most {self.options['steps']}"
            )


def variant_options(text: str) -> dict[str, Any]:
    """Return the options of NAME or NAME+option=value+...  Raises OptionError for what is unknown."""
    name, *changes = text.split("+")
    if name not in VARIANTS:
        raise OptionError(f"--variants: found {name!r}, expected some of {', '.join(VARIANTS)}")
    known = {option.name: option for part in PARTS.values() for option in declared(part)}
    flags = []
    for option, _, value in (change.partition("=") for change in changes):
        if option.replace("-", "_") not in known:
            raise OptionError(f"--variants: found {option!r} in {text!r}, expected an option of train.py")
        if known[option.replace("-", "_")].kind is bool:
            off = value.lower() in ("false", "0", "no", "off")
            flags.append(f"--{'no-' if off else ''}{option.replace('_', '-')}")
        else:
            flags.append(f"--{option.replace('_', '-')}={value}")
    return VARIANTS[name] | vars(build_parser().parse_args(flags))


def plan(options: argparse.Namespace) -> list[Planned]:
    """Return all runs, seed by seed, so that an early stop leaves whole comparisons.  Raises OptionError."""
    names = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    shared = vars(build_parser().parse_args(options.train_options))
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            chosen = shared | variant_options(name) | {"seed": seed}
            chosen["steps"] = options.steps or Options.of(chosen).run.steps
            runs.append(Planned(name, options.out / name / f"seed-{seed}", chosen))
    for run in runs:
        run.check()
    return runs


def run_all(runs: Sequence[Planned], jobs: int) -> list[Planned]:
    """Make the runs, `jobs` at a time, under one bar over all their steps; return those that failed."""
    waiting = [run for run in runs if not run.finished()]
    bar = tqdm(total=sum(run.options["steps"] for run in runs), unit="step", smoothing=0.02)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | dict(os.environ)
    running: list[tuple[Planned, subprocess.Popen]] = []
    failed = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                run.folder.mkdir(parents=True, exist_ok=True)
                with open(run.folder / "log.txt", "a") as log:
                    # In a session of its own: Ctrl-C is for this process, which then ends each run once.
                    process = subprocess.Popen(
                        run.command(), stdout=log, stderr=log, env=threads, start_new_session=True
                    )
                running.append((run, process))
            time.sleep(POLL_SECONDS)
            bar.n = sum(run.steps_done() for run in runs)
            bar.set_postfix_str(", ".join(f"{run.variant} seed {run.options['seed']}" for run, _ in running))
            for run, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((run, process))
                failed += [run] if process.returncode else []
    finally:  # after Ctrl-C as well: no run is left behind, and each resumes from its checkpoint
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()
        bar.close()
    return failed


def parse_arguments() -> argparse.Namespace:
    listed = (f"  {name:<22}{' '.join(Planned(name, Path(), chosen).flags())}" for name, chosen in VARIANTS.items())
    parser = argparse.ArgumentParser(
        description="\n".join([__doc__, "variants:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="ablate.py [OPTIONS] [-- OPTIONS OF train.py]",
    )
    names = "grpo,masa,masa-efficient,oracle-gate"
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of each variant (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="to confirm results on other seeds")
    parser.add_argument(
        "--variants", default=names, metavar="NAMES", help=f"comma-separated, or all (default: {names})"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each run (default: as in train.py)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time, sharing the cores (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), metavar="DIR", help="default: runs/ablation")
    parser.add_argument(
        "--report", action="store_true", help="also draw report.html (pip install -r requirements-lab.txt)"
    )
    parser.add_argument("train_options", nargs="*", metavar="-- OPTIONS", help="options of train.py for every run")
    options = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: found {getattr(options, name)}, expected at least 1")
    return options


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs, too, as Ctrl-C does
    try:
        runs = plan(options)
    except ValueError as error:
        sys.exit(f"ablate.py: {error}")
    done = sum(run.finished() for run in runs)
    print(f"{len(runs)} runs into {options.out}, {done} of them finished already")
    try:
        failed = run_all(runs, options.jobs)
    except KeyboardInterrupt:
        sys.exit("ablate.py: stopped; the same command continues from the last checkpoints")
    compare = importlib.import_module("lab.compare")
    finished = [compare.read_run(run.folder) for run in runs if run.finished()]
    if finished:
        text = compare.markdown(compare.compare(finished))
        (options.out / "comparison.md").write_text(text + "\n")
        print(f"\n{text}\n\ntables: {options.out / 'comparison.md'}")
    if finished and options.report:
        importlib.import_module("lab.report").write(finished, options.out / "report.html")
        print(f"report: {options.out / 'report.html'}")
    for run in failed:
        lines = (run.folder / "log.txt").read_text().splitlines()[-LOG_LINES:]
        print(f"\n{run.folder} failed; log.txt ends with:", *lines, sep="\n  ", file=sys.stderr)
    if failed:
        sys.exit(f"ablate.py: {len(failed)} of {len(runs)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
