"""Worked examples: each file that prints one runs, and prints the figures that are to be checked by hand."""

import re
from functools import cache

import pytest
from conftest import run_script

CLAIMS = {
    "grpo.py": ["[ 0.8660, -0.8660, -0.8660,  0.8660]", "= -0.4933: -0.4933", "[-0.3333,  0.0000]"],
    "masa.py": ["Skip the problem: True", "that is the limit: 71", "pass_rate=0.375, solution_length=36"],
    "rewards.py": ["length=1.0, difficulty=0.3162", "notion=0.3333", "their mean, 0.5499"],
    "rollout.py": ["prompts [5, 6, 7] and [8]", "(cutoff)", "(stop)"],
    "engine.memory": ["| SmolLM2-135M | 0.5 | 0.5 | 2.2 | 0.3 |"],
    "engine.parallel": ["known to all: [1, 4, 9, 16, 25]", "all sum to 55"],
    "engine.update": ["5 + 4 + 2 = 11 in whole sequences, (3 + 1) + (2 + 1 + 1) = 8 with prompts once"],
    "lab.awareness": ["/ 64 = 0.0625", "/ 64 = 0.125", "once in seven times: 0.15"],
    "lab.spend": ["(1 + 3/8 + 0) / 3 = 0.46", "0.458 for 18 | 0.490 for 38"],
    "models.loading": ["the message as 7 tokens", "the response as 21 tokens", "one of: ['<end>']"],
    "models.tiny": ["3+1=4;\\boxed{4}  [9 tokens]"],
    "problems.arithmetic": ["total_before=9, op_sign='+', digit=8, total_after=17, notion='carry'"],
    "problems.benchmarks": ["HuggingFaceH4/MATH-500:test"],
    "problems.latex": ["('+', 3, ('frac', 1, 2))                      7/2", "1000"],
    "problems.source": ["3+1  ->  4"],
    "problems.verify": ["0.333               \\frac{1}{3}         different   number"],
}


@cache
def printed(name: str) -> str:
    finished = run_script(name)
    assert finished.status == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", CLAIMS)
def test_a_worked_example_prints_the_figures_that_it_claims(name):
    assert [claim for claim in CLAIMS[name] if claim not in printed(name)] == []
    assert len(printed(name).splitlines()) <= 40


@pytest.mark.parametrize(
    "name, lines", [("engine.update", "^(?:plain  |prompts once)"), ("rollout.py", "^(?:log-probs of|the same)")]
)
def test_two_ways_print_the_same_logprobs(name, lines):
    one, other = (line for line in printed(name).splitlines() if re.search(lines, line))
    figures = [[float(figure) for figure in re.findall(r"-?\d+\.\d+", line)] for line in (one, other)]
    assert len(figures[0]) >= 4 and figures[0] == pytest.approx(figures[1], abs=2e-4)
