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
    "LogicalDeduction": ({"context": "p", "question": "q", "options": ["A) x", "B) y"], "answer": "B"}, "B", "choice"),
    "AR-LSAT": ({"context": "p", "question": "q", "answers": list("vwxyz"), "label": 4}, "E", "choice"),
    "CRUX-O": ({"code": "def f(p): ...", "input": "{'a'}", "output": "{1: '####'}"}, "{1: '####'}", "literal"),
}
OPTIONS = {"LogicalDeduction": ["Ax", "By"], "AR-LSAT": ["Av", "Ez"], "ARC-Challenge": [("A", "red"), ("B", "blue")]}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Return a function that loads a benchmark whose only rows are the given ones, from a small file."""

    def load_rows(name: str, *rows: dict) -> list[Problem]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setattr(files, "read_rows", lambda hub: files.read_json(str(file)))
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
    assert all(f"({letter}) {text}" in problem.text for letter, text in OPTIONS.get(name, ()))
    finished = run_script("eval.py", "--data", name, *"--samples 1 --predictions 0 --max-new-tokens 4".split())
    assert f"tiny on {name}\n1 problems x 1 solutions" in finished.stdout


@pytest.mark.parametrize("name, change", [("ProofWriter", {"context": "other"}), ("CRUX-O", {"input": "0"})])
def test_a_set_printed_to_a_file_is_read_as_the_same_problems(load, tmp_path, name, change):
    row = ROWS[name][0]
    problems = load(name, row, row | change)
    lines = run_script("problems.benchmarks", name).stdout
    assert list(json.loads(lines.splitlines()[0])) == ["problem", "answer", "level", "kind"]
    (tmp_path / "set.jsonl").write_text(lines)
    read = load_problems(str(tmp_path / "set.jsonl")).heldout(9, whole=True)
    assert sorted(read, key=str) == sorted(problems, key=str)


SAME = [('[1,"a" , True]', "[1, 'a', True]"), (r"\{'x': (1, 2)\}", "{'x': (1, 2)}"), ("`'it\\'s'`", '"it\'s"')]
OTHER = [("[1, 'a']", "[1, 'A']"), ("[2]", "(2,)"), ("a", "'a'"), ("1 + 1", "2"), ("__import__('os').getcwd()", "2")]
OTHER += [("[" * 500 + "]" * 500, "[]"), ("1" + "0" * 5000, "1"), ("-" * 900 + "1", "1")]


def test_literals_are_compared_as_python_compares_values():
    """Braces may be those of LaTeX; a name is no string, and nothing is computed."""
    assert [pair for pair in SAME + OTHER if same_answer(*pair, "literal")] == SAME


def test_without_the_hub_the_message_says_how_to_get_a_set():
    finished = run_script("problems.benchmarks", "MATH500")
    assert finished.status == 1
    for part in ("HuggingFaceH4/MATH-500", "python -m problems.benchmarks MATH500 > MATH500.jsonl", "--whole"):
        assert part in finished.stderr


def test_other_columns_are_named(load):
    with pytest.raises(ProblemError, match=r"rows.jsonl:1: found the columns \['text'\]"):
        load("AR-LSAT", {"text": "p"})


def test_the_table_is_printed_and_an_unknown_name_refused():
    assert len(run_script("problems.benchmarks").stdout.splitlines()) == len(benchmarks.BENCHMARKS) == 16
    finished = run_script("problems.benchmarks", "MBPP")
    assert finished.status == 1 and "'MBPP'" in finished.stderr
