"""Rows of the paper's evaluation sets become problems. Without the hub, the message says how to get a set."""

import json

import pytest
from conftest import run_script

from problems import benchmarks, files
from problems.kinds import same_answer
from problems.source import Problem, ProblemError, load_problems

VERDICTS = ["A) True", "B) False", "C) Unknown"]
MULTIPLE = {"text": ["red", "blue"], "label": ["1", "2"]}
WRONG = {f"Incorrect Answer {i}": f"x{i}" for i in (1, 2, 3)}
ROWS = {  # a row of each set with made-up content, the answer that it must give, and the kind of that answer
    "AIME24": ({"problem": "p", "answer": "204"}, "204", "free"),
    "AIME25": ({"problem": "p", "answer": "70"}, "70", "free"),
    "AMC23": ({"question": "p", "answer": 27.0}, "27.0", "free"),
    "MATH500": ({"problem": "p", "answer": "\\frac{1}{2}", "level": 4}, "\\frac{1}{2}", "free"),
    "Minerva": ({"question": "p", "answer": "3e8"}, "3e8", "free"),
    "OlympiadBench": ({"question": "p", "final_answer": ["$2^{9}$"]}, "2^{9}", "free"),
    "GPQA-Diamond": ({"Question": "p", "Correct Answer": "w"} | WRONG, None, "choice"),
    "ARC-Challenge": ({"question": "p", "choices": MULTIPLE, "answerKey": "2"}, "B", "choice"),
    "SciBench": ({"problem_text": "p", "answer_number": "-1.5"}, "-1.5", "free"),
    "R-Bench": ({"question": "p", **dict.fromkeys("ABCDEF", "x"), "answer": "F"}, "F", "choice"),
    "FOLIO": ({"premises": "p", "conclusion": "c", "label": "Uncertain"}, "uncertain", "truth"),
    "ProntoQA": ({"context": "p", "question": "q", "options": VERDICTS[:2], "answer": "B"}, "false", "truth"),
    "ProofWriter": ({"context": "p", "question": "q", "options": VERDICTS, "answer": "C"}, "unknown", "truth"),
    "LogicalDeduction": ({"input": "p\n(A) x\n(B) y", "target": "(B)"}, "B", "choice"),
    "AR-LSAT": ({"context": "p", "question": "q", "answers": list("vwxyz"), "label": 4}, "E", "choice"),
}


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads a benchmark whose only rows are the given ones."""

    def load_rows(name: str, *rows: dict) -> list[Problem]:
        places = [(f"{benchmarks.BENCHMARKS[name]['hub']}: row {i}", row) for i, row in enumerate(rows, 1)]
        monkeypatch.setattr(files, "read_rows", lambda hub: iter(places))
        return benchmarks.load(name)

    return load_rows


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_a_row_becomes_a_problem(name, load):
    row, answer, kind = ROWS[name]
    (problem,) = load(name, row)
    assert "p" in problem.text and problem.kind == kind
    if answer is None:  # the options are shuffled: the letter must be that of the right one
        answer = next(line[1] for line in problem.text.splitlines() if line.endswith(") w"))
    assert problem.answer == answer and same_answer(answer, problem.answer, kind)
    assert problem.level == (4 if name == "MATH500" else 0)


def test_a_set_printed_to_a_file_is_read_as_the_same_problems(load, tmp_path):
    row = ROWS["ProofWriter"][0]
    problems = load("ProofWriter", row, row | {"context": "other"})
    lines = run_script("problems.benchmarks", "ProofWriter").stdout
    assert list(json.loads(lines.splitlines()[0])) == ["problem", "answer", "level", "kind"]
    (tmp_path / "set.jsonl").write_text(lines)
    read = load_problems(str(tmp_path / "set.jsonl")).heldout(9, whole=True)
    assert sorted(read, key=str) == sorted(problems, key=str)


def test_without_the_hub_the_message_says_how_to_get_a_set():
    finished = run_script("problems.benchmarks", "MATH500")
    assert finished.status == 1
    for part in ("HuggingFaceH4/MATH-500", "python -m problems.benchmarks MATH500 > MATH500.jsonl", "--whole"):
        assert part in finished.stderr


def test_other_columns_are_named(load):
    with pytest.raises(ProblemError, match=r"AR-LSAT:test: row 1: found the columns \['text'\]"):
        load("AR-LSAT", {"text": "p"})


def test_the_table_is_printed_and_an_unknown_name_refused():
    assert len(run_script("problems.benchmarks").stdout.splitlines()) == len(benchmarks.BENCHMARKS) == 15
    finished = run_script("problems.benchmarks", "MBPP")
    assert finished.status == 1 and "'MBPP'" in finished.stderr
