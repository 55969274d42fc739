"""Worked examples: each file that prints one runs, and prints the figures that are to be checked by hand."""

import re
from functools import cache

import conftest
import pytest

CLAIMS = {
    "grpo.py": ["[ 0.8660, -0.8660, -0.8660,  0.8660]", "= -0.4933: -0.4933", "[-0.3333,  0.0000]"],
    "masa.py": ["Skip the problem: True", "that is the limit: 71", "pass_rate=0.375, solution_length=36"],
    "rewards.py": ["length=1.0, difficulty=0.3162", "notion=0.3333", "their mean, 0.5499"],
    "rollout.py": ["prompts [5, 6, 7] and [8]", "(cutoff)", "(stop)"],
    "engine.memory": ["| SmolLM2-135M | 0.5 | 0.5 | 2.2 | 0.3 |"],
    "lab.awareness": ["/ 64 = 0.0625", "/ 64 = 0.125", "once in seven times: 0.15"],
    "lab.spend": ["(1 + 3/8 + 0) / 3 = 0.46", "0.458 for 18 | 0.490 for 38"],
    "models.loading": ["the message as 7 tokens", "the response as 21 tokens", "one of: ['<end>']"],
    "models.tiny": ["3+1=4;\\boxed{4}  [9 tokens]"],
    "problems.benchmarks": ["HuggingFaceH4/MATH-500:test"],
    "problems.source": ["3+1  ->  4"],
    "problems.verify": ["0.333               \\frac{1}{3}         different   number"],
}


printed = cache(conftest.printed)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_worked_example_prints_the_figures_that_it_claims(name):
    assert [claim for claim in CLAIMS[name] if claim not in printed(name)] == []
    assert len(printed(name).splitlines()) <= 40


def test_two_ways_print_the_same_logprobs():
    lines = (line for line in printed("rollout.py").splitlines() if re.search("^(?:log-probs of|the same)", line))
    drawn, expected = ([float(figure) for figure in re.findall(r"-?\d+\.\d+", line)] for line in lines)
    assert len(drawn) >= 4 and drawn == pytest.approx(expected, abs=2e-4)
