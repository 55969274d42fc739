r"""Decide whether two answers are mathematically the same.

    answers_match(prediction, truth)   True or False; never raises, and returns within 5 seconds
    extract_answer(text)               the content of the last \boxed{...} of a response
    timeouts()                         how many pairs ran out of time so far; they count as different

    python -m problems.verify                        # a table of worked examples
    python -m problems.verify "prediction" "truth"   # one verdict; exit status 0 if equal, 1 if different

There are four stages, from cheap to expensive. The first that can decide gives the verdict:
  text       equal after normalising spaces, fonts, \left, \dfrac, currency; integers, words, choices, times of day
  number     both are rational numbers, which are compared exactly: 0.333 is not 1/3
  structure  tuples, intervals and matrices entry by entry; sets and lists in any order; equations, inequalities
  sympy      expressions, refuted or believed in a process that is killed when it takes too long (worker.py)

No text is ever evaluated: the closed grammar of latex.py turns it into trees, and only trees reach sympy. What the
grammar does not cover is compared as text. Left out: sympy's own parsers, because they call `eval`.

Conventions
  percent    50\% equals 50 and 0.5, as graders accept both; 50\% and 0.5\% differ
  units      are ignored, as are currency and degrees (not in sin ...): 5\text{ cm} = 5 cm = \$5.00 = 5; 5m is not 5
  names      x = 5 and f(x) = 5 equal 5, x \in [1,3] equals [1,3], 7 \pmod{12} equals 7; x = 5 is not y = 5
  equations  are equal up to a constant factor: 2x = 4y and x - 2y = 0. x > 3 equals 3 < x and (3,\infty)
  lists      1,2 and \{2,1\} and "2 or 1" and "x=1, x=2" are one unordered answer, and \pm 2 is 2,-2. (1,2) is ordered,
             and its brackets matter: it is neither 1,2 nor [1,2]. With three or more entries brackets do not matter.
             1,000 is a thousand, but (1,234) is a pair
  base n     101_2 is the number five: it equals 5 and 12_3, not 101
  ratios     1:4 equals 2:8 and 1/4; two times of day (3:30) are compared digit by digit
  case       is ignored in words (Monday) and choices (a lone letter A-H, (b), \text{(B)}), but never in variables
  numbers    3\frac{1}{2} and 3 1/2 are mixed numbers, 2\frac{3}{2} is a product, 1/2x is (1/2)x; \log is to base 10
  functions  take real variables and are compared where both sides are real; i and e are the constants
  empty      an empty answer equals nothing, not even itself; nor does anything that is not a string
  long       beyond MAX_CHARS characters, or latex.MAX_DEPTH brackets, only text and integers are compared
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable

from problems.latex import THOUSANDS, Tree, kind, mentions, merge_thousands, normalise, parse, rational
from problems.worker import UNSETTLED, WORKER

__all__ = ["answers_match", "extract_answer", "judge", "timeouts"]
MAX_CHARS = 2000  # longest answer that is parsed; shorter than the 4300 digits at which Python's int() refuses
CALL_LIMIT = 4.0  # seconds for one call of answers_match, including the start of the worker
DIGITS = 100  # that must agree before two values are believed equal, in addition to the length of the two answers

# ---------------------------------------------------------------------------- 1. the answer in a response

BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])(?:(\s*\{)|\s+([^\s{}$]+))|\\\\(?!boxed|fbox)|\\[{}]|[{}]")


def extract_answer(text: object) -> str | None:
    r"""Return the content of the last complete \boxed{...} or \fbox{...}, or the word after a bare `\boxed 5`.

    Braces may nest. Only text after the last </think> counts, if there is one. Returns None if there is no box.
    >>> extract_answer(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    if not isinstance(text, str):
        return None
    text = text.rpartition("</think>")[2]
    best_start, best = -1, None
    open_braces: list[tuple[int, int]] = []  # (start of the box, or -1 for any other brace; start of its content)
    for match in BOX_OR_BRACE.finditer(text):  # one pass, so the time is linear in the length
        if match[2]:
            best_start, best = match.start(), match[2].rstrip(".,;:")
        elif match[1] or match[0] == "{":
            open_braces.append((match.start() if match[1] else -1, match.end()))
        elif match[0] == "}" and open_braces:
            start, content = open_braces.pop()
            if start > best_start:
                best_start, best = start, text[content : match.start()].strip()
    return best


# ---------------------------------------------------------------------------- 2. words, choices, times

INTEGER = re.compile(r"\s*(?:\+|(-))?0*([0-9]+)\s*")
CHOICE = re.compile(r"\(?([A-Ha-h])\)?[.:]?")
CHOICE_WITH_TEXT = re.compile(r"(?:\\text\{)?(?:\(([A-H])\)|([A-H])[.:)] ?)\}?.+")
TIME = re.compile(r"(\d\d?):(\d\d)(?:\\text\{| )*([ap])?\.?m?\.?\}?", re.I)
WORDS = re.compile(r"[A-Za-z][A-Za-z .'-]*")


def same_text(a: str, b: str) -> bool | None:
    """Compare two normalised answers that are words, choices or times of day; None if they are something else."""
    if WORDS.fullmatch(a) and WORDS.fullmatch(b):
        # Three letters or fewer are usually a product of variables. Exceptions: yes, no, odd, and names such as ABB.
        is_word = len(a) > 3 or a.lower() in ("yes", "no", "odd") or (len(a) == 3 and a[1:] == b[1:])
        if is_word and a.casefold() == b.casefold():
            return True
        if re.search(r"[A-Za-z]{5}", f"{a} {b}"):
            return False
    x, y = CHOICE.fullmatch(a), CHOICE.fullmatch(b)
    if (x := x or (y and CHOICE_WITH_TEXT.fullmatch(a))) and (y := y or CHOICE_WITH_TEXT.fullmatch(b)):
        return x[x.lastindex or 0].upper() == y[y.lastindex or 0].upper()
    if (x := TIME.fullmatch(a)) and (y := TIME.fullmatch(b)):
        is_same_half = not (x[3] and y[3]) or x[3].lower() == y[3].lower()  # a.m. or p.m., if both say which
        return is_same_half and int(x[1]) == int(y[1]) and x[2] == y[2]
    return None


# ---------------------------------------------------------------------------- 3. structures

Prover = Callable[[Tree, Tree], bool]
COMPOSED = {"tuple", "union", "matrix", "row", "word", "list", "relation"}


def with_sign(tree: Tree, sign: int) -> Tree:
    r"""Read every \pm in a tree as + (if sign is 1) or - (if it is -1)."""
    if not isinstance(tree, tuple):
        return tree
    return ("*", sign * tree[1], tree[2]) if tree[0] == "pm" else tuple(with_sign(part, sign) for part in tree)


def alternatives(tree: Tree) -> list[Tree]:
    r"""Return the entries of an unordered answer: a list, or an expression with \pm. Any other is its only entry."""
    if kind(tree) == "list":
        return [entry for part in tree[1:] for entry in alternatives(part)]
    plus = with_sign(tree, 1)
    return [tree] if plus == tree else [plus, with_sign(tree, -1)]


def is_name(tree: Tree) -> bool:
    """Tell whether a tree only names an answer when it stands before "=": x, AB, f(x), P(x), (x, y), words."""
    if kind(tree) == "^":  # f^{-1}
        return tree[2] == -1 and is_name(tree[1])
    is_part = kind(tree) in ("*", "tuple") and all(map(is_name, tree[1:]))
    return isinstance(tree, str) or kind(tree) in ("word", "apply") or is_part


def nameless(tree: Tree) -> Tree:
    """Drop the name of an answer: x = 5 -> 5; 5 = x -> 5; a = b = 5 -> 5. Other trees stay as they are."""
    if kind(tree) == "relation" and set(tree[2::2]) == {"="}:
        if is_name(tree[1]):
            return tree[-1]
        if len(tree) == 4 and is_name(tree[3]):
            return tree[1]
    return tree


def as_interval(tree: Tree) -> Tree:
    r"""Rewrite an inequality as an interval: x > 3 -> (3,\infty); 1 < x <= 2 -> (1,2]. Other trees stay as they are."""
    if kind(tree) != "relation" or not set(tree[2::2]) <= {"<", "<="}:
        return tree
    parts = tree[1:]
    if len(parts) == 3:  # x < 3, or 3 < x
        parts = (("*", -1, r"\infty"), "<", *parts) if isinstance(parts[0], str) else (*parts, "<", r"\infty")
    if len(parts) != 5 or not isinstance(parts[2], str):
        return tree
    return ("tuple", ("(" if parts[1] == "<" else "[") + (")" if parts[3] == "<" else "]"), parts[0], parts[4])


def same_unordered(a: list[Tree], b: list[Tree], prove: Prover) -> bool:
    """Tell whether the entries of two lists can be paired. Equal values pair first, to leave few for the prover."""
    left, right = [], [(rational(tree), tree) for tree in b]
    for entry in [(rational(tree), tree) for tree in a]:
        twin = next((other for other in right if other == entry or other[0] == entry[0] is not None), None)
        right.remove(twin) if twin else left.append(entry)
    for _, x in left:
        partner = next((other for other in right if same(x, other[1], prove)), None)
        if not partner:
            return False
        right.remove(partner)
    return not right


def same(a: Tree, b: Tree, prove: Prover) -> bool:
    """Tell whether two trees are the same answer. `prove` decides about expressions and equations."""
    if a == b:
        return True
    if kind(a) == kind(b) == "relation":
        if a[2::2] != b[2::2]:
            return False
        if len(a) > 4 or any(kind(part) in COMPOSED for part in a[1::2] + b[1::2]):
            return len(a) == len(b) and all(same(x, y, prove) for x, y in zip(a[1::2], b[1::2], strict=True))
        return prove(a, b)
    a, b = nameless(a), nameless(b)
    many_a, many_b = alternatives(a), alternatives(b)
    if "list" in (kind(a), kind(b)) or len(many_a) + len(many_b) > 2 or kind(a) == kind(b) == "union":
        if "union" in (kind(a), kind(b)):  # may equal "x < 1 or x > 3"
            parts = (m[0][1:] if m and kind(m[0]) == "union" else m for m in (many_a, many_b))
            many_a, many_b = (list(map(as_interval, part)) for part in parts)
        if any(kind(tree) != "relation" for tree in many_a + many_b):
            many_a, many_b = list(map(nameless, many_a)), list(map(nameless, many_b))
        return same_unordered(many_a, many_b, prove)
    if (kind(a) == "%") != (kind(b) == "%"):
        a, b = (a, b) if kind(a) == "%" else (b, a)
        return same(a[1], b, prove) or same(("frac", a[1], 100), b, prove)
    a, b = as_interval(a), as_interval(b)
    if COMPOSED & {kind(a), kind(b)}:
        if kind(a) != kind(b) or len(a) != len(b) or kind(a) == "word":
            return False
        start = 2 if kind(a) == "tuple" else 1
        if start == 2 and len(a) == 4 and a[1] != b[1]:  # pairs with different brackets
            return False
        return all(same(x, y, prove) for x, y in zip(a[start:], b[start:], strict=True))
    x, y = rational(a), rational(b)
    return x == y if x is not None and y is not None else prove(a, b)


# ---------------------------------------------------------------------------- 4. the verdict

STAGES = ["empty", "text", "number", "structure", "sympy"]


def judge(prediction: object, truth: object) -> tuple[bool, str]:
    """Return the verdict and the stage that gave it, one of STAGES ("empty": an answer is blank or not a string)."""
    if not isinstance(prediction, str) or not isinstance(truth, str):
        return False, "empty"
    if (x := INTEGER.fullmatch(prediction)) and (y := INTEGER.fullmatch(truth)):  # of any length, so not by int()
        return x[2] == y[2] and (x[1] == y[1] or x[2] == "0"), "text"
    if max(len(prediction), len(truth)) > MAX_CHARS:
        a, b = (re.sub(r"\s+", "", text).strip("$") for text in (prediction, truth))
        x, y = (INTEGER.fullmatch(text.replace("{,}", "").replace(",", "")) for text in (a, b))
        return bool(a) and (a == b or bool(x and y and (x[1], x[2]) == (y[1], y[2]))), "text"
    a, b = (normalise((r"\boxed" in text and extract_answer(text)) or text) for text in (prediction, truth))
    if not a or not b or a == b:
        return bool(a and b), "text" if a and b else "empty"
    if (verdict := same_text(a, b)) is not None:
        return verdict, "text"

    stages, deadline = {"number"}, time.monotonic() + CALL_LIMIT

    def prove(x: Tree, y: Tree) -> bool:
        if mentions((x, y), COMPOSED - {"relation"} | {r"\infty"}):
            return False  # not expressions
        stages.add("sympy")
        return WORKER.ask(x, y, DIGITS + len(a) + len(b), deadline)

    readings = [(merge_thousands(a), merge_thousands(b))]
    if bool(THOUSANDS.fullmatch(a)) != bool(THOUSANDS.fullmatch(b)):
        readings.append((a, b))  # 100,200 may also be a list, if the other answer is one
    try:
        for reading_a, reading_b in readings:
            tree_a, tree_b = parse(reading_a), parse(reading_b)
            if {kind(tree_a), kind(tree_b)} & (COMPOSED | {"pm"}):
                stages.add("structure")
            if same(tree_a, tree_b, prove):
                return True, max(stages, key=STAGES.index)
    except TimeoutError:
        pass
    except (ValueError, RecursionError, ArithmeticError):  # beyond the grammar, such as x\to 3
        return a.replace(" ", "") == b.replace(" ", ""), "text"
    return False, max(stages, key=STAGES.index)


def answers_match(prediction: object, truth: object) -> bool:
    """Tell whether two answers are the same by the conventions above. Never raises; returns within 5 seconds."""
    with contextlib.suppress(*UNSETTLED):  # a safety net: the tests require that judge() itself raises nothing
        return judge(prediction, truth)[0]
    return False


def timeouts() -> int:
    """Count the pairs that this process has given up on: out of time or memory. Their verdict was "different"."""
    return WORKER.timeouts


# ---------------------------------------------------------------------------- 5. the command

EXAMPLES = [
    ("17", "20"), ("0.5", r"\frac{1}{2}"), ("0.333", r"\frac{1}{3}"), (r"50\%", "0.5"), (r"3\frac{1}{2}", "7/2"),
    ("1,000", r"10^{3}"), (r"5\text{ cm}", "5"), ("(1,2)", "(2,1)"), (r"\{1,2\}", "2 or 1"), ("[1,2)", "[1,2]"),
    ("x > 3", r"(3,\infty)"), (r"\pm 2", "2, -2"), ("101_2", "5"), ("b", r"\text{(B)}"), ("(x+1)^2", "x^2+2x+1"),
    (r"2\sqrt{2}", r"\sqrt{8}"), ("x^2", "X^2"), (r"\sin 30^\circ", r"\frac12"), (r"10^{10^{10}}", "1"),
]  # fmt: skip


def main(arguments: list[str]) -> int:
    if len(arguments) == 2:
        verdict, stage = judge(*arguments)
        print(f"{'equal' if verdict else 'different'}  (settled by the {stage} stage)")
        return 0 if verdict else 1
    if arguments:
        print(f'usage: python -m problems.verify ["prediction" "truth"]\n\n{__doc__}')
        return 0 if arguments[0] in ("-h", "--help") else 2
    print(f"{'prediction':20}{'truth':20}{'verdict':12}stage")
    for prediction, truth in EXAMPLES:
        verdict, stage = judge(prediction, truth)
        print(f"{prediction:20}{truth:20}{'equal' if verdict else 'different':12}{stage}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
