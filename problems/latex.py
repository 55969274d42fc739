r"""Parse an answer, in LaTeX or plain mathematics, with a closed grammar.

    normalise(text)   the answer in one spelling: without spaces, fonts, \left, \dfrac, \$ ...
    parse(text)       the tree of a normalised answer; raises ValueError if the grammar does not cover it
    rational(tree)    the exact value of a tree, if that is a rational number of moderate size

A tree is an int, a str (a symbol) or a tuple (operator, *trees), and nothing else: no text is ever evaluated, and a
tree can be sent to another process as JSON. Units and degrees are dropped, by the conventions in verify.py.
Parsing takes time linear in the length of the text, except for nested brackets, whose depth MAX_DEPTH bounds.
Run `python -m problems.latex` for examples. Left out: integrals, sums, limits, piecewise functions, \bmod.
"""

import contextlib
import functools
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

MAX_BITS = 20_000  # size of the largest exact number; stops towers of powers such as 9^{9^{9}}
MAX_DEPTH = 30  # nested brackets, signs and functions; each takes about ten of Python's 1000 stack frames

# ---------------------------------------------------------------------------- 1. one spelling

# fmt: off
POWERS = {"hundred": "10^2", "thousand": "10^3", "million": "10^6", "billion": "10^9"}
UNICODE = str.maketrans({
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "√": r"\sqrt ", "°": r"\degree ", "∪": r"\cup ",
    "∈": r"\in ", "±": r"\pm ", "½": r"\frac12 ", "⅓": r"\frac13 ", "⅔": r"\frac23 ", "¼": r"\frac14 ",
    "¾": r"\frac34 ", "²": "^2 ", "³": "^3 ", "’": "'", "，": ",", "（": "(", "）": ")", "∅": r"\emptyset ",
    "\u200b": None} | dict.fromkeys("€£¥¢"))
REWRITES: list[tuple[re.Pattern[str], Any]] = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|pi|text|left|right|cdot|times|infty|pm|cup|end)(?![a-z]))", r"\\"),  # doubled
    (r"\\\\|\\(?=[-\d])", r"\\row "),  # the end of a matrix row; some data sets have lost one of the backslashes
    (r"(?<=\d)(?:,\s*\\!|\{,\}\s*(?:\\!)?)\s*(?=\d{3})", ""),  # 11,\!111 and 2{,}016
    (r"\\!|\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?|\\(?:display|text)style(?![a-z])|\\[()\[\]]|\\?\$", ""),
    (r"\\[,;:> ]|\\q?quad(?![a-z])|\\hspace\*?\{[^{}]*\}|~|\s+", " "),
    (r"\{,\}", ","),
    (r"(?<=\d), +(?=\d{3}(?!\d))", ";"),  # with the space, 100, 200 is a list; 100,200 is a number
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\[dt]binom(?![a-z])", r"\\binom"),
    (r"\\%", "%"),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?", r"\\degree "),
    (r"\\mathbb\s*\{?\s*R\s*\}?|ℝ", r"(-\\infty,\\infty)"),
    (r"\\begin\s*\{[pbB]?matrix\}", "{"),
    (r"(?:\\row)?\s*\\end\s*\{[pbB]?matrix\}", "}"),
    (r"\\(?:math(?:bf|it|cal|sf)|boldsymbol|bm|vec|hat|boxed|fbox|overline\s*(?=\{[A-Z]))\s*\{([^{}]*)\}", r"{\1}"),
    (r"\\(?:text(?:bf|it|rm|sf)?|mathrm|mbox|hbox|operatorname)\s*\{", r"\\text{"),
    (r"(?:[\s,]*(?:\\text)?\{)?[\s,]*(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])[\s,]*\}?", ","),
    (r"(?<=\d)\s*(\\text\{)?\s*(hundred|thousand|million|billion)", lambda m: rf"\cdot {POWERS[m[2]]}{m[1] or ''}"),
    (r"\(?\s*(?:\\p?mod|\\text\{\s*mod\s*\}|(?<=\()mod)\s*(?:\{[^{}]*\}|[\w ]+)\s*\)?$", ""),  # 7 \pmod{12}
    (r"(?<![\d.])(\d+) (\d+) ?/ ?(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 3 1/2
    (r"(?<![\d.])(\d{1,3}(?: \d{3})+)(?![\d.])", lambda match: match[1].replace(" ", "")),  # 10 000
]]
# fmt: on
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")


