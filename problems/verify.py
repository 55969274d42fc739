r"""Are two answers mathematically the same?

    extract_answer(text)              what the last \boxed{...} of a response holds
    answers_match(prediction, truth)  True or False; never raises, returns within CALL_LIMIT seconds
    timeouts()                        how many pairs ran out of time so far (they count as different)

    python verify.py                        a worked example table
    python verify.py "prediction" "truth"   one verdict, and the stage that gave it

Stages, cheap before dear; the first that can decide does:
  text       the same after normalising spaces, fonts, \left, \dfrac, currency ...; integers; words, choices, times
  number     both are rational numbers, compared exactly (0.333 is not 1/3)
  structure  tuples, intervals, matrices entry by entry; sets and lists in any order; equations, inequalities
  sympy      expressions: told apart, or found equal, in a worker process that is killed when it is too slow

Nothing evaluates text: latex.py's closed grammar makes trees, and only trees reach sympy; what it does not cover is
compared as text. Left out: sympy's own parsers, which call `eval`, and time limits by signals (main thread only).

Conventions
  percent    50\% equals 50 and 0.5 (graders accept both); 50\% and 0.5\% differ
  units      dropped, as are currency and degrees (not inside sin, cos ...): 5\text{ cm} = 5 cm = \$5.00 = 5; 5m is not
  names      x = 5 and f(x) = 5 equal 5, x \in [1,3] equals [1,3], 7 \pmod{12} equals 7; x = 5 is not y = 5
  equations  equal up to a constant factor: 2x = 4y and x - 2y = 0. x > 3 equals 3 < x and (3,\infty)
  lists      1,2 and \{2,1\} and "2 or 1" and "x=1, x=2" are one unordered answer, and \pm 2 is 2,-2. (1,2) is ordered
             and its brackets count: it is neither 1,2 nor [1,2]; with three entries or more they do not.
             1,000 is a thousand, but (1,234) is a pair
  base n     101_2 is the number five: it equals 5 and 12_3, not 101
  ratios     1:4 equals 2:8 and 1/4; two times of day (3:30) are compared digit by digit
  case       ignored in words (Monday) and in choices (a letter A-H by itself, (b), \text{(B)}), never in variables
  numbers    3\frac{1}{2} and 3 1/2 are mixed, 2\frac{3}{2} is a product, 1/2x is (1/2)x; \log is to base 10
  functions  of real variables, compared where both sides are real; i and e are the constants
  empty      an empty answer, or one that is not a string, equals nothing, itself included
  long       beyond MAX_CHARS characters, or latex.MAX_DEPTH brackets, only the text, or the integer, is compared
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import operator
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Any

from problems.latex import THOUSANDS, Tree, evaluate, kind, mentions, merge_thousands, normalise, parse, rational

ROOT = Path(__file__).parent.parent
MAX_CHARS = 2000  # longest answer that is parsed; below the 4300 digits at which Python's int() refuses
CALL_LIMIT = 4.0  # seconds, one call of answers_match, the worker's start included
PAIR_LIMIT = 2.0  # seconds, one question to a running worker
DIGITS = 100  # to which values must agree to be believed equal, beyond the length of the two answers
WORKER_BYTES = 1 << 30  # address space of the worker, where the OS can limit it

# ---------------------------------------------------------------------------- 1. the answer in a response

BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])(?:(\s*\{)|\s+([^\s{}$]+))|\\\\(?!boxed|fbox)|\\[{}]|[{}]")


def extract_answer(text: object) -> str | None:
    r"""Content of the last complete \boxed{...} or \fbox{...} (braces nest), or the word after a bare `\boxed 5`.

    Only what follows the last </think> counts, if there is one. None without a box. One pass, linear in the length.
    >>> extract_answer(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    if not isinstance(text, str):
        return None
    text = text.rpartition("</think>")[2]
    best_start, best = -1, None
    open_braces: list[tuple[int, int]] = []  # (start of the box, or -1 for any other brace; start of its content)
    for match in BOX_OR_BRACE.finditer(text):
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
    """Words, choices and times of day, normalised; None where it is not for this stage to say."""
    if WORDS.fullmatch(a) and WORDS.fullmatch(b):
        is_word = len(a) > 3 or a.lower() in ("yes", "no", "odd") or (len(a) == 3 and a[1:] == b[1:])  # no variables
        if is_word and a.casefold() == b.casefold():
            return True
        if re.search(r"[A-Za-z]{5}", f"{a} {b}"):
            return False
    x, y = CHOICE.fullmatch(a), CHOICE.fullmatch(b)
    if (x := x or (y and CHOICE_WITH_TEXT.fullmatch(a))) and (y := y or CHOICE_WITH_TEXT.fullmatch(b)):
        return x[x.lastindex or 0].upper() == y[y.lastindex or 0].upper()
    if (x := TIME.fullmatch(a)) and (y := TIME.fullmatch(b)):
        is_same_half = not (x[3] and y[3]) or x[3].lower() == y[3].lower()  # a.m. or p.m., where both say it
        return is_same_half and int(x[1]) == int(y[1]) and x[2] == y[2]
    return None


# ---------------------------------------------------------------------------- 3. structures

Prover = Callable[[Tree, Tree], bool]
COMPOSED = {"tuple", "union", "matrix", "row", "word", "list", "relation"}


def with_sign(tree: Tree, sign: int) -> Tree:
    r"""The tree with every \pm read as + (sign 1) or as - (sign -1)."""
    if not isinstance(tree, tuple):
        return tree
    return ("*", sign * tree[1], tree[2]) if tree[0] == "pm" else tuple(with_sign(part, sign) for part in tree)


def alternatives(tree: Tree) -> list[Tree]:
    """The entries of an unordered answer, a list or a plus-minus; of any other the tree itself."""
    if kind(tree) == "list":
        return [entry for part in tree[1:] for entry in alternatives(part)]
    plus = with_sign(tree, 1)
    return [tree] if plus == tree else [plus, with_sign(tree, -1)]


def is_name(tree: Tree) -> bool:
    """x, AB, f(x), P(x), (x, y), words: what may stand before = without being part of the answer."""
    if kind(tree) == "^":  # f^{-1}
        return tree[2] == -1 and is_name(tree[1])
    is_part = kind(tree) in ("*", "tuple") and all(map(is_name, tree[1:]))
    return isinstance(tree, str) or kind(tree) in ("word", "apply") or is_part


def nameless(tree: Tree) -> Tree:
    """x = 5 -> 5; 5 = x -> 5; a = b = 5 -> 5; anything else as it is."""
    if kind(tree) == "relation" and set(tree[2::2]) == {"="}:
        if is_name(tree[1]):
            return tree[-1]
        if len(tree) == 4 and is_name(tree[3]):
            return tree[1]
    return tree


def as_interval(tree: Tree) -> Tree:
    r"""x > 3 -> (3,\infty); 1 < x <= 2 -> (1,2]; anything else as it is."""
    if kind(tree) != "relation" or not set(tree[2::2]) <= {"<", "<="}:
        return tree
    parts = tree[1:]
    if len(parts) == 3:  # 3 < x, or x < 3
        parts = (("*", -1, r"\infty"), "<", *parts) if isinstance(parts[0], str) else (*parts, "<", r"\infty")
    if len(parts) != 5 or not isinstance(parts[2], str):
        return tree
    return ("tuple", ("(" if parts[1] == "<" else "[") + (")" if parts[3] == "<" else "]"), parts[0], parts[4])


def same_unordered(a: list[Tree], b: list[Tree], prove: Prover) -> bool:
    """Has every entry a partner of its own? Equal values pair up first, which leaves few for the slow way."""
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
    """Are two trees the same answer? `prove` decides about expressions and equations."""
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
        if "union" in (kind(a), kind(b)):  # against "x < 1 or x > 3"
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
        if start == 2 and len(a) == 4 and a[1] != b[1]:
            return False
        return all(same(x, y, prove) for x, y in zip(a[start:], b[start:], strict=True))
    x, y = rational(a), rational(b)
    return x == y if x is not None and y is not None else prove(a, b)


# ---------------------------------------------------------------------------- 4. sympy, in a process that can be killed


def sympy_table(sympy: Any, is_real: bool) -> dict[str, Callable[..., Any]]:
    """What each operator of a tree means to sympy; ValueError for what is not real, or would grow without bound."""

    def real(value: Any, *negative: Any) -> Any:
        if is_real and any(part.is_negative for part in negative):
            raise ValueError("not real")
        return value

    def power(base: Any, exponent: Any) -> Any:
        bits = max(abs(base.p).bit_length(), base.q.bit_length()) if base.is_Rational else 1
        if exponent.is_Rational and bits * abs(exponent) > 1_000_000:
            raise ValueError("a tower of powers")
        return base**exponent if exponent.is_integer else real(base**exponent, base)

    def root(base: Any, degree: Any) -> Any:  # the real one: the cube root of -8 is -2
        is_odd = degree.is_Integer and degree % 2 == 1
        return -power(-base, 1 / degree) if is_odd and base.is_negative else power(base, 1 / degree)

    def small(function: Callable[..., Any], *values: Any) -> Any:
        if any(value.is_Rational and abs(value) > 10_000 for value in values):
            raise ValueError("a giant")
        return function(*values)

    def log(x: Any, *base: Any) -> Any:
        return real(sympy.log(x, *(base or (10,))), x, *base)

    names = "sin cos tan sec csc cot sinh cosh tanh exp floor".split()
    return {name: getattr(sympy, name) for name in names} | {
        "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "abs": sympy.Abs, "ceil": sympy.ceiling,
        "+": sympy.Add, "*": sympy.Mul, "frac": operator.truediv, "^": power, "root": root, "%": lambda x: x / 100,
        "log": log, "lg": log, "ln": lambda x: log(x, sympy.E), "apply": lambda f, *x: sympy.Function(str(f))(*x),
        "!": lambda n: small(sympy.factorial, n), "binom": lambda *n: small(sympy.binomial, *n),
    }  # fmt: skip


# Values of the variables at the sample points, times 1009: positive twice, of either sign twice, then whole
POINTS = [(1361, 523, 2459, 811, 1733), (317, 2797, 1213, 1999, 449), (-1511, 2083, -677, 3011, -199)]
POINTS += [(-421, -1871, 1103, -2203, 907), (2018, 3027, 1009, 5045, 4036)]


def settle(a: Tree, b: Tree, digits: int, sympy: Any) -> bool:
    """Are two expressions, or two relations of two sides, the same? KeyError or ValueError where sympy has no answer.

    Sample points where both are real can deny it: their distance is exact there if rational, else computed until it is
    told from zero, or as many digits have cancelled as asked for. If no point denies it, variables are believed, and
    constants too unless sympy can prove them different; what is nowhere real must be proved equal.
    """
    constants = {"e": sympy.E, "i": sympy.I, r"\pi": sympy.pi}
    symbols: dict[str, int] = {}

    def build(tree: Tree, point: tuple[int, ...] = (), is_real: bool = False) -> Any:
        def leaf(x: Any) -> Any:
            if not isinstance(x, str):
                return sympy.Integer(x) if isinstance(x, int) else x
            n = 0 if x in constants else symbols.setdefault(x, len(symbols))
            value = sympy.Rational(point[n % 5] * (1 + n // 5), 1009) if point else sympy.Symbol(x, real=True)
            return constants.get(x, value)

        return evaluate(tree, leaf, sympy_table(sympy, is_real))

    is_real = not mentions((a, b), {"i"})
    if kind(a) == "relation":  # compare left - right, up to a factor, which < and <= want positive
        sign, a, b = a[2], *(("+", tree[1], ("*", -1, tree[3])) for tree in (a, b))
        factor = build(("frac", a, b), POINTS[0])
        if not (factor.is_nonzero if sign in ("=", "!=") else factor.is_positive):
            return False
        b = ("*", factor, b)
    gap, agreed = build(a) - build(b), False
    if gap == 0:
        return True
    for point in POINTS if symbols else POINTS[:1]:
        with contextlib.suppress(ValueError):
            distance = build(a, point, is_real) - build(b, point, is_real)
            if not distance.is_Rational:  # a part of precision 1 is sympy's zero: all digits cancelled
                size = sympy.log(1 + abs(build(a, point, is_real)), 10).evalf(3)
                parts = distance.evalf(5, maxn=digits + int(size)).as_real_imag()
                if not all(part.is_Float or part.is_Rational for part in parts):
                    continue  # undefined here
                distance = max(abs(part) if getattr(part, "_prec", 2) > 1 else 0 for part in parts)
            if distance != 0:
                return False
            agreed = True
    if agreed and symbols:
        return True
    return sympy.expand(gap) == 0 or (bool(gap.equals(0) is not False) if agreed else sympy.simplify(gap) == 0)


# What sympy raises on what it cannot settle; RuntimeError stands for RecursionError and NotImplementedError
UNSETTLED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def serve() -> None:
    """The worker: a line of JSON [a, b, digits] in, true or false out, until its parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    with contextlib.suppress(ImportError, ValueError):  # not on Windows; or the limit is lower already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    import sympy

    print("ready", flush=True)
    with open(os.devnull, "w") as nowhere:
        for line in sys.stdin:
            faulthandler.dump_traceback_later(PAIR_LIMIT + 1, exit=True, file=nowhere)  # should the parent be gone
            try:
                a, b, digits = json.loads(line)
                verdict = settle(a, b, digits, sympy)
            except MemoryError:
                os._exit(1)  # counted by the parent, which starts another
            except UNSETTLED:
                verdict = False
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(verdict), flush=True)


class Worker:
    """One worker process, started when first asked, killed when late, then started anew. Any thread may ask."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: Popen[str] | None = None
        self.timeouts = 0

    def start(self) -> None:
        self.process = Popen(
            [sys.executable, "-m", "problems.verify", "--worker"], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True
        )
        self.replies: queue.Queue[str] = queue.Queue()
        self.is_ready = False
        threading.Thread(target=self.listen, args=(self.process.stdout, self.replies), daemon=True).start()

    @staticmethod
    def listen(pipe: IO[str], replies: queue.Queue[str]) -> None:
        with pipe:
            for line in pipe:
                replies.put(line)
        replies.put("")  # the worker has died

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(OSError):
                self.process.stdin.close()  # type: ignore[union-attr]
            self.process = None

    def ask(self, question: str, deadline: float) -> bool:
        """The worker's verdict. Raises TimeoutError, and counts, if there is none by the deadline (time.monotonic)."""

        def left(limit: float = CALL_LIMIT) -> float:
            return max(0.0, min(limit, deadline - time.monotonic()))

        if self.lock.acquire(timeout=left()):
            try:
                if not self.process or self.process.poll() is not None:
                    self.stop()
                    self.start()
                self.is_ready = self.is_ready or self.replies.get(timeout=left()) == "ready\n"
                if self.is_ready:  # else it starts slowly: left alone, it is ready for a later question
                    return self.exchange(question, left(PAIR_LIMIT))
            except queue.Empty:
                pass
            finally:
                self.lock.release()
        self.timeouts += 1
        raise TimeoutError(f"no verdict within {PAIR_LIMIT} s, or {CALL_LIMIT} s for the whole pair")

    def exchange(self, question: str, limit: float) -> bool:
        """Ask a ready worker; raises queue.Empty if it had to be killed, or died: a new one is on its way."""
        reply = ""
        with contextlib.suppress(queue.Empty, OSError):
            self.process.stdin.write(question + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
            reply = self.replies.get(timeout=limit)
        if not reply:
            self.stop()
            self.start()
            raise queue.Empty
        return bool(json.loads(reply))


WORKER = Worker()
atexit.register(WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKER.__init__)  # type: ignore[misc]  # a forked process gets its own


def timeouts() -> int:
    """Pairs that this process has given up on so far: out of time, or out of memory. They counted as different."""
    return WORKER.timeouts


# ---------------------------------------------------------------------------- 5. the verdict


STAGES = ["empty", "text", "number", "structure", "sympy"]


def judge(prediction: object, truth: object) -> tuple[bool, str]:
    """The verdict, and the stage that gave it: "empty", "text", "number", "structure" or "sympy"."""
    if not isinstance(prediction, str) or not isinstance(truth, str):
        return False, "empty"
    if (x := INTEGER.fullmatch(prediction)) and (y := INTEGER.fullmatch(truth)):  # of any size: digits, not int()
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
        return WORKER.ask(json.dumps([x, y, DIGITS + len(a) + len(b)]), deadline)

    readings = [(merge_thousands(a), merge_thousands(b))]
    if bool(THOUSANDS.fullmatch(a)) != bool(THOUSANDS.fullmatch(b)):
        readings.append((a, b))  # 100,200 may be a list, if the other side is one
    try:
        for reading_a, reading_b in readings:
            tree_a, tree_b = parse(reading_a), parse(reading_b)
            if {kind(tree_a), kind(tree_b)} & (COMPOSED | {"pm"}):
                stages.add("structure")
            if same(tree_a, tree_b, prove):
                return True, max(stages, key=STAGES.index)
    except TimeoutError:
        pass
    except (ValueError, RecursionError, ArithmeticError):
        return a.replace(" ", "") == b.replace(" ", ""), "text"  # beyond the grammar: x\to 3
    return False, max(stages, key=STAGES.index)


def answers_match(prediction: object, truth: object) -> bool:
    """Are they the same answer, by the conventions above? Never raises; takes little more than CALL_LIMIT at most."""
    with contextlib.suppress(*UNSETTLED):  # a net under judge(), which the tests hold to raising nothing by itself
        return judge(prediction, truth)[0]
    return False


# ---------------------------------------------------------------------------- 6. the command

EXAMPLES = [
    ("17", "20"), ("0.5", r"\frac{1}{2}"), ("0.333", r"\frac{1}{3}"), (r"50\%", "0.5"), (r"3\frac{1}{2}", "7/2"),
    ("1,000", r"10^{3}"), (r"5\text{ cm}", "5"), ("(1,2)", "(2,1)"), (r"\{1,2\}", "2 or 1"), ("[1,2)", "[1,2]"),
    ("x > 3", r"(3,\infty)"), (r"\pm 2", "2, -2"), ("101_2", "5"), ("b", r"\text{(B)}"), ("(x+1)^2", "x^2+2x+1"),
    (r"2\sqrt{2}", r"\sqrt{8}"), ("x^2", "X^2"), (r"\sin 30^\circ", r"\frac12"), (r"10^{10^{10}}", "1"),
]  # fmt: skip


def main(arguments: list[str]) -> int:
    if arguments == ["--worker"]:
        serve()
    elif not arguments:
        print(f"{'prediction':20}{'truth':20}{'verdict':12}stage")
        for prediction, truth in EXAMPLES:
            verdict, stage = judge(prediction, truth)
            print(f"{prediction:20}{truth:20}{'equal' if verdict else 'different':12}{stage}")
    elif len(arguments) == 2:
        verdict, stage = judge(*arguments)
        print(f"{'equal' if verdict else 'different'}  (settled by the {stage} stage)")
        return 0 if verdict else 1
    else:
        print(f'usage: python verify.py ["prediction" "truth"]      exit status: 0 equal, 1 different\n\n{__doc__}')
        return 0 if arguments[0] in ("-h", "--help") else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
