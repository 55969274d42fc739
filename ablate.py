"""Ablations: variants x seeds, each run a process with a folder of its own, then tables and a report.

    python ablate.py --seeds 5 --variants grpo,masa,masa-efficient,oracle-gate --out runs/main
    python ablate.py --seeds 2 --variants grpo,grpo+lr=2e-4,grpo+lr=5e-5 --out runs/sweep
    python ablate.py --seeds 3 --variants grpo,choose --out runs/words -- --model DIRECTORY --levels 1,2

A variant is a dictionary of options of train.py; +name=value changes one. What follows -- goes to every run. The same
command goes on where it stopped: finished runs are not run again, broken-off ones resume. DIR/VARIANT/seed-N is a run
folder; DIR/comparison.md has the tables, DIR/report.html the pictures.
"""

import argparse
import contextlib
import dataclasses
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

from lab import compare, report
from options import OptionError, Options, build_parser, preset

TRAIN = Path(__file__).parent / "train.py"
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"algo": "grpo"},
    "grpo-kl": {"algo": "grpo", "kl_coef": 0.01},
    "dapo": {"algo": "grpo", "dynamic_sampling": True},
    "oracle-gate": {"algo": "grpo", "oracle_gate": 64},
    "masa": {"algo": "masa"},
    "masa-no-length": {"algo": "masa", "reward_length": False},
    "masa-no-difficulty": {"algo": "masa", "reward_difficulty": False},
    "masa-no-notion": {"algo": "masa", "reward_notion": False},
    "masa-efficient": {"algo": "masa-efficient"},
    "efficient-no-gate": {"algo": "masa-efficient", "gate": False},
    "efficient-gate-easy": {"algo": "masa-efficient", "gate_easy": True, "gate_loss": 1.0},  # the paper's gate
    "efficient-no-cutoff": {"algo": "masa-efficient", "cutoff": False},
    "efficient-no-experts": {"algo": "masa-efficient", "experts": False},
    "efficient-no-failures": {"algo": "masa-efficient", "expert_failures": False},
    "efficient-hints": {"algo": "masa-efficient", "hints": True},
    "efficient-kl": {"algo": "masa-efficient", "kl_coef": 0.01},
    "parallel": {"algo": "masa-efficient", "efficient_from": 10**9},  # predictions are never acted on
    "sequential": {"algo": "masa-efficient", "efficient_from": 1, "gate_loss": 1.0},  # always are
    "choose": {"algo": "masa-efficient", "gate": False, "select": "informative"},
    "oracle-choose": {"algo": "grpo", "oracle_gate": 64, "select": "informative"},  # the same by what is really so
    "share": {"algo": "masa-efficient", "gate": False, "share_samples": True},
}
NOT_COMPARED = ("out", "resume", "device", "steps")  # options that may differ when a run goes on
POLL_S = 0.5
LOG_LINES = 5  # of a failed run, shown


