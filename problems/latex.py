r"""Parse an answer, in LaTeX or plain mathematics, with a closed grammar.

    normalise(text)   the answer in one spelling: without spaces, fonts, \left, \dfrac, lead-ins ("the answer is") ...
    parse(text)       the tree of a normalised answer; raises ValueError if the grammar does not cover it

A tree is an int, a str (a symbol) or a tuple (operator, *trees), and nothing else: no text is ever evaluated, and a
tree can be sent to another process as JSON. 3\frac{1}{2} is ("+", 3, ("frac", 1, 2)), and 2^{10} - 4! is
("+", ("^", 2, 10), ("*", -1, ("!", 4))). Tables (signs, units) are in notation.json, rewrites in spelling.txt.
Parsing takes time linear in the length of the text, except for nested brackets, whose depth MAX_DEPTH bounds.
Left out: integrals, sums, limits, determinants.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

MAX_DEPTH = 30  # nested brackets, signs and functions; each takes about ten of Python's 1000 stack frames
NOTATION = json.loads((Path(__file__).parent / "notation.json").read_text(encoding="utf-8"))

# ---------------------------------------------------------------------------- 1. one spelling


def read_rewrites() -> list[tuple[str, str, list[Any]]]:
    """Read the sections of spelling.txt: (part, text that the answer must contain, [(pattern, replacement), ...])."""
    sections: list[tuple[str, str, list[Any]]] = []
    for line in (Path(__file__).parent / "spelling.txt").read_text(encoding="utf-8").split("\n"):
        pattern, arrow, replacement = line.partition("   =>   ")
        if arrow:
            words = r"(\\\\text\\{)?\\s*(?<![A-Za-z\\\\])(?:\1)(?![A-Za-z])\\s*(?(1)\\})"
            sections[-1][2].append((re.compile(re.sub(r"^WORDS\((.*)\)$", words, pattern)), replacement))
        elif line[:1] == "[":
            part, _, needed = line[1:-1].partition(": ")
            sections.append((part, needed, []))
    return sections


REWRITES = read_rewrites()
SIGNS = str.maketrans(NOTATION["signs"] | {"$": ""})
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")


def rewritten(text: str, part: str) -> str:
    for name, needed, rewrites in REWRITES:
        if name == part and needed in text:
            for pattern, replacement in rewrites:
                text = pattern.sub(replacement, text)
    return text


@functools.lru_cache(1024)
def normalise(text: str) -> str:
    """Rewrite an answer in one spelling, without fonts, spacing, delimiters and outer braces."""
    text = rewritten(text.replace(r"\$", r"\text{dollars}").translate(SIGNS), "signs")
    has_words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}", text)  # two letters that are no command
    text = rewritten(rewritten(text, "words") if has_words else text, "shapes")
    while True:
        text = text.strip(" ,;:").rstrip(".").strip()
        text = rewritten(text, "beginnings") if has_words else text
        inner = re.fullmatch(r"(?:\\text)?\{((?:[^{}]|\{[^{}]*\})*)\}", text)
        if not inner:
            text = NOTATION["phrases"].get(text.casefold(), text)
            return re.sub(r"(?<!\w) | (?!\w)", "", re.sub(" +", " ", text))
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

GREEK, FUNCTIONS, ALIASES = {*NOTATION["greek"].split()}, {*NOTATION["functions"].split()}, NOTATION["aliases"]
CURRENCIES, WORDS = {*NOTATION["currencies"].split()}, {*NOTATION["words"].split()}
STARTS = GREEK | FUNCTIONS | {*NOTATION["others that start a factor"].split()}
COMMANDS = STARTS | {*NOTATION["other commands"].split()} | {alias[1:] for alias in ALIASES}
NAMES = FUNCTIONS | {*NOTATION["names without a backslash"].split()}
UNITS = {name: ("1", name.removesuffix("s")) for name in NOTATION["counted"].split()}
for what, sizes in NOTATION["units"].items():
    UNITS |= {name: (size, what) for size, names in sizes.items() for name in names.split()}
BARE = {name for name in (*UNITS, *NOTATION["scales"]) if len(name) > 2} | {*NOTATION["bare units"].split()}
TOKEN = re.compile(r"""(?xa)\s*(?:
      (?P<based>\d[\dA-F]*_(?:\{\d+\}|\d+))
    | (?P<number>\d+\.\d+[eE]-\d{1,4}|1[eE]-\d{1,4}|\d+E-\d{1,4}|(?:\d+\.?\d*|\.\d+)(?:[eE]\+?\d{1,4})?)
    | \\text\{(?P<text>[^{}]*)\} | \\(?P<command>[A-Za-z]+)
    | (?P<word>[A-Za-z]{2,}(?![A-Za-z])|[^\x00-\x7f]+)
    | (?P<sign>\*\*|<=|>=|!=|!!?(?!!)|\\[{}]|[-+*/^_=<>()\[\]{}|,:;&%'A-Za-z]))""")


def tokenise(text: str) -> list[str]:
    r"""Split a text into numbers, \commands, "words, letters and signs. Raises ValueError at anything else."""
    tokens, at = list[str](), 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match or not match.lastgroup:
            raise ValueError(f"no token at {text[at : at + 10]!r}")
        group, at, token = match.lastgroup, match.end(), match[match.lastgroup].strip()
        is_unit = token in BARE and tokens[-1:] != [] and tokens[-1][-1:].isdigit()  # without \\text{}, as in 5 cm
        if group in ("text", "word"):
            if token in NAMES and (token not in UNITS or re.match(r"\s*[({\\A-Za-z]", text[at:])):
                token = "\\" + token
            elif len(token) == 1 and token.isascii():  # in \text{}
                token = f'"{token}' if token.casefold() in UNITS else token
            elif group == "text" or len(token) > 4 or token.casefold() in WORDS or not token.isascii() or is_unit:
                token = '"' + token
            else:
                token, at = token[0], at - len(token) + 1
        elif group == "command":
            known = COMMANDS if token in COMMANDS else STARTS  # \secx means \sec x, but \int does not mean \in t
            if not (size := next((n for n in range(len(token), 1, -1) if token[:n] in known), 0)):
                raise ValueError(f"unknown command {token!r}")
            token, at = "\\" + token[:size], at - (len(token) - size)
        tokens.append(ALIASES.get(token, token))
    return tokens


def unit(phrase: str) -> tuple[Fraction, str, str] | None:
    """Return number, size and kind of "million km / h": 1000000, "5/18", "length 1, time -1"; None if it is no unit."""
    number, size, sign, kinds = Fraction(1), Fraction(1), 1, Counter[str]()
    for word, power in re.findall(r"([^\W\d_]+[.']?|\S)\s*(?:\^\s*\{?(-?\d+)\}?)?", phrase):
        word = word if word in UNITS or re.fullmatch("M[a-z]{,2}", word) else word.casefold()  # Mg is not mg
        if word == "/":
            sign = -1
        elif word in NOTATION["scales"]:
            number *= Fraction(NOTATION["scales"][word])
        elif word in UNITS:
            size *= Fraction(UNITS[word][0]) ** (sign * int(power or 1))
            for what in UNITS[word][1].split(","):
                kinds[what] += sign * int(power or 1)
        else:
            return None
    return number, str(size), ", ".join(sorted(f"{kind} {n}" for kind, n in kinds.items() if kind and n))


def chain(name: str) -> Callable[[list[Tree]], Tree]:
    return lambda parts: (name, *parts[::2])


def entries(parts: list[Tree]) -> Tree:
    """Build a list, or, if inequalities must hold at the same time, ("both", ...)."""
    signs = {sign for part in parts[::2] if kind(part) == "relation" for sign in part[2::2]}
    return ("both" if signs & {"<", "<="} and r"\or" not in parts[1::2] else "list", *parts[::2])


def relation(parts: list[Tree]) -> Tree:
    """Build a < b <= c, and turn > and >= round to < and <=."""
    if ">" in parts[1]:
        parts = [part.replace(">", "<") if at % 2 else part for at, part in enumerate(parts)][::-1]
    return ("relation", *parts)


def product(parts: list[Tree]) -> Tree:
    tree = parts[0]
    for sign, factor in zip(parts[1::2], parts[2::2], strict=True):
        if sign == "mixed" and all(isinstance(part, int) for part in factor[1:]) and 0 < factor[1] < factor[2]:
            tree = ("+", tree, factor if tree >= 0 else ("frac", -factor[1], factor[2]))
        else:
            factor = ("frac", 1, factor) if sign == "/" else factor
            tree = (*tree, factor) if kind(tree) == "*" else ("*", tree, factor)
    return tree


def scaled(quantity: Tree, size: str) -> Tree:
    """Return the value of a quantity in a unit of another size."""
    ratio = Fraction(quantity[2]) / Fraction(size)
    return quantity[1] if ratio == 1 else ("*", quantity[1], ("frac", *ratio.as_integer_ratio()))


def measured(build: Callable[[list[Tree]], Tree]) -> Callable[[list[Tree]], Tree]:
    """Have the result carry the unit of the parts: 5 - 3 cm is (5 - 3) cm, and 1 hour 30 minutes is 90 minutes."""

    def build_measured(parts: list[Tree]) -> Tree:
        units = [part for part in parts if kind(part) == "unit"]
        is_run = kind(parts[0]) == "unit" and parts[1] == "" and isinstance(parts[2], int)  # 5 ft 3
        is_sum = (len(units) > 1 or is_run) and build is product
        if len({unit[3] for unit in units}) > 1 or (is_sum and 2 * len(units) - 1 + any(parts[1::2]) != len(parts)):
            raise ValueError("unlike units, or a product of units")
        size = min((unit[2] for unit in units), key=Fraction, default="1")
        values = [scaled(part, size) if kind(part) == "unit" else part for part in parts]
        tree = (chain("+") if is_sum else build)(values)
        return ("unit", tree, size, units[0][3]) if units else tree

    return build_measured


LEVELS: list[tuple[tuple[str, ...], Callable[[list[Tree]], Tree]]] = [  # from loose to tight: signs and what they build
    ((r"\row",), chain("matrix")),
    (("&",), chain("row")),
    ((",", ";", r"\or"), entries),
    ((r"\pmod",), chain("pmod")),
    (("=", "~", "!=", "<", "<=", ">", ">=", r"\in"), relation),
    ((r"\cup",), chain("union")),
    ((r"\setminus",), chain("setminus")),
    ((r"\bmod",), chain("mod")),
    ((":",), lambda parts: ("frac" if len(parts) == 3 else "ratio", *parts[::2])),
    (("+", "-", r"\pm", r"\mp"), measured(chain("+"))),  # the sign is read as part of the next term
    (("*", "/", ""), measured(product)),
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
        self.depth = self.angles = 0  # of brackets; of functions, which take degrees
        self.bars = self.in_set = False  # just inside |; inside \\{

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
            last = self.tokens[self.at - 1]  # "2 3" and "x2" are not products, but n2^n is one
            return last[0] == '"' or not last[-1].isalnum() or (last.isalpha() and self.tokens[self.at + 1] == "^")
        return token.isalpha() or token in ("(", "[", "{") or token[1:] in STARTS or (token == "|" and not self.bars)

    def power(self) -> Tree:
        """Read a primary and what may follow it: powers, factorials, degrees, subscripts, primes, units."""
        tree = self.primary()
        for _ in range(6):
            if sign := self.accept("!", "!!"):
                tree = (sign, tree)
            elif self.accept(r"\degree"):
                tree = ("*", tree, r"\pi", ("frac", 1, 180)) if self.angles else ("unit", tree, "1", "degree 1")
            elif self.accept("^"):
                tree = ("^", tree, self.argument(whole_number=True))
            elif isinstance(tree, str) and self.accept("_"):
                tree = f"{tree}_{self.argument()!r}"
            elif isinstance(tree, str) and self.accept("'"):
                tree += "'"
            elif self.starts_unit() and not self.angles:
                tree = self.with_unit(tree)
            else:
                return tree
        raise ValueError("too many signs after one term")

    def starts_unit(self) -> bool:
        return self.tokens[self.at + (self.next == "/")][:1] == '"'

    def with_unit(self, tree: Tree) -> Tree:
        """Read the unit of a tree. Words that are no unit raise ValueError: they may change the value."""
        phrase = ""
        while self.starts_unit() or self.next == "^":
            token, self.at = self.next, self.at + 1
            phrase += f"^{self.argument()}" if token == "^" else " " + token.strip('"')
        found = unit(phrase)
        if not found or kind(tree) == "unit":
            raise ValueError(f"{phrase!r} is no unit")
        tree = tree if found[0] == 1 else ("*", tree, ("frac", *found[0].as_integer_ratio()))
        return ("unit", tree, *found[1:]) if found[2] else tree

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
        if token[:1].isdigit() or token[:1] == "." or token in CLOSING:
            return self.bracket(token) if token in CLOSING else self.number(token)
        if token[:1] == '"':
            if name in CURRENCIES and (self.starts_factor() or self.next == "-"):
                tree = self.read(len(LEVELS) - 1)
                return tree if kind(tree) == "unit" else ("unit", tree, *UNITS[name][:1], f"{UNITS[name][1]} 1")
            while self.next[:1] == '"':
                name, self.at = f"{name} {self.next[1:]}", self.at + 1
            return name if len(name) == 1 else ("word", name.casefold())
        if token in ("+", "-"):
            tree = self.power()
            if token == "-":
                tree = -tree if isinstance(tree, int) else LEVELS[-1][1]([-1, "*", tree])
            return ("based", -tree[2][1], tree[2][2]) if kind(tree) == "*" and kind(tree[2]) == "based" else tree
        if token in (r"\pm", r"\mp"):
            return ("pm", 1 if token == r"\pm" else -1, self.power())
        if token in NOTATION["called"] and self.next == "(" and (token in "fg" or self.tokens[self.at + 2] == ")"):
            return ("apply", token, self.primary())
        if name in ("frac", "binom"):
            return (name, self.argument(), self.argument())
        if name == "sqrt":
            degree = self.bracket("[") if self.accept("[") else 2
            return ("root", self.argument(whole_number=True), degree)
        if name in FUNCTIONS:
            return self.function(name)
        if name == "cases":
            tree = self.primary()  # rows with a value and a condition each, or a system of equations
            return ("list", *(tree[1:] if kind(tree) == "matrix" else (tree,)))
        if name in ("angle", "triangle"):
            return self.read(len(LEVELS) - 1)
        if name == "emptyset":
            return ("tuple", r"\{") if self.in_set else ("list",)
        if token.isalpha() or name in GREEK or name in ("pi", "infty"):
            return token
        raise ValueError(f"unexpected {token!r}")

    def number(self, token: str) -> Tree:
        if "_" in token:
            digits, base = token.strip("}").replace("{", "").split("_")
            return ("based", int(digits, int(base)), int(base))
        value = Fraction(token)
        if "." in token and self.accept(r"\overline", r"\bar"):  # 0.1\overline{6}
            if not (match := re.fullmatch(r"\{?(\d+)\}?", "".join(self.tokens[self.at : self.at + 3]))):
                raise ValueError("a repeating decimal without digits")
            self.at += 3
            value += Fraction(int(match[1]), 10 ** len(token.partition(".")[2]) * (10 ** len(match[1]) - 1))
        return value.numerator if value.denominator == 1 else ("frac", value.numerator, value.denominator)

    def bracket(self, opening: str) -> Tree:
        outside, self.bars, self.in_set = (self.bars, self.in_set), opening == "|", self.in_set or opening == r"\{"
        tree = ("list",) if self.next in CLOSING[opening] else self.read()
        self.bars, self.in_set = outside
        closing = self.accept(*CLOSING[opening])  # (a, b] is an interval, but (a] is nothing
        if not closing or (opening + closing in ("(]", "[)") and kind(tree) != "list"):
            raise ValueError(f"{opening!r} is not closed")
        if opening == r"\{" and self.in_set:  # a set in a set
            return ("tuple", r"\{", tree)
        if opening in AROUND:
            return (AROUND[opening], *(dict.fromkeys(tree[1:]) if kind(tree) == "list" else (tree,)))
        return ("tuple", opening + closing, *tree[1:]) if kind(tree) == "list" and opening != "{" else tree

    def function(self, name: str) -> Tree:
        if self.next == "=":
            return "\\" + name  # \max = 5
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
        if name in ("gcd", "lcm", "max", "min") and kind(tree[1]) in ("tuple", "list"):
            tree = (name, *tree[1][1 + (kind(tree[1]) == "tuple") :])
        return tree if power == 1 else ("^", tree, power)


@functools.lru_cache(1024)
def parse(text: str) -> Tree:
    """Return the tree of a normalised answer. Raises ValueError, or RecursionError near the interpreter's limit."""
    parser = Parser(text)
    tree = parser.read()
    if parser.next:
        raise ValueError(f"{parser.next!r} is left over")
    return tree
