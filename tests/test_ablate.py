"""Ablations: what a variant means, and one small sweep end to end, several times."""

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT, printed, run_script

import ablate
from train import Options, build_parser


@pytest.mark.parametrize("name", ablate.VARIANTS)
def test_each_variant_is_a_set_of_options(name):
    flags = ablate.as_flags(ablate.VARIANTS[name])
    parsed = vars(build_parser().parse_args(flags))
    assert parsed == ablate.VARIANTS[name]
    Options.of(parsed)  # raises for options that make no sense


def test_a_variant_can_be_changed_by_name():
    assert ablate.variant_options("grpo+lr=2e-4") == {"algo": "grpo", "lr": 2e-4}
    changed = ablate.variant_options("masa-efficient+gate-margin=0.2+experts=false+hints=votes+gate=both")
    expected = {"gate_margin": 0.2, "experts": False, "hints": "votes", "gate": "both"}
    assert changed == {"algo": "masa-efficient"} | expected
    assert ablate.variant_options("grpo+kl_coef=0.1") == {"algo": "grpo", "kl_coef": 0.1}  # as config.json spells it
    for wrong, message in (("ppo", "'ppo'"), ("grpo+learning=1", "'learning'")):
        with pytest.raises(ValueError, match=message):
            ablate.variant_options(wrong)


def test_a_plan_goes_seed_by_seed(tmp_path):
    options = ablate.AblateOptions(seeds=2, first_seed=3, variants="grpo,masa", out=str(tmp_path))
    runs = ablate.plan(options, ["--lr", "0.5"])
    folders = [run.folder.relative_to(tmp_path).as_posix() for run in runs]
    assert folders == ["grpo/seed-3", "masa/seed-3", "grpo/seed-4", "masa/seed-4"]
    chosen = [tuple(run.options[name] for name in ("seed", "lr", "steps")) for run in runs]
    assert chosen == [(3, 0.5, 240)] * 2 + [(4, 0.5, 240)] * 2


def test_the_help_lists_every_variant_with_its_flags():
    told = printed("ablate.py", "--help")
    assert all(f"  {name} " in told for name in ablate.VARIANTS)
    assert "--algo=grpo --variant=oracle-gate" in told and "-- OPTIONS" in told


SWEEP = "--seeds 1 --variants grpo,masa-efficient+gate-margin=0.2 --steps 2".split()
SMALL = "--problems 3 --samples 4 --efficient-from 1 --eval-problems 5 --eval-samples 2 --eval-every 1".split()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation")
    command = [sys.executable, "ablate.py", *SWEEP, "--out", str(out), "--", *SMALL]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return out, finished.stdout


def test_a_sweep_leaves_runs_and_tables(sweep):
    out, told = sweep
    for name in ("grpo", "masa-efficient+gate-margin=0.2"):
        config = json.loads((out / name / "seed-0" / "config.json").read_text())
        assert config["steps"] == 2 and config["problems"] == 3
        assert name in (out / "comparison.md").read_text() and name in told
    assert config["gate_margin"] == 0.2


def test_finished_runs_are_not_run_again(sweep):
    out, _ = sweep
    before = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    finished = run_script("ablate.py", *SWEEP, "--out", str(out), "--", *SMALL)
    assert finished.status == 0 and "2 runs into" in finished.stdout and "2 of them finished already" in finished.stdout
    assert {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")} == before


def test_a_failed_run_is_shown_and_the_others_are_compared(sweep):
    out, _ = sweep
    words = [word if "," not in word else "grpo,grpo+data=nothing.jsonl" for word in SWEEP]
    finished = run_script("ablate.py", *words, "--out", str(out), "--", *SMALL)
    assert finished.status == 1 and "1 of 2 runs failed" in finished.stderr and "nothing.jsonl" in finished.stderr
    assert "nothing.jsonl" not in (out / "comparison.md").read_text()


def test_an_unfinished_run_continues(sweep):
    """With more steps than before, each run is resumed from its checkpoint, not started again."""
    out, _ = sweep
    first = {file: file.read_text().splitlines()[:3] for file in out.rglob("metrics.jsonl")}
    longer = [word if word != "2" else "3" for word in SWEEP]
    printed("ablate.py", *longer, "--out", str(out), "--", *SMALL)
    for file, rows in first.items():
        assert file.read_text().splitlines()[:3] == rows and len(file.read_text().splitlines()) == 4


WRONG = {"--variants ppo": "'ppo'", "--variants grpo -- --samples 1": "--samples", "--seeds 0": "--seeds: found 0"}
WRONG |= {"--jobs 0": "--jobs: found 0", " ".join([*SWEEP, "--", *SMALL, "--lr 0.5"]): "lr = 0.0003, expected 0.5"}


@pytest.mark.parametrize("words, message", WRONG.items())
def test_what_is_wrong_is_named_before_anything_runs(sweep, words, message):
    out, _ = sweep
    finished = run_script("ablate.py", "--out", str(out), *words.split())
    assert finished.status != 0 and message in finished.stderr


@pytest.mark.slow
def test_ending_a_sweep_ends_its_runs(tmp_path):
    words = "--seeds 1 --variants grpo --steps 500".split()
    process = subprocess.Popen([sys.executable, "ablate.py", *words, "--out", str(tmp_path), "--", *SMALL], cwd=ROOT)
    metrics = tmp_path / "grpo" / "seed-0" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 130
    size = metrics.stat().st_size
    time.sleep(2)
    assert metrics.stat().st_size == size  # nobody writes any more
