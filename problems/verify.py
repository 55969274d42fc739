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

The conventions (percent, units, intervals, base n ...) are in docs/verifier.md. Beyond MAX_CHARS characters, or
latex.MAX_DEPTH brackets, only text and integers are compared. An empty answer equals nothing, not even itself.
"""

import contextlib
import itertools
import re
import sys
import time
from collections.abc import Callable

from problems import latex
from problems.latex import Tree, kind, normalise
from problems.worker import UNSETTLED, WORKER, alternatives, is_name, mentions, rational, renamed, symbols

MAX_CHARS = 2000  # longest answer that is parsed; shorter than the 4300 digits at which Python's int() refuses
CALL_LIMIT = 4.0  # seconds for one call of answers_match, including the start of the worker
DIGITS = 100  # that must agree before two values are believed equal, in addition to the length of the two answers

# ---------------------------------------------------------------------------- 1. the answer in a response

BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])(?:(\s*\{)|\s+([^\s{}$]+))|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
JOINT = re.compile(r"(?:[\s$,;&]|\\text\{|\\[()\[\] ,;]|\\q?quad|\}|\b(?:and|or)\b)*")  # between boxes


def extract_answer(text: object) -> str | None:
    r"""Return the content of the last complete \boxed{...} or \fbox{...}, or the word after a bare `\boxed 5`.

    Boxes that the text joins by commas, "and" or "or" are one answer: \boxed{2} and \boxed{3} is "2,3". Braces may
    nest. Only text after the last </think> counts, if there is one. Returns None if there is no box.
    >>> extract_answer(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    if not isinstance(text, str):
        return None
    text = text.rpartition("</think>")[2]
    boxes: dict[str, None] = {}  # the last box, and those before it that the text joins to it
    last_start = last_end = -1
    open_braces: list[tuple[int, int]] = []  # (start of the box, or -1 for any other brace; start of its content)
    for match in BOX_OR_BRACE.finditer(text):  # one pass, so the time is linear in the length
        if match[1] or match[0] == "{":
            open_braces.append((match.start() if match[1] else -1, match.end()))
            continue
        if match[2]:
            start, content = match.start(), match[2].rstrip(".,;:")
        elif match[0] == "}" and open_braces:
            start, begin = open_braces.pop()
            content = text[begin : match.start()].strip()
        else:
            continue
        if start > last_start:
            if not (boxes and JOINT.fullmatch(text, last_end, start)):
                boxes = {}
            boxes[content] = None
            last_start, last_end = start, match.end()
    return ",".join(boxes) if boxes else None


# ---------------------------------------------------------------------------- 2. words, choices, times

INTEGER = re.compile(r"\s*(?:\+|(-))?0*([0-9]+)\s*")
CHOICE = re.compile(r"\(?([A-Ha-df-h]|(?<=\()e)\)?[.:]?")
CHOICE_WITH_TEXT = re.compile(r"(?:\\text\{)?(?:\(([A-H])\)|([A-H])[.:)] ?)\}?(?!.*(?<![A-Za-z])[A-H](?![A-Za-z])).+")
TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)(?:\\text\{| )*([ap])?\.?m?\.?\}?", re.I)
WORDS = re.compile(r"[A-Za-z][A-Za-z .'-]*")
CAPITALS = re.compile(r"[A-Z]{2,}")
NAME = r"(?<=angle[ {])(?:[A-Z](?:_\{?\d\}?|')* ?){2,}|(?:[A-Z]'){2,}|(?<![A-Za-z\\])[A-Z]{2,4}(?![A-Za-z])"
NAMES = re.compile(rf"\\text\{{[^{{}}]*\}}|({NAME})")