def normalise(text: str) -> str:
    """Rewrite an answer in one spelling, without fonts, spacing, delimiters and outer braces."""
    text = text.translate(UNICODE)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    while True:
        text = text.strip(" ,;:").rstrip(".").strip()
        inner = re.fullmatch(r"(?:\\text)?\{([^{}]*)\}", text) or re.fullmatch(r"\{((?:[^{}]|\{[^{}]*\})*)\}", text)
        if not inner:
            return re.sub(r"(?<!\w) | (?!\w)", "", text)
        text = inner[1]


def merge_thousands(text: str) -> str:
    """Drop thousands separators: 1,000 -> 1000. In brackets commas separate entries, unless no entry looks like 000."""

    def merge(match: re.Match[str]) -> str:
        before = text[: match.start()]
        inside = sum(map(before.count, ("(", "[", r"\{"))) > sum(map(before.count, (")", "]", r"\}")))
        return match[0] if inside and ",0" not in match[0] else match[0].replace(",", "")

    return THOUSANDS.sub(merge, text)


# ---------------------------------------------------------------------------- 2. from text to a tree

Tree = Any  # int | str (a symbol) | tuple (operator, *trees)

# fmt: off
GREEK = set("alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi varphi omega Delta Omega Phi".split())
FUNCTIONS = set("sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh ln log lg exp".split())
STARTS = GREEK | FUNCTIONS | set("frac sqrt pi infty binom lfloor lceil emptyset angle triangle".split())
ALIASES = {
    r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/", "**": "^", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\ne": "!=", r"\neq": "!=", r"\lt": "<",
    r"\gt": ">", r"\approx": "=", r"\equiv": "=", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\langle": "(", r"\rangle": ")", r"\infinity": r"\infty", r"\inf": r"\infty",
    r"\varnothing": r"\emptyset"}
COMMANDS = STARTS | set("pm mp cup in row overline bar degree rfloor rceil".split()) | {alias[1:] for alias in ALIASES}
UNITS = "cm|mm|km|kg|mg|ml|mL|ft|hrs?|min|mph|cents?|units?|miles?|feet|inch|days?|deg|yes|no|true|false|odd|even|none"
TOKEN = re.compile(rf"""\s*(?:
      (?P<based>\d[\dA-Z]*_(?:\{{\d+\}}|\d+))
    | (?P<number>\d+\.\d+[eE]-\d{{1,4}}|1[eE]-\d{{1,4}}|\d+E-\d{{1,4}}|(?:\d+\.?\d*|\.\d+)(?:[eE]\+?\d{{1,4}})?)
    | \\text\{{(?P<text>[^{{}}]*)\}} | \\(?P<command>[A-Za-z]+)
    | (?P<name>(?:sqrt|pi|infinity|infty|inf|theta|{"|".join(FUNCTIONS)})(?![a-z]))
    | (?P<word>(?:{UNITS}|[A-Za-z]{{5,}})(?![A-Za-z]))
    | (?P<sign>\*\*|<=|>=|!=|\\[{{}}]|[-+*/^_=<>()\[\]{{}}|!,:;&%'A-Za-z]))""", re.X | re.A)
# fmt: on


