"""What a run tells on the terminal: what it works with, warnings, and a line that fits."""

import io
import json
import sys

from tqdm import tqdm

from engine import terminal
from models import loading
from problems.source import Problem, listed_source, load_problems
from train import main


def test_the_live_line_fits_80_columns_with_held_out_accuracy_first():
    rows = [{"eval_pass1": 0.75}, {"eval_pass1": None, "train_pass_rate": 0.5, "gated_frac": 0.25}]
    assert terminal.live(rows) == "held-out pass@1 0.750, right 0.50, gated 0.25"
    assert terminal.live(rows[1:]) == "right 0.50, gated 0.25"
    file = io.StringIO()
    bar = tqdm(total=2000, initial=1000, file=file, bar_format=terminal.BAR, desc="predicting", ncols=200)
    bar.start_t -= 9 * 3600
    bar.set_postfix_str(terminal.live(rows))
    bar.close()
    shown = file.getvalue().split("\r")[-1].rstrip()
    assert "1000/2000" in shown and "gated 0.25" in shown and len(shown) <= 80


def test_the_first_lines_name_what_is_used_and_warn_of_what_cannot_work():
    policy = loading.load("tiny", device="cpu", dtype="float32")
    source = listed_source("own.json", [Problem(f"{i}x", str(i)) for i in range(9)], None)
    told = terminal.first_lines(policy, source, source.heldout(9), "tiny").splitlines()
    assert told[0].startswith("device cpu, ") and told[0].endswith("sampling and updates float32 and float32")
    held = len(source.heldout(9))
    assert told[1] == f"own.json: 9 problems: {9 - held} to train, {held} held out; evaluated on {held} of these"
    assert f"a single one changes pass@1 by {1 / held:.2f}" in told[2] and "was never taught 'x'" in told[3]
    assert "taught" not in terminal.first_lines(policy, source, source.heldout(9), "another")
    chains = load_problems("arithmetic")
    assert "warning" not in terminal.first_lines(policy, chains, chains.heldout(96), "tiny")


def test_a_terminal_without_the_characters_of_a_problem_gets_their_codes(tmp_path, monkeypatch):
    rows = [{"problem": f"{i}+1 \u2192 \u6570", "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    small = f"--explain --problems 1 --samples 2 --predictions 1 --data {tmp_path / 'a.json'}"
    screen = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "argv", ["train.py", *small.split()])
    monkeypatch.setattr(sys, "stdout", screen)
    main()
    screen.seek(0)
    assert "+1 \\u2192 \\u6570" in screen.read()
