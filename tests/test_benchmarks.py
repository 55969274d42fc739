"""The paper's sets: rows as the hub has them become problems; without the hub the message says what to do."""

import json

import pytest
from conftest import run_script

from problems import benchmarks, tasks
from rewards import solution_reward

VERDICTS = ["A) True", "B) False", "C) Unknown"]
MULTIPLE = {"text": ["red", "blue"], "label": ["1", "2"]}
ROWS = {  # a row of each set with made-up content, the answer that it must give, and its kind
    "AIME24": ({"problem": "p", "answer": "204"}, "204", "free"),
    "AIME25": ({"problem": "p", "answer": "70"}, "70", "free"),
    "AMC23": ({"question": "p", "answer": 27.0}, "27.0", "free"),
    "MATH500": ({"problem": "p", "answer": "\\frac{1}{2}", "level": 4}, "\\frac{1}{2}", "free"),
    "Minerva": ({"question": "p", "answer": "3e8"}, "3e8", "free"),
    "OlympiadBench": ({"question": "p", "final_answer": ["$2^{9}$"]}, "2^{9}", "free"),
    "GPQA-Diamond": (
        {"Question": "p", "Correct Answer": "w", **{f"Incorrect Answer {i}": f"x{i}" for i in (1, 2, 3)}},
        None,
        "choice",
    ),
    "ARC-Challenge": ({"question": "p", "choices": MULTIPLE, "answerKey": "2"}, "B", "choice"),
    "SciBench": ({"problem_text": "p", "answer_number": "-1.5"}, "-1.5", "free"),
    "R-Bench": ({"question": "p", **dict.fromkeys("ABCDEF", "x"), "answer": "F"}, "F", "choice"),
    "FOLIO": ({"premises": "p", "conclusion": "c", "label": "Uncertain"}, "uncertain", "truth"),
    "ProntoQA": ({"context": "p", "question": "q", "options": VERDICTS[:2], "answer": "B"}, "false", "truth"),
    "ProofWriter": ({"context": "p", "question": "q", "options": VERDICTS, "answer": "C"}, "unknown", "truth"),
    "LogicalDeduction": ({"input": "p\n(A) x\n(B) y", "target": "(B)"}, "B", "choice"),
    "AR-LSAT": ({"context": "p", "question": "q", "answers": list("vwxyz"), "label": 4}, "E", "choice"),
}


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_a_row_becomes_a_problem(name, monkeypatch, tmp_path):
    row, answer, kind = ROWS[name]
    monkeypatch.setattr(tasks, "read_rows", lambda hub: iter([(f"{hub}: row 1", row)]))
    (problem,) = benchmarks.load(name)
    assert "p" in problem.text and problem.kind == kind
    if answer is None:  # shuffled: the letter must be that of the right option
        answer = next(line[1] for line in problem.text.splitlines() if line.endswith(") w"))
    assert problem.answer == answer
    assert solution_reward(f"\\boxed{{{answer}}}", problem.answer, kind) == 1.0
    assert problem.level == (4 if name == "MATH500" else 0)


def test_a_set_as_a_file_is_read_as_the_same_problems(monkeypatch, tmp_path):
    row = ROWS["ProofWriter"][0]
    monkeypatch.setattr(tasks, "read_rows", lambda hub: iter([("row 1", row), ("row 2", row | {"context": "other"})]))
    problems = benchmarks.load("ProofWriter")
    printed = run_script("problems.benchmarks", "ProofWriter").stdout
    (tmp_path / "set.jsonl").write_text(printed)
    read = tasks.load_problems(str(tmp_path / "set.jsonl")).heldout(9, whole=True)
    assert sorted(read, key=str) == sorted(problems, key=str)


def test_without_the_hub_the_message_says_how_to_get_a_set():
    finished = run_script("eval.py", "--data", "MATH500")
    assert finished.status == 1
    for part in ("HuggingFaceH4/MATH-500", "python benchmarks.py MATH500 > MATH500.jsonl", "--whole"):
        assert part in finished.stderr


def test_other_columns_are_named(monkeypatch):
    monkeypatch.setattr(tasks, "read_rows", lambda hub: iter([(f"{hub}: row 1", {"text": "p"})]))
    with pytest.raises(tasks.ProblemError, match=r"AR-LSAT:test: row 1: found the columns \['text'\]"):
        benchmarks.load("AR-LSAT")


def test_the_table_is_printed_and_an_unknown_name_refused():
    assert len(run_script("problems.benchmarks").stdout.splitlines()) == len(benchmarks.BENCHMARKS) == 15
    finished = run_script("problems.benchmarks", "MBPP")
    assert finished.status == 1 and "'MBPP'" in finished.stderr


def test_a_line_of_a_set_is_plain_json(monkeypatch):
    monkeypatch.setattr(tasks, "read_rows", lambda hub: iter([("row 1", ROWS["AIME24"][0])]))
    row = json.loads(run_script("problems.benchmarks", "AIME24").stdout)
    assert row == {"problem": "p", "answer": "204", "level": 0, "kind": "free"}