def same_text(a: str, b: str) -> bool | None:
    """Compare two normalised answers that are words, choices or times of day; None if they are something else."""
    if WORDS.fullmatch(a) and WORDS.fullmatch(b):
        a, b = (re.sub(r"^(?:an?|the) (?=[a-z]{3})", "", text, flags=re.I) for text in (a, b))
        names = CAPITALS.fullmatch(a), CAPITALS.fullmatch(b)
        if a.casefold() in latex.WORDS or (len(a) > 3 and not any(names)):  # in any case, but ABCD is not abcd
            return a.casefold() == b.casefold()
        if any(names):
            return a == b
    x, y = CHOICE.fullmatch(a), CHOICE.fullmatch(b)
    if (x := x or (y and CHOICE_WITH_TEXT.fullmatch(a))) and (y := y or CHOICE_WITH_TEXT.fullmatch(b)):
        return x[x.lastindex or 0].upper() == y[y.lastindex or 0].upper()
    if (x := TIME.fullmatch(a)) and (y := TIME.fullmatch(b)):
        is_same_half = not (x[3] and y[3]) or x[3].lower() == y[3].lower()  # a.m. or p.m., if both say which
        return is_same_half and int(x[1]) == int(y[1]) and x[2] == y[2]
    return None


def with_names(text: str) -> str:
    r"""Turn names in capitals into symbols: 2AB -> 2K_{16706}, so that 2BA differs, and AB+CD from CD+BA."""

    def symbol(match: re.Match[str]) -> str:
        return f"K_{{{int.from_bytes(re.sub('[ {}]', '', match[1]).encode(), 'big')}}}" if match[1] else match[0]

    return NAMES.sub(symbol, text) if re.search("[A-Z]['_ ]?[^a-z]", text) else text


# ---------------------------------------------------------------------------- 3. what an answer says, without its form

Prover = Callable[[Tree, Tree], bool]
COMPOSED = set("tuple union matrix row word list relation both ratio unit pmod setminus".split())
REALS = ("tuple", "()", ("*", -1, r"\infty"), r"\infty")


def is_quantity(tree: Tree) -> bool:
    r"""Tell whether a tree before "= 5" asks for a value: m+n, |AB|, \sin A. But x+y=5 and n^2=4 are equations."""
    letters = symbols(tree)
    if any(letter[0] in "xyztXYZ" for letter in letters):
        return False
    if len(letters) < 2:
        return all(letter[0].isupper() or letter[0] == "\\" for letter in letters) and kind(tree) not in ("*", "+", "^")
    is_sum = kind(tree) == "+" and all(is_name(term[-1] if kind(term) == "*" else term) for term in tree[1:])
    return is_sum or all(letter[0].isupper() or letter[0] == "\\" for letter in letters)


def shorten(tree: Tree, prove: Prover) -> Tree:
    r"""Drop right computations and approximations: x = 2+3 = 5 -> x = 5; \sqrt2 \approx 1.41 -> \sqrt2."""
    if kind(tree) != "relation" or not set(tree[2::2]) <= {"=", "~"}:
        return tree
    parts, signs = tree[1::2], tree[2::2]
    exact = next((at for at, sign in enumerate(signs) if sign == "~" and not is_name(parts[at])), len(signs))
    parts = parts[: exact + 1]
    values = [part for part in parts if not symbols(part)]
    if any(map(is_name, parts[1:-1])) or not all(same(values[0], value, prove) for value in values[1:]):
        return tree
    return parts[-1] if len(parts) in (1, len(values)) else ("relation", parts[0], "=", parts[-1])


def nameless(tree: Tree) -> Tree:
    """Drop the name of an answer: x = 5 -> 5; 5 = x -> 5; a = b = 5 -> 5. Other trees stay as they are."""
    if kind(tree) == "pmod":
        return ("pmod", nameless(tree[1]), tree[2])
    if kind(tree) == "relation" and set(tree[2::2]) <= {"=", r"\in"}:
        *names, value = tree[1::2]
        if all(map(is_name, names)) or (len(names) == 1 and is_quantity(names[0]) and not symbols(value)):
            return value
        if len(names) == 1 and is_name(value):
            return names[0]
    return tree