def tokenise(text: str) -> list[str]:
    r"""Split a text into numbers, \commands, "words, letters and signs. Raises ValueError at anything else."""
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise ValueError(f"no token at {text[at : at + 10]!r}")
        group, at = match.lastgroup or "", match.end()
        token = match[group].strip()
        if group in ("text", "word"):
            token = "\\" + token if token in FUNCTIONS else token if token in ("e", "i") else '"' + token.casefold()
        elif group in ("command", "name"):
            known = COMMANDS if token in COMMANDS else STARTS  # \secx means \sec x, but \int does not mean \in t
            size = next((n for n in range(len(token), 1, -1) if token[:n] in known), 0)
            if not size:
                raise ValueError(f"unknown command {token!r}")
            token, at = "\\" + token[:size], at - (len(token) - size)
        tokens.append(ALIASES.get(token, token))
    return tokens


def chain(name: str) -> Callable[[list[Tree]], Tree]:
    return lambda parts: (name, *parts[::2])


def relation(parts: list[Tree]) -> Tree:
    r"""Build a < b <= c, and turn > and >= round to < and <=. Membership, x \in A, is just A."""
    if r"\in" in parts[1::2]:
        return parts[-1]
    if ">" in parts[1]:
        parts = [part.replace(">", "<") if at % 2 else part for at, part in enumerate(parts)][::-1]
    return ("relation", *parts)


def product(parts: list[Tree]) -> Tree:
    tree = parts[0]
    for sign, factor in zip(parts[1::2], parts[2::2], strict=True):
        if sign == "mixed" and all(isinstance(part, int) for part in factor[1:]) and 0 < factor[1] < factor[2]:
            tree = ("+", tree, factor if tree >= 0 else ("frac", -factor[1], factor[2]))
        else:
            factor = ("^", factor, -1) if sign == "/" else factor
            tree = (*tree, factor) if kind(tree) == "*" else ("*", tree, factor)
    return tree


LEVELS: list[tuple[tuple[str, ...], Callable[[list[Tree]], Tree]]] = [  # from loose to tight: signs and what they build
    ((r"\row",), chain("matrix")),
    (("&",), chain("row")),
    ((",", ";"), chain("list")),
    (("=", "!=", "<", "<=", ">", ">=", r"\in"), relation),
    ((r"\cup",), chain("union")),
    ((":",), lambda parts: ("frac", *parts[::2]) if len(parts) == 3 else ("tuple", "::", *parts[::2])),
    (("+", "-", r"\pm", r"\mp"), chain("+")),  # the sign is read as part of the next term
    (("*", "/", ""), product),
]
CLOSING: dict[str, tuple[str, ...]] = {
    "(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}",), "|": ("|",), r"\lfloor": (r"\rfloor",),
    r"\lceil": (r"\rceil",)}  # fmt: skip
AROUND = {r"\{": "list", "|": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}


def kind(tree: Tree) -> str:
    return tree[0] if isinstance(tree, (tuple, list)) and tree else ""


