"""Check the generator of times of day that family.diff adds."""

import datetime
import json
import re

from conftest import printed

from problems.source import load_problems
from problems.verify import answers_match


def test_answers_are_those_of_a_real_clock():
    for problem in load_problems("clock").train(seed=0, start=0, count=200):
        before, *moves = re.findall(r"\d\d:\d\d|[+-]\d+", problem.text)
        time = datetime.datetime.strptime(before, "%H:%M") + datetime.timedelta(minutes=sum(map(int, moves)))
        assert problem.answer == f"{time:%H:%M}" and problem.level == len(moves)


def test_the_verifier_reads_times():
    assert answers_match("9:05", "09:05")
    assert not answers_match("09:06", "09:05") and not answers_match("01:02", "12:24")


def test_training_finds_the_generator_by_name(tmp_path):
    small = "--data clock --steps 1 --problems 2 --samples 2 --eval-problems 2 --eval-samples 2".split()
    printed("train.py", *small, "--out", str(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert rows and all("24-hour clock" in row["problem"] for row in rows)
    assert "clock" in printed("train.py", "--help")
