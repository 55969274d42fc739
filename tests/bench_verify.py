"""Pairs per second of verify.py and of math-verify, on the same pairs, in one run.

    python tests/bench_verify.py [--rounds 5] [--every 1]      needs `pip install math-verify`; nothing else does

The two take turns, round by round; within a round every pair is timed by itself. The rate of a round is the number of
pairs over the sum of their times, and the median over the rounds is printed: for the pairs that verify.py settles
without sympy (its stages text, number and structure), for the others, and for all. Each side has one round to warm up.
Nothing is cached by verify.py between calls; its worker process runs from the warm-up on, as in training. The pairs of
class "hostile" are left out: on those the peer waits for its time limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from verify import answers_match, judge  # noqa: E402


def math_verify(prediction: str, truth: str) -> bool:
    from math_verify import parse, verify

    try:
        return bool(verify(parse(f"${truth}$"), parse(f"${prediction}$")))
    except Exception:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (default: 5)")
    parser.add_argument("--every", type=int, default=1, help="use every n-th pair (default: all)")
    options = parser.parse_args()
    lines = (HERE / "verify_pairs.jsonl").read_text(encoding="utf-8").splitlines()[:: options.every]
    labelled = [
        pair for pair in map(json.loads, lines) if pair["class"] != "hostile"
    ]  # they only cost math-verify time
    pairs = [(pair["prediction"], pair["truth"]) for pair in labelled]
    is_cheap = [judge(*pair)[1] != "sympy" for pair in pairs]
    sides = {"verify.py": answers_match, "math-verify": math_verify}
    groups = {"cheap": is_cheap, "sympy": [not cheap for cheap in is_cheap], "all": [True] * len(pairs)}
    rates: dict[tuple[str, str], list[float]] = {(side, group): [] for side in sides for group in groups}
    for round_number in range(options.rounds + 1):
        for side, verdict in sides.items():
            seconds = []
            for pair in pairs:
                start = time.perf_counter()
                verdict(*pair)
                seconds.append(time.perf_counter() - start)
            if round_number:  # the first warms up
                for group, members in groups.items():
                    chosen = [t for t, member in zip(seconds, members, strict=True) if member]
                    rates[side, group].append(len(chosen) / sum(chosen))
    print(f"{'pairs per second, median':28}{'pairs':>6}{'verify.py':>12}{'math-verify':>13}{'times':>8}")
    for group, members in groups.items():
        ours, theirs = (statistics.median(rates[side, group]) for side in sides)
        print(f"{group:28}{sum(members):6}{ours:12.0f}{theirs:13.1f}{ours / theirs:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