class Parser:
    """Parse by recursive descent. Every method reads what its name says, or raises ValueError."""

    def __init__(self, text: str):
        self.tokens, self.at = [*tokenise(text), ""], 0
        self.depth = self.bars = self.angles = 0  # of brackets; of |; of functions, which take degrees

    @property
    def next(self) -> str:
        return self.tokens[self.at]

    def accept(self, *tokens: str) -> str:
        """Step over the next token and return it if it is one of these; otherwise return ""."""
        token = self.next if self.next in tokens else ""
        self.at += bool(token)
        return token

    def read(self, level: int = 0) -> Tree:
        """Read operands joined by the signs of one row of LEVELS."""
        if level == len(LEVELS):
            return self.power()
        signs, build = LEVELS[level]
        parts = [self.read(level + 1)]
        while True:
            sign = self.next
            if sign and sign in signs:
                self.at += "+" not in signs
            elif "" in signs and self.starts_factor():
                is_mixed = sign == r"\frac" and self.tokens[self.at - 1].isdigit() and isinstance(parts[-1], int)
                sign = "mixed" if is_mixed and len(parts) == 1 else ""
            else:
                tree = build(parts) if len(parts) > 1 else parts[0]
                return ("%", tree) if "" in signs and self.accept("%") else tree
            parts += [sign, self.read(level + 1)]

    def starts_factor(self) -> bool:
        token = self.next
        if token[:1].isdigit() or token[:1] == ".":
            return not self.tokens[self.at - 1][-1].isalnum()  # "2 3" and "x2" are not products
        return token.isalpha() or token in ("(", "[", "{") or token[1:] in STARTS or (token == "|" and not self.bars)

    def power(self) -> Tree:
        """Read a primary and what may follow it: powers, factorials, degrees, subscripts, primes, units."""
        tree = self.primary()
        for _ in range(6):
            if self.accept("!"):
                tree = ("!", tree)
            elif self.accept(r"\degree"):
                tree = ("*", tree, r"\pi", ("frac", 1, 180)) if self.angles else tree
            elif self.accept("^"):
                tree = ("^", tree, self.argument(whole_number=True))
            elif isinstance(tree, str) and self.accept("_"):
                tree = f"{tree}_{self.argument()!r}"
            elif isinstance(tree, str) and self.accept("'"):
                tree += "'"
            elif self.next[:1] == '"' or (self.next == "/" and self.tokens[self.at + 1][:1] == '"'):
                self.at += 1 + (self.next == "/")
                if self.accept("^"):
                    self.argument()
            else:
                return tree
        raise ValueError("too many signs after one term")

    def argument(self, whole_number: bool = False) -> Tree:
        r"""Read {...} or one token. TeX takes one digit, as in \frac12, but 2^10 and \sqrt12 mean the whole number."""
        token = self.next
        if not whole_number and token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return int(token[0])
        return self.primary()

    def primary(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        token, self.at = self.next, self.at + 1
        tree = self.after(token)
        self.depth -= 1
        return tree

    def after(self, token: str) -> Tree:
        name = token[1:]
        if token[:1].isdigit() or token[:1] == ".":
            return self.number(token)
        if token in CLOSING:
            return self.bracket(token)
        if token[:1] == '"':
            while self.next[:1] == '"':
                name, self.at = f"{name} {self.next[1:]}", self.at + 1
            return ("word", name)
        if token in ("+", "-"):
            tree = self.power()
            return tree if token == "+" else -tree if isinstance(tree, int) else ("*", -1, tree)
        if token in (r"\pm", r"\mp"):
            return ("pm", 1 if token == r"\pm" else -1, self.power())
        if token in ("f", "g") and self.next == "(":
            return ("apply", token, self.primary())
        if name in ("frac", "binom"):
            return (name, self.argument(), self.argument())
        if name == "sqrt":
            degree = self.bracket("[") if self.accept("[") else 2
            return ("root", self.argument(whole_number=True), degree)
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("angle", "triangle"):
            return self.read(len(LEVELS) - 1)
        if name == "emptyset":
            return ("list",)
        if token.isalpha() or name in GREEK or name in ("pi", "infty"):
            return token
        raise ValueError(f"unexpected {token!r}")

    def number(self, token: str) -> Tree:
        if "_" in token:
            digits, _, base = token.partition("_")
            return int(digits, int(base.strip("{}")))
        value = Fraction(token)
        if "." in token and self.accept(r"\overline", r"\bar"):  # 0.1\overline{6}
            match = re.fullmatch(r"\{?(\d+)\}?", "".join(self.tokens[self.at : self.at + 3]))
            if not match:
                raise ValueError("a repeating decimal without digits")
            self.at += 3
            value += Fraction(int(match[1]), 10 ** len(token.partition(".")[2]) * (10 ** len(match[1]) - 1))
        return value.numerator if value.denominator == 1 else ("frac", value.numerator, value.denominator)

    def bracket(self, opening: str) -> Tree:
        if self.accept(*CLOSING[opening]):
            return ("list",)
        bars, self.bars = self.bars, opening == "|"
        tree = self.read()
        self.bars = bars
        closing = self.accept(*CLOSING[opening])
        if not closing:
            raise ValueError(f"{opening!r} is not closed")
        if opening in AROUND:
            return (AROUND[opening], *(dict.fromkeys(tree[1:]) if kind(tree) == "list" else (tree,)))
        return ("tuple", opening + closing, *tree[1:]) if kind(tree) == "list" and opening != "{" else tree

    def function(self, name: str) -> Tree:
        base = (self.argument(),) if name == "log" and self.accept("_") else ()
        power = self.argument(whole_number=True) if self.accept("^") else 1
        self.angles += 1
        parts = [self.primary() if self.next in ("(", "[", "{") else self.power()]
        while self.tokens[self.at - 1] not in (")", "]") and self.starts_factor() and self.next[1:] not in FUNCTIONS:
            parts += ["", self.power()]  # \sin 2x
        self.angles -= 1
        if power == -1 and "arc" + name in FUNCTIONS:
            return ("arc" + name, product(parts))
        tree = (name, product(parts), *base)
        return tree if power == 1 else ("^", tree, power)


def parse(text: str) -> Tree:
    """Return the tree of a normalised answer. Raises ValueError, or RecursionError near the interpreter's limit."""
    parser = Parser(text)
    tree = parser.read()
    if parser.next:
        raise ValueError(f"{parser.next!r} is left over")
    return tree


# ---------------------------------------------------------------------------- 3. the value of a tree


def evaluate(tree: Tree, leaf: Callable[[Any], Any], table: dict[str, Callable[..., Any]]) -> Any:
    """Evaluate a tree: `leaf` gives the value of a number or symbol, `table` applies an operator (or KeyError)."""
    if isinstance(tree, (tuple, list)):
        return table[tree[0]](*[evaluate(part, leaf, table) for part in tree[1:]])
    return leaf(tree)


def bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise OverflowError("too large for an exact number")
    return value


def whole(value: Fraction, largest: float = 1000) -> int:
    if value.denominator != 1 or not 0 <= abs(value) <= largest:
        raise OverflowError("not a whole number, or too large")
    return int(value)


EXACT: dict[str, Callable[..., Fraction]] = {
    "+": lambda *terms: functools.reduce(lambda x, y: bounded(x + y), terms),
    "*": lambda *factors: functools.reduce(lambda x, y: bounded(x * y), factors),
    "frac": operator.truediv,
    "^": lambda x, n: x ** whole(n, MAX_BITS / (x.numerator.bit_length() + x.denominator.bit_length())),
    "%": lambda x: x / 100,
    "!": lambda n: Fraction(math.factorial(whole(n))),
    "binom": lambda n, k: Fraction(math.comb(whole(n), whole(k))),
}


def rational(tree: Tree) -> Fraction | None:
    """Return the exact value of a tree; None if it has roots or symbols, or needs more than MAX_BITS."""
    with contextlib.suppress(KeyError, ArithmeticError, ValueError, TypeError):
        return evaluate(tree, lambda leaf: Fraction(leaf) if isinstance(leaf, int) else {}[leaf], EXACT)
    return None


def mentions(tree: Tree, names: set[str]) -> bool:
    """Tell whether any of these symbols or operators occurs in a tree."""
    return any(mentions(part, names) for part in tree) if isinstance(tree, (tuple, list)) else tree in names


def main() -> None:
    for text in (r"\dfrac12", r"50\%", r"3\frac{1}{2}", r"2^{10} - 4!", r"$x\in\left[0,\dfrac12\right)$", r"\sqrt{2}x"):
        tree = parse(normalise(text))
        print(f"{text:<32}{tree!s:<46}{rational(tree) or 'no rational number'}")


if __name__ == "__main__":
    main()
