"""The worked examples: each file that prints one runs, and prints the figures that are to be checked by hand."""

import re

import pytest
from conftest import run_script

CLAIMS = {
    "attempts.py": ["9+8-4 is 13"],
    "lab.awareness": ["/ 64 = 0.0625", "/ 64 = 0.125", "once in seven times: 0.15"],
    "problems.benchmarks": ["HuggingFaceH4/MATH-500:test"],
    "engine.cache": [
        "  . . x x x x .\n  . . x x x x .\n  . . . . x x .\n  x x x x x x .\n",
        "without a cache, by 0.0000",
    ],
    "costs.py": ["trains on 4: 44,000 operations", "(10 + 4 x 4) = 52000"],
    "grpo.py": ["[ 0.8660, -0.8660, -0.8660,  0.8660]", "= -.4933: -0.4933"],
    "problems.latex": ["('+', 3, ('frac', 1, 2))                      7/2", "1000"],
    "engine.logprobs": ["-2.4849: [-2.4849, -2.4849]", "[[[4, 1], [9, 1]], [[2, 3, 1]]]"],
    "masa.py": ["gate skips the problem: True", "that is the limit: 71", "pass_rate=0.375, solution_length=36"],
    "engine.memory": ["| SmolLM2-135M | 0.5 | 0.5 | 2.2 | 0.3 |"],
    "engine.parallel": ["gathered on all: [1, 4, 9, 16, 25]", "sum over all: 55"],
    "models.policy": ["the message as 7 tokens", "the response as 21 tokens", "one of: ['<end>']"],
    "rewards.py": ["length=1.0, difficulty=0.3162", "notion=0.3333", "their mean, 0.5499"],
    "rollout.py": ["prompts [5, 6, 7] and [8]", "(cutoff)", "(stop)"],
    "variants.selection": ["chosen: [1, 2, 3]", "4 to 32 each: [4, 16, 32, 24, 4]"],
    "lab.spend": ["are in the groups [0, 1, 0, -1, 1, 0]", "accuracy 0.46 for 20"],
    "problems.tasks": ["total_before=9, op_sign='+', digit=8, total_after=17, notion='carry'", "3+1  ->  4"],
    "models.tiny": ["3+1=4;\\boxed{4}  [9 tokens]"],
    "problems.verify": ["0.333               \\frac{1}{3}         different   number"],
}


@pytest.mark.parametrize("file", CLAIMS)
def test_a_worked_example_prints_the_figures_that_it_claims(file):
    finished = run_script(file)
    assert finished.status == 0, finished.stderr
    for claim in CLAIMS[file]:
        assert claim in finished.stdout
    assert len(finished.stdout.splitlines()) < 40


@pytest.mark.parametrize(
    "file, lines", [("engine.logprobs", "^(?:whole seq|prompts)"), ("rollout.py", "^(?:log-pr|the same)")]
)
def test_two_ways_print_the_same_logprobs(file, lines):
    one, other = (line for line in run_script(file).stdout.splitlines() if re.search(lines, line))
    figures = [[float(figure) for figure in re.findall(r"-?\d+\.\d+", line)] for line in (one, other)]
    assert len(figures[0]) >= 4 and figures[0] == pytest.approx(figures[1], abs=2e-4)


def test_the_figures_of_the_attempts_are_those_of_the_solutions_shown():
    printed = run_script("attempts.py").stdout
    right = [int(length) for length in re.findall(r"right, +(\d+) tokens", printed)]
    assert f"pass rate {len(right) / 8}, lengths of right solutions {right}" in printed
