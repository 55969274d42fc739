"""Majority votes, and how solutions are shared out for them, by hand and by property."""

import json

import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from lab import spend
from problems.kinds import answer_groups, majority
from problems.verify import extract_answer


def problem(rate: float | None, correct: list[int], votes: list[int], lengths: list[int], length: int = 10) -> dict:
    prediction = None if rate is None else {"pass_rate": rate, "solution_length": length, "notions": []}
    return {"predictions": [prediction], "correct": correct, "votes": votes, "lengths": lengths, "tokens_meta": 3}


def test_equal_answers_share_a_group_and_kinds_are_honoured():
    def groups(*responses: str, kind: str = "free") -> list[int]:
        return answer_groups([extract_answer(response) for response in responses], kind)

    boxed = [f"\\boxed{{{answer}}}" for answer in ("1/2", "0.5", "2", "\\frac12")]
    assert groups(*boxed, "nothing") == [0, 0, 1, 0, -1]
    assert groups(r"\boxed{uncertain}", r"\boxed{unknown}", kind="truth") == [0, 0]
    assert groups(r"\boxed{(B) Bern}", r"\boxed{B}", r"\boxed{A}", kind="choice") == [0, 0, 1]


@pytest.mark.parametrize(
    "votes, correct, right",
    [
        ([0, 1, 0], [1, 0, 1], True),
        ([0, 1, 1], [1, 0, 0], False),
        ([1, 0], [0, 1], False),  # a tie goes to the first
        ([-1, -1, 0], [0, 0, 1], True),  # no answer is no vote
        ([-1, -1], [0, 0], False),
        ([], [], False),
    ],
)
def test_the_majority_by_hand(votes, correct, right):
    assert majority(votes, correct) is right


def test_a_vote_of_one_is_pass_at_1_and_of_all_is_exact():
    case = problem(0.5, [1, 1, 1, 0], [0, 0, 0, 1], [10, 10, 10, 10])
    right, tokens = spend.vote(case, 1)
    assert right == pytest.approx(0.75, abs=0.2) and tokens == 10
    assert spend.vote(case, 4) == (1.0, 40)
    assert spend.vote(case, 0) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at most 4"):
        spend.vote(case, 5)


def test_beyond_the_limit_there_is_no_answer_and_no_cost():
    case = problem(0.5, [1, 0, 0], [0, 1, 1], [10, 30, 40])
    assert spend.vote(case, 3) == (0.0, 80)
    assert spend.vote(case, 3, limit=20) == (1.0, 50)


@given(st.lists(st.sampled_from([None, 0.0, 0.125, 0.5, 1.0]), min_size=1, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_plans_spend_what_they_may(rates, k):
    problems = [problem(rate, [1] * 8, [0] * 8, [5] * 8) for rate in rates]
    same, _, shared, none = (spend.plan(way, problems, k) for way in spend.WAYS)
    assert sum(shared) == sum(same) == k * len(rates) and all(1 <= count <= 8 for count in shared)
    assert all(n == (0 if rate == 0.0 else s) for rate, s, n in zip(rates, shared, none, strict=True))


def test_curves_by_hand():
    easy = problem(1.0, [1, 1], [0, 0], [10, 10])
    hopeless = problem(0.0, [0, 0], [0, 1], [30, 30])
    curves = spend.curves([easy, hopeless])
    assert curves["same for all"] == {1: (0.5, 20), 2: (0.5, 40)}
    assert curves["limit"] == {1: (0.5, 18), 2: (0.5, 33)}  # 3 for the prediction, the hopeless cut at 20
    assert curves["hopeless none"] == {1: (0.5, 8), 2: (0.5, 13)}
    assert set(spend.curves([problem(None, [1], [0], [5]) | {"predictions": []}])) == {"same for all"}


def test_solutions_are_shared_out_by_largest_remainder():
    """p(1-p) is 0.25, 0.1875 and 0: of 12 solutions 6.86, 5.14 and 0, but at least one each."""
    problems = [problem(rate, [1] * 8, [0] * 8, [5] * 8) for rate in (0.5, 0.25, 0.0)]
    assert [spend.plan("shared out", problems, k) for k in (4, 8)] == [[6, 5, 1], [8, 8, 8]]


def test_the_command_reads_what_evaluation_writes(tmp_path):
    file = tmp_path / "evaluations.jsonl"
    row = {"model": "tiny", "data": "words", "problems": [problem(1.0, [1, 1], [0, 0], [10, 10])]}
    file.write_text(json.dumps(row) + "\n")
    for path in (file, tmp_path):
        shown = run_script("lab.spend", str(path)).stdout
        assert "tiny on words" in shown and "1.000 for 13" in shown
    del row["problems"][0]["votes"]
    file.write_text(json.dumps(row) + "\n")
    for wrong in (file, tmp_path, tmp_path / "nothing"):
        assert "expected evaluations.jsonl" in run_script("lab.spend", str(wrong)).stderr