@dataclass
class Planned:
    """A run to be made: its variant, folder, and all that train.py is told."""

    variant: str
    folder: Path
    options: dict[str, Any]

    def flags(self) -> list[str]:
        flags = []
        for name, value in self.options.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags.append(f"--{flag}={value}")
        return flags

    def command(self) -> list[str]:
        return [sys.executable, str(TRAIN), "--resume", f"--out={self.folder}", *self.flags()]

    def steps_done(self) -> int:
        """The last whole step in metrics.jsonl; 0 before there is one."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
            return json.loads(lines[-1])["step"]
        return 0

    def finished(self) -> bool:
        steps = self.options["steps"]
        return self.steps_done() == steps and (self.folder / "checkpoints" / f"step-{steps}").exists()

    def check(self) -> None:
        """Raise OptionError if the options make no sense, or the folder holds a run that was made with others."""
        o = Options(**preset(self.options["algo"], self.options.get("model", "tiny")) | self.options)
        file = self.folder / "config.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        for name, wanted in dataclasses.asdict(o).items():
            if name not in NOT_COMPARED and name in found and found[name] != wanted:
                raise OptionError(f"{file}: found {name} = {found[name]!r}, expected {wanted!r}; name another --out")
        if self.steps_done() > o.steps:
            raise OptionError(f"{self.folder}: found {self.steps_done()} steps, expected {o.steps}; name another --out")


def variant_options(text: str) -> dict[str, Any]:
    """The options of a variant, of the form NAME or NAME+option=value+...; OptionError names what is unknown."""
    name, *changes = text.split("+")
    if name not in VARIANTS:
        raise OptionError(f"--variants: found {name!r}, expected some of {', '.join(VARIANTS)}")
    flags = []
    for change in changes:
        option, _, value = change.partition("=")
        is_bool = {field.name: field.type is bool for field in dataclasses.fields(Options)}.get(
            option.replace("-", "_")
        )
        if is_bool is None:
            raise OptionError(f"--variants: found {option!r} in {text!r}, expected an option of train.py")
        off = value.lower() in ("false", "0", "no", "off")
        flags.append(f"--{'no-' * (is_bool and off)}{option.replace('_', '-')}{'' if is_bool else '=' + value}")
    return VARIANTS[name] | vars(build_parser().parse_args(flags))


def plan(options: argparse.Namespace) -> list[Planned]:
    """All runs, seed by seed, so that an early stop leaves whole comparisons. Raises OptionError."""
    names = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    shared = vars(build_parser().parse_args(options.train_options))
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            chosen = shared | variant_options(name) | {"seed": seed}
            defaults = Options(**preset(chosen["algo"], chosen.get("model", "tiny")))
            chosen["steps"] = options.steps or chosen.get("steps", defaults.steps)
            runs.append(Planned(name, options.out / name / f"seed-{seed}", chosen))
    for run in runs:
        run.check()
    return runs


def run_all(runs: Sequence[Planned], jobs: int) -> list[Planned]:
    """Make the runs, `jobs` at a time, under one bar over all their steps; returns those that failed."""
    waiting = [run for run in runs if not run.finished()]
    done = {run.folder: run.steps_done() for run in runs}
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
                    # A session of its own: Ctrl-C is for us, and a run is told to end once, by `terminate`.
                    process = subprocess.Popen(
                        run.command(), stdout=log, stderr=log, env=threads, start_new_session=True
                    )
                running.append((run, process))
            time.sleep(POLL_S)
            done |= {run.folder: run.steps_done() for run, _ in running}
            bar.n = sum(done.values())
            bar.set_postfix_str(", ".join(f"{run.variant} seed {run.options['seed']}" for run, _ in running))
            for run, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((run, process))
                if process.returncode:
                    failed.append(run)
    finally:  # on Ctrl-C too: no run is left behind, and each resumes from its checkpoint
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()
        bar.close()
    return failed


def known_variants() -> str:
    """The variants, each with its flags, a line each."""
    commands = {name: Planned(name, Path(), chosen).flags() for name, chosen in VARIANTS.items()}
    return "\n".join(f"  {name:<22}{' '.join(flags)}" for name, flags in commands.items())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nvariants:\n{known_variants()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="ablate.py [OPTIONS] [-- OPTIONS]",
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of each variant (default: 5)")
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="so that results can be confirmed on others"
    )
    parser.add_argument(
        "--variants",
        default="grpo,masa,masa-efficient,oracle-gate",
        metavar="NAMES",
        help="comma-separated, or all (default: grpo,masa,masa-efficient,oracle-gate)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each run (default: as train.py)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time; they share the cores (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), metavar="DIR", help="default: runs/ablation")
    parser.add_argument("train_options", nargs="*", metavar="-- OPTIONS", help="options of train.py for every run")
    options = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: found {getattr(options, name)}, expected at least 1")
    return options


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too, as Ctrl-C does
    try:
        runs = plan(options)
    except OptionError as error:
        sys.exit(f"ablate.py: {error}")
    done = sum(run.finished() for run in runs)
    print(f"{len(runs)} runs into {options.out}, {done} of them finished already")
    try:
        failed = run_all(runs, options.jobs)
    except KeyboardInterrupt:
        sys.exit("ablate.py: stopped; the same command goes on from the last checkpoints")
    finished = [run.folder for run in runs if run.finished()]
    if finished:
        found = [compare.read_run(folder) for folder in finished]
        text = compare.markdown(compare.compare(found))
        (options.out / "comparison.md").write_text(text + "\n")
        report.write(found, options.out / "report.html")
        print(f"\n{text}\n\ntables: {options.out / 'comparison.md'}\nreport: {options.out / 'report.html'}")
    for run in failed:
        lines = (run.folder / "log.txt").read_text().splitlines()[-LOG_LINES:]
        print(f"\n{run.folder} failed; log.txt ends with:", *lines, sep="\n  ", file=sys.stderr)
    if failed:
        sys.exit(f"ablate.py: {len(failed)} of {len(runs)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
