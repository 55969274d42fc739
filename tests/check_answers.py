r"""Check that the verifier accepts rewrites of an answer and rejects corruptions of it.

    python tests/check_answers.py                          # checks the built-in answers
    python tests/check_answers.py --answers FILE.jsonl     # checks the value of "answer" on each line

Exits with status 1 if any verdict is wrong. Empty answers, which equal nothing by convention, are counted, not checked.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from problems.verify import answers_match, extract_answer, timeouts

BUILT_IN = r"""
17 ; -3 ; 0.20 ; 125,000 ; 2{,}016{,}532 ; \frac{5}{12} ; -\frac{1}2 ; \frac{16}3 ; 129\frac{1}{3} ; 100\pi ; 3\sqrt{7}
\frac{\sqrt{3}}{2} ; \frac{8\sqrt{5}}{81} ; (1,-2,8) ; (-\frac{16}{5},\frac{53}{10}) ; (4,112) ; -\frac{3}{4} ; (3,-1)
[-1,\frac{1}{\sqrt{2}}) ; (-\infty,-2)\cup(-2,2)\cup(2,\infty) ; \{4,5,7\} ; -\sqrt{3},-1,1,\sqrt{3} ; -2{or}-12
(-4,27),(2,15) ; 1010100_2 ; 24_{10} ; \begin{pmatrix}-6\8\end{pmatrix} ; \begin{pmatrix}1/3\\-1/6\\1/6\end{pmatrix}
{(B)} ; {Monday} ; {even} ; LQSX ; 1:4 ; -7+24i ; x^2+7x+10 ; (a+b)(a+c)(b+c) ; \frac{2ab}{a^2+b^2} ; 2\secx ; n
x+2y-2z-9=0 ; y=2x+1 ; 12^{1/7} ; \sin^2y ; \sqrt[4]{8} ; [0,3) ; 32000 ; \frac{2469}{20,000} ; x>3"""
BUILT_IN = [answer.strip() for answer in re.split(r"[;\n]", BUILT_IN) if answer.strip()]

NUMBER = r"-?\d+(?:\.\d+)?"
WRAPPINGS = {
    "itself": "*",
    "dollars": "$*$",
    "LaTeX": r"\(*\)",
    "display": r"\displaystyle *",
    "braces": "{*}",
    "stop": "*.",
}
FRACTION = r"(-?)\\frac\{(\d+)\}\{(\d+)\}"


def is_value(answer: str) -> bool:
    """Tell whether an answer is one number or expression, so that a sign or a unit can be added to it."""
    plain = re.sub(r"\\[A-Za-z]+", "", answer)
    return not re.search(r"\\begin|\\cup|[,;=<>:]|\{[A-Za-z()]+\}|[A-Z]", answer) and bool(re.search(r"[\da-z]", plain))


def terminating(fraction: Fraction) -> str | None:
    """Return the decimal of a fraction if it ends within 12 digits."""
    if 10**12 % fraction.denominator or fraction.denominator >= 10**6:
        return None
    return format(float(fraction), ".12f").rstrip("0").rstrip(".")


def rewrites(answer: str) -> Iterator[tuple[str, str]]:
    """Yield other ways to write the same answer, as (name, text)."""
    for name, form in WRAPPINGS.items():
        yield name, form.replace("*", answer)
    yield "boxed", extract_answer(rf"so the answer is $\boxed{{{answer}}}$.") or ""
    yield "spaces", "  " + re.sub(r"([+=^/|])", r" \1 ", answer) + " "
    yield "unicode minus", answer.replace("-", "−")
    for command in ("dfrac", "tfrac") if "\\frac" in answer else ():
        yield command, answer.replace("\\frac", f"\\{command}")
    if re.search(r"[(\[]", answer) and "sqrt[" not in answer and re.search(r"[)\]]", answer):
        yield "left and right", re.sub(r"([)\]])", r"\\right\1", re.sub(r"([(\[])", r"\\left\1", answer))
    if match := re.fullmatch(FRACTION, answer):
        sign, above, below = match.groups()
        yield "slash", f"{sign}{above}/{below}"
        yield "expanded", rf"{sign}\frac{{{3 * int(above)}}}{{{3 * int(below)}}}"
        yield "sign moved", rf"\frac{{-{above}}}{{{'' if sign else '-'}{below}}}"
        if decimal := terminating(Fraction(int(above), int(below))):
            yield "decimal", sign + decimal
    if re.fullmatch(NUMBER, answer):
        yield "fraction", rf"\frac{{{Fraction(answer).numerator}}}{{{Fraction(answer).denominator}}}"
        yield "currency", rf"\${answer}"
        yield "trailing zeros", answer + ("00" if "." in answer else ".00")
    if re.fullmatch(r"-?\d{4,}", answer):
        yield "thousands", f"{int(answer):,}"
        yield "thousands in LaTeX", f"{int(answer):,}".replace(",", r",\!")
    if is_value(answer):
        yield "unit", answer + r"\text{ cm}"
        yield "unit in mathrm", answer + r"\ \mathrm{units}^2"
        yield "named", f"k = {answer}"
    if re.fullmatch(r"\{[A-Za-z]+\}|\{\([A-Z]\)\}|[A-E]", answer):
        bare = answer.strip("{}")
        yield "text", rf"\text{{{bare}}}"
        yield "bold", rf"\textbf{{{bare}}}"
        yield "other case", bare.swapcase()


def corruptions(answer: str) -> Iterator[tuple[str, str]]:
    """Yield answers that are close but wrong, as (name, text)."""
    if digits := [match.start() for match in re.finditer(r"\d", answer)]:
        for name, at in (("last digit", digits[-1]), ("first digit", digits[0])):
            yield name, f"{answer[:at]}{(int(answer[at]) + 1) % 10}{answer[at + 1 :]}"
        yield "one digit more", answer[: digits[-1] + 1] + "7" + answer[digits[-1] + 1 :]
    if is_value(answer) and re.search("[1-9a-z]", answer):
        yield "sign", answer[1:] if re.fullmatch(r"-[^+\-]*", answer) else f"-({answer})"
        yield "plus one", f"{answer}+1"
        yield "twice", f"2({answer})"
    for name, by in (("numerator + 1", 1), ("numerator - 1", -1)):
        if re.search(r"\\frac\{\d+\}", answer):
            yield name, re.sub(r"\\frac\{(\d+)\}", lambda m: rf"\frac{{{int(m[1]) + by}}}", answer, count=1)  # noqa: B023
    if (match := re.fullmatch(FRACTION, answer)) and match[2] != match[3]:
        yield "upside down", rf"{match[1]}\frac{{{match[3]}}}{{{match[2]}}}"
    if match := re.fullmatch(r"([(\[])([^()\[\],]+),([^()\[\],]+)([)\]])", answer):
        opening, x, y, closing = match.groups()
        if x != y:
            yield "swapped coordinates", f"{opening}{y},{x}{closing}"
        yield "open or closed, left", f"{'[' if opening == '(' else '('}{x},{y}{closing}"
        yield "open or closed, right", f"{opening}{x},{y}{']' if closing == ')' else ')'}"
        yield "one entry more", f"{opening}{x},{y},{y}{closing}"
    if "+" in answer:
        yield "plus to minus", answer.replace("+", "-", 1)
    if re.search(r"\\sqrt\{\w+\}", answer):
        yield "root lost", re.sub(r"\\sqrt\{(\w+)\}", r"\1", answer, count=1)
    if "\\pi" in answer:
        yield "pi lost", answer.replace("\\pi", "" if re.search(r"\d\\pi", answer) else "1", 1)
    if match := re.fullmatch(r"\{\(?([A-F])\)?\}|([A-F])", answer):
        yield "next letter", chr(ord(match[1] or match[2]) + 1)
    if re.fullmatch(r"\{[A-Za-z]{3,}\}", answer):
        yield "another word", answer[:-1] + "ish}"
        yield "cut word", answer[:-2] + "}"
    if "\\cup" in answer:
        yield "part of a union lost", answer.rpartition("\\cup")[0]


def same_by_chance(answer: str, corrupted: str) -> bool:
    """Tell whether a corruption left the value alone, as for a numeral of one digit in another base."""
    return bool(re.fullmatch(r"[01]_\{?\d+\}?", answer) and answer[0] == corrupted[0])


def check(answers: list[str]) -> tuple[Counter, list[str]]:
    """Return counts of what was checked, and a line for every wrong verdict."""
    counts = Counter({"empty answers, not checked": answers.count("")})
    wrong = []
    for answer in filter(None, answers):
        variants = [("rewrites", *rewrite) for rewrite in rewrites(answer)]
        variants += [("corruptions", *c) for c in corruptions(answer) if not same_by_chance(answer, c[1])]
        for group, name, text in variants:
            counts.update([group, f"{group}: {name}"])
            if answers_match(text, answer) != (group == "rewrites"):
                wrong.append(f"{group}: {name}: found the wrong verdict on {text!r} and {answer!r}")
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", help="a JSON Lines file (default: the built-in answers)")
    options = parser.parse_args()
    answers = BUILT_IN
    if options.answers:
        with open(options.answers, encoding="utf-8") as file:
            answers = [json.loads(line)["answer"] for line in file]
    counts, wrong = check(answers)
    for name, count in sorted(counts.items()):
        print(f"{count:7} {name}")
    print("\n".join(wrong))
    print(f"{len(answers)} answers, {len(wrong)} wrong verdicts, {timeouts()} timeouts")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
