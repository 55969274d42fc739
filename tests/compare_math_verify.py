r"""Compare the verdicts of verify.py and of math-verify on the labelled pairs in tests/verify_pairs.jsonl.

    python tests/compare_math_verify.py [--quiet]      # needs `pip install math-verify`

math-verify gets the answers in $...$ and, separately, in \boxed{...}; the better result counts. Prints how many labels
each verifier agrees with, by class, and then every pair on which the two differ, with the one that is right.
"""

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


def main() -> None:
    pairs = [json.loads(line) for line in (HERE / "verify_pairs.jsonl").open(encoding="utf-8")]
    judges = {"verify.py": answers_match, "dollars": peer("$*$"), "boxed": peer(r"\boxed{*}")}
    verdicts = {name: [judge(pair["prediction"], pair["truth"]) for pair in pairs] for name, judge in judges.items()}
    right, totals = {}, Counter(pair["class"] for pair in pairs)
    for name, given in verdicts.items():
        right[name] = Counter(p["class"] for p, verdict in zip(pairs, given, strict=True) if verdict == p["equal"])
    theirs = max(("dollars", "boxed"), key=lambda name: right[name].total())

    print(f"{'class':14}{'pairs':>6}{'verify.py':>11}{'math-verify':>13}")
    for name in [*totals, "all"]:
        counts = [c.total() if name == "all" else c[name] for c in (totals, right["verify.py"], right[theirs])]
        print(f"{name:14}{counts[0]:6}{counts[1]:11}{counts[2]:13}")
    differing = [(p, a) for p, a, b in zip(pairs, verdicts["verify.py"], verdicts[theirs], strict=True) if a != b]
    ours, same = sum(verdict == p["equal"] for p, verdict in differing), 100 * (1 - len(differing) / len(pairs))
    print(f"\nThe two agree on {same:.1f}% of the pairs; they differ on {len(differing)}:")
    print(f"there verify.py is right {ours} times, math-verify (asked in {theirs}) {len(differing) - ours} times.")
    for pair, verdict in [] if "--quiet" in sys.argv else differing:
        who, label = (
            "verify.py" if verdict == pair["equal"] else "math-verify",
            "equal" if pair["equal"] else "different",
        )
        print(f"  {who:12} is right: {label:10}{pair['class']:12}  {pair['prediction']}   |   {pair['truth']}")


if __name__ == "__main__":
    main()