def by_name(tree: Tree) -> tuple[list[str], Tree]:
    """Return names in alphabetical order and their values: y=5, x=4 -> (4,5); p=5,q=2;p=7,q=2 -> (5,2),(7,2)."""
    entries = tree[1:] if kind(tree) == "list" else ()
    relations = [part for part in entries if kind(part) == "relation"]
    names = [str(part[1]).strip("\\") for part in relations if part[2:3] == ("=",) and is_name(part[1])]
    distinct = list(dict.fromkeys(names))
    is_repeated = names == distinct * (len(names) // max(1, len(distinct))) and len(names) == len(entries)
    if not is_repeated or len({name.partition("_")[0] for name in names}) < 2:  # x_1 = 1, x_2 = 2 has no order
        return [], tree
    columns = sorted((name, [part[-1] for part in relations[at :: len(distinct)]]) for at, name in enumerate(distinct))
    tuples = [("tuple", "()", *row) for row in zip(*(values for _, values in columns), strict=True)]
    return sorted(distinct), tuples[0] if len(tuples) == 1 else ("list", *tuples)


def bound_variable(tree: Tree) -> tuple[Tree, str]:
    r"""Return a tree and the variable whose name does not matter in it, or "": f(x) = 2x; k\pi, k \in \mathbb{Z}."""
    if kind(tree) == "relation" and kind(tree[1]) == "apply" and isinstance(tree[1][2], str):
        return tree, tree[1][2]
    for part in tree[1:] if kind(tree) == "list" else ():
        if kind(part) == "relation" and part[2:] == (r"\in", r"\integers") and isinstance(part[1], str):
            others = ("list", *(other for other in tree[1:] if other != part))
            if part[1] in symbols(others):
                return others[1] if len(others) == 2 else others, part[1]
    return tree, ""


def as_interval(tree: Tree) -> Tree:
    r"""Rewrite inequalities as intervals: x > 3 -> (3,\infty); 1 < x <= 2 -> (1,2]; x != 1 and R - {1} as a union."""
    if kind(tree) == "relation" and tree[2] == "!=" and isinstance(tree[1], str):
        tree = ("setminus", REALS, tree[3])
    if kind(tree) == "setminus" and tree[1] == REALS:
        without = tree[2][1:] if kind(tree[2]) == "list" else tree[2:]
        if without and all(rational(number) is not None for number in without):
            ends = [REALS[2], *sorted(without, key=lambda number: rational(number) or 0), REALS[3]]
            return ("union", *(("tuple", "()", *pair) for pair in itertools.pairwise(ends)))
    if kind(tree) != "relation" or not set(tree[2::2]) <= {"<", "<="}:
        return tree
    parts = tree[1:]
    if len(parts) == 3:  # x < 3, or 3 < x
        parts = (REALS[2], "<", *parts) if isinstance(parts[0], str) else (*parts, "<", r"\infty")
    if len(parts) != 5 or not isinstance(parts[2], str):
        return tree
    return ("tuple", ("(" if parts[1] == "<" else "[") + (")" if parts[3] == "<" else "]"), parts[0], parts[4])


# ---------------------------------------------------------------------------- 4. the same answer


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


def same_remainder(a: Tree, b: Tree, prove: Prover) -> bool:
    r"""Compare answers of which one at least names a modulus: -1 \pmod 7 is 6 \pmod 7, 6 and -1, but not 6 \pmod 5."""
    (x, m), (y, n) = (tree[1:] if kind(tree) in ("mod", "pmod") else (tree, None) for tree in (a, b))
    if m is not None is not n and not same(m, n, prove):
        return False
    remainders = {rational(("mod", value, n if m is None else m)) for value in (x, y)}
    is_bare_remainder = all(rational(value) in remainders for value, modulus in ((x, m), (y, n)) if modulus is None)
    return same(x, y, prove) or (len(remainders) == 1 and remainders != {None} and is_bare_remainder)


def same_composed(a: Tree, b: Tree, prove: Prover) -> bool:
    """Compare tuples, intervals, matrices, ratios and words entry by entry."""
    if {kind(a), kind(b)} in ({"matrix", "tuple"}, {"row", "tuple"}):  # a vector
        a, b = (("tuple", "()", *tree[1:]) if kind(tree) in ("matrix", "row") else tree for tree in (a, b))
    if kind(a) != kind(b) or len(a) != len(b) or kind(a) in ("word", "unit"):
        return False
    if kind(a) == "both":
        return same_unordered(list(a[1:]), list(b[1:]), prove)
    if kind(a) == "ratio" and 0 not in (rational(a[1]), rational(b[1])):
        a, b = (("tuple", "::", *(("frac", part, tree[1]) for part in tree[1:])) for tree in (a, b))
    start = 2 if kind(a) == "tuple" else 1
    if start == 2 and len(a) == 4 and a[1] != b[1]:  # pairs with different brackets
        return False
    return all(same(x, y, prove) for x, y in zip(a[start:], b[start:], strict=True))


def same_relation(a: Tree, b: Tree, prove: Prover) -> bool:
    """Compare equations, inequalities and memberships: side by side if they have more than two, or composed ones."""
    if a[2::2] != b[2::2]:
        return False
    if a[1] == b[1] and kind(a[1]) == "apply":
        return same(a[3], b[3], prove)
    if len(a) > 4 or any(kind(part) in COMPOSED for part in a[1::2] + b[1::2]) or a[2] == r"\in":
        return len(a) == len(b) and all(same(x, y, prove) for x, y in zip(a[1::2], b[1::2], strict=True))
    return prove(a, b)


def same(a: Tree, b: Tree, prove: Prover) -> bool:
    """Tell whether two trees are the same answer. `prove` decides about expressions and equations."""
    if a == b:
        return True
    (a, name), (b, other) = bound_variable(a), bound_variable(b)
    if name and other and name not in symbols(b):
        b = renamed(b, other, name)
    a, b = shorten(a, prove), shorten(b, prove)
    if kind(a) == kind(b) == "relation" and (a[2] == r"\in") == (b[2] == r"\in"):
        return same_relation(a, b, prove)
    (names, a), (others, b) = by_name(a), by_name(b)
    if names and others and names != others:
        return False
    if bool(names) != bool(others) and {kind(a), kind(b)} == {"list", "tuple"}:  # values in the order of the names
        a, b = (("tuple", "()", *tree[1:]) if kind(tree) == "list" else tree for tree in (a, b))
    variables = [tree[1][1] for tree in (a, b) if kind(tree) == "pmod" and kind(tree[1]) == "relation"]
    if len(variables) == 2 and variables[0] != variables[1]:
        return False
    a, b = nameless(a), nameless(b)
    kinds = kind(a), kind(b)
    if "pmod" in kinds or kinds == ("mod", "mod"):
        return same_remainder(a, b, prove)
    many_a, many_b = alternatives(a), alternatives(b)
    if "list" in kinds or len(many_a) + len(many_b) > 2 or kinds == ("union", "union"):
        if "union" in kinds:  # may equal "x < 1 or x > 3"
            parts = (m[0][1:] if m and kind(m[0]) == "union" else m for m in (many_a, many_b))
            many_a, many_b = (list(map(as_interval, part)) for part in parts)
        if any(kind(tree) != "relation" for tree in many_a + many_b):
            many_a, many_b = list(map(nameless, many_a)), list(map(nameless, many_b))
        return same_unordered(many_a, many_b, prove)
    if kinds.count("%") == 1:
        a, b = (a, b) if kind(a) == "%" else (b, a)
        return same(a[1], b, prove) or same(("frac", a[1], 100), b, prove)
    if "unit" in kinds:  # which does not count if only one has it
        if kinds == ("unit", "unit"):
            if {a[3], b[3]} == {"degree 1", "radian 1"}:
                a, b = (("*", tree[1], r"\pi", ("frac", 1, 180)) if tree[3][0] == "d" else tree[1] for tree in (a, b))
                return same(a, b, prove)
            return a[3] == b[3] and same(latex.scaled(a, "1"), latex.scaled(b, "1"), prove)
        return same(a[1], b, prove) if kind(a) == "unit" else same(a, b[1], prove)
    if "based" in kinds:  # 52_8 is 52, but neither 42 nor 46_9
        number, (_, value, base) = (b, a) if kind(a) == "based" else (a, b)
        with contextlib.suppress(ValueError):  # no such digit in this base
            return a == b or (isinstance(number, int) and int(str(number), base) == value)
        return False
    a, b = as_interval(a), as_interval(b)
    if COMPOSED & {kind(a), kind(b)}:
        return same_composed(a, b, prove)
    x, y = rational(a), rational(b)
    return x == y if x is not None and y is not None else prove(a, b)


# ---------------------------------------------------------------------------- 5. the verdict

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
    a, b = sorted(normalise((r"\boxed" in text and extract_answer(text)) or text) for text in (prediction, truth))
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

    readings = [(latex.merge_thousands(a), latex.merge_thousands(b))]
    if bool(latex.THOUSANDS.fullmatch(a)) != bool(latex.THOUSANDS.fullmatch(b)):
        readings.append((a, b))  # 100,200 may also be a list, if the other answer is one
    try:
        for texts in readings:
            named = tuple(map(with_names, texts))  # if both have names, they are compared as names and as products
            pairs = [named, texts] if named[0] != texts[0] and named[1] != texts[1] else [texts]
            trees = [tuple(map(latex.parse, pair)) for pair in pairs]
            if {kind(trees[0][0]), kind(trees[0][1])} & (COMPOSED | {"pm"}):
                stages.add("structure")
            if all(same(x, y, prove) for x, y in trees):
                return True, max(stages, key=STAGES.index)
    except TimeoutError:
        pass
    except (ValueError, RecursionError, ArithmeticError):  # beyond the grammar, such as x\to 3
        return False, "text"
    return False, max(stages, key=STAGES.index)


def answers_match(prediction: object, truth: object) -> bool:
    """Tell whether two answers are the same (see docs/verifier.md). Never raises; returns within 5 seconds."""
    with contextlib.suppress(*UNSETTLED):  # a safety net: the tests require that judge() itself raises nothing
        return judge(prediction, truth)[0]
    return False


def timeouts() -> int:
    """Count the pairs that this process has given up on: out of time or memory. Their verdict was "different"."""
    return WORKER.timeouts


# ---------------------------------------------------------------------------- 6. the command

EXAMPLES = [
    ("17", "20"), ("0.5", r"\frac{1}{2}"), ("0.333", r"\frac{1}{3}"), (r"50\%", "0.5"), (r"3\frac{1}{2}", "7/2"),
    ("1,000", r"10^{3}"), (r"5\text{ cm}", "5"), ("(1,2)", "(2,1)"), (r"\{1,2\}", "2 or 1"), ("[1,2)", "[1,2]"),
    ("x > 3", r"(3,\infty)"), (r"\pm 2", "2, -2"), ("52_8", "42"), ("b", r"\text{(B)}"), ("(x+1)^2", "x^2+2x+1"),
    (r"2\sqrt{2}", r"\sqrt{8}"), ("x^2", "X^2"), (r"\sin 30^\circ", r"\frac12"), (r"10^{10^{10}}", "1"),
]  # fmt: skip


def main(arguments: list[str]) -> int:
    if len(arguments) not in (0, 2):
        print(f'usage: python -m problems.verify ["prediction" "truth"]\n\n{__doc__}')
        return 0 if arguments[0] in ("-h", "--help") else 2
    verdict = True
    print(f"{'prediction':20}{'truth':20}{'verdict':12}stage")
    for prediction, truth in [arguments] if arguments else EXAMPLES:
        verdict, stage = judge(prediction, truth)
        print(f"{prediction:20}{truth:20}{'equal' if verdict else 'different':12}{stage}")
    return int(len(arguments) == 2 and not verdict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
