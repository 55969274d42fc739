r"""Compare the verdicts of verify.py and of math-verify on the labelled pairs in tests/verify_pairs.jsonl.

    python tests/compare_math_verify.py [--quiet]      # needs `pip install math-verify`

math-verify gets the answers in $...$ and, separately, in \boxed{...}; the better result counts. Prints how many labels
each verifier agrees with, by class, and then every pair on which the two differ, with the one that is right.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from problems.verify import answers_match  # noqa: E402


def peer(wrap: str) -> Callable[[str, str], bool]:
    """Return math-verify with its default settings, for answers put in place of * in `wrap`. An exception is False."""
    from math_verify import parse, verify

    def verdict(prediction: str, truth: str) -> bool:
        try:
            return bool(verify(parse(wrap.replace("*", truth)), parse(wrap.replace("*", prediction))))
        except Exception:
            return False

    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quiet", action="store_true", help="print only the table")
    options = parser.parse_args()
    pairs = [json.loads(line) for line in (HERE / "verify_pairs.jsonl").open(encoding="utf-8")]
    judges = {"verify.py": answers_match, "dollars": peer("$*$"), "boxed": peer(r"\boxed{*}")}
    right: dict[str, Counter] = {name: Counter() for name in judges}
    verdicts = []
    for pair in pairs:
        verdicts.append({name: judge(pair["prediction"], pair["truth"]) for name, judge in judges.items()})
        for name, verdict in verdicts[-1].items():
            right[name][pair["class"]] += verdict == pair["equal"]
    theirs = max(("dollars", "boxed"), key=lambda name: right[name].total())

    totals = Counter(pair["class"] for pair in pairs)
    print(f"{'class':14}{'pairs':>6}{'verify.py':>11}{'math-verify':>13}")
    for name in [*totals, "all"]:
        counts = [c.total() if name == "all" else c[name] for c in (totals, right["verify.py"], right[theirs])]
        print(f"{name:14}{counts[0]:6}{counts[1]:11}{counts[2]:13}")
    differing = [(p, v) for p, v in zip(pairs, verdicts, strict=True) if v["verify.py"] != v[theirs]]
    ours = sum(v["verify.py"] == p["equal"] for p, v in differing)
    same = 100 * (1 - len(differing) / len(pairs))
    print(f"\nThe two agree on {same:.1f}% of the pairs; they differ on {len(differing)}:")
    print(f"there verify.py is right {ours} times, math-verify (asked in {theirs}) {len(differing) - ours} times.")
    for pair, verdict in [] if options.quiet else differing:
        who = "verify.py" if verdict["verify.py"] == pair["equal"] else "math-verify"
        label = "equal" if pair["equal"] else "different"
        print(f"  {who:12} is right: {label:10}{pair['class']:12}  {pair['prediction']}   |   {pair['truth']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
