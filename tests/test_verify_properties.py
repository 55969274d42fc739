"""Verdicts are symmetric and reflexive, and a wrong digit, sign or symbol anywhere in an answer is never paid."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_verify import PAIRS

from problems import latex, verify
from problems.verify import answers_match, judge

TRUTHS = [truth for truth in dict.fromkeys(pair["truth"] for pair in PAIRS) if judge(truth, truth)[0]]
SWAPS = {"+": "-", "-": "+", "<": ">", r"\le ": "<", r"\ge": ">", "[": "(", "!": "", "|": "", r"\cup": r"\cap"}
SWAPS |= {r"\sqrt": "", r"\frac": r"\binom", r"\sin": r"\cos", r"\cos": r"\sin", r"\ln": r"\log", r"\pi": r"\tau"}
SWAPS |= dict(swap.split(":") for swap in r"\infty:-\infty cm:km hours:minutes x:q n:r a:v i:u A:B B:C".split())
EQUAL_AFTER_ALL = {  # (truth, mutation): changed signs and names that mean the same
    (r"\frac{2}{1}", r"\binom{2}{1}"),
    ("f(x)=0", "f(q)=0"),
    ("f(x)=n+1", "f(q)=n+1"),
    ("(-1)^{n+1}", "(-1)^{n-1}"),
    ("(-1)^{m+n}", "(-1)^{m-n}"),
    (r"\sin(10^{20}+\pi)", r"\sin(10^{20}-\pi)"),
}


def mutations(answer: str) -> Iterator[str]:
    """Yield an answer with one digit, sign or symbol changed, for each place where one stands."""
    for digit in re.finditer(r"\d", answer):
        yield f"{answer[: digit.start()]}{(int(digit[0]) + 1) % 10}{answer[digit.end() :]}"
    for old, new in SWAPS.items():
        before, after = (r"(?<![A-Za-z\\])" if old[0].isalpha() else "", "(?![A-Za-z])" if old[-1].isalpha() else "")
        for place in re.finditer(before + re.escape(old) + after, answer):
            yield answer[: place.start()] + new + answer[place.end() :]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])  # a fifth of the places, and all
def test_a_wrong_digit_sign_or_symbol_is_never_equal(every):
    mutated = [(truth, mutation) for truth in TRUTHS for mutation in mutations(truth)]
    paid = {pair for pair in mutated[::every] if answers_match(*pair)}
    assert all(judge(f"${truth}$", truth)[0] for truth in TRUTHS)
    assert len(mutated) > 2500 and paid <= EQUAL_AFTER_ALL, paid - EQUAL_AFTER_ALL


def test_the_comparison_of_trees_is_symmetric():
    """The function judge() sorts its two answers, so that its verdicts are symmetric anyway. Here nothing is sorted."""

    def prove(x, y):
        if verify.mentions((x, y), verify.COMPOSED - {"relation"} | {r"\infty"}):
            return False
        return verify.WORKER.ask(x, y, 150, verify.time.monotonic() + 4)

    for pair in PAIRS:
        try:
            a, b = (latex.parse(latex.normalise(pair[key])) for key in ("prediction", "truth"))
            verdict = verify.same(a, b, prove)
        except (ValueError, RecursionError, ArithmeticError, TimeoutError):
            continue
        assert verify.same(b, a, prove) == verdict, pair


SHORT = {pair[key] for pair in PAIRS for key in ("prediction", "truth") if len(pair[key]) < 60}
ANSWERS = st.sampled_from(sorted(SHORT))


@pytest.mark.parametrize("shape", ["%s", "(%s,1)", r"\{%s, 7\}", "x=%s", r"-%s", r"\frac{%s}{3}", "%s,%s", "%s+%s"])
def test_verdicts_about_any_two_answers_are_symmetric(shape, monkeypatch):
    monkeypatch.setattr("problems.worker.QUESTION_LIMIT", 0.5)
    parts = shape.count("%s")

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*[ANSWERS] * parts), st.tuples(*[ANSWERS] * parts))
    def check(left, right):
        a, b = shape % left, shape % right
        assert judge(a, b)[0] == judge(b, a)[0]

    check()
