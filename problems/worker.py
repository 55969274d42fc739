"""Ask sympy whether two expressions are equal, in a process that is killed when it takes too long.

A short answer can keep sympy busy for hours or fill the memory, and sympy cannot be interrupted from within. So it runs
in a worker process with limited memory. Before each question the worker sets an alarm that has no handler: when it goes
off, the kernel kills the worker, whatever it is computing. The parent then reads an empty reply and starts another.

    WORKER.ask(a, b, digits, deadline)   # True or False; from any thread, in the process that needs the verdict
    rational(tree)                       # the exact value of a tree, in this process; None if it has roots or symbols
    python -m problems.worker            # the worker itself, which reads questions from its standard input

The worker receives trees (see latex.py) as JSON, never text, so nothing that a model wrote can be evaluated.
Left out: a pool of workers. One is enough, because the cheaper stages of verify.py settle most answers.
"""

import atexit
import contextlib
import faulthandler
import functools
import itertools
import json
import math
import operator
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from problems.latex import NOTATION, Tree, kind

ROOT = Path(__file__).parent.parent
QUESTION_LIMIT = 2.0  # seconds that the worker may spend on one question
MAX_BITS = 20_000  # size of the largest exact number; stops towers of powers such as 9^{9^{9}}
WORKER_BYTES = 1 << 30  # address space of the worker, on systems that can limit it

# ---------------------------------------------------------------------------- 1. exact values and trees


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
    "^": lambda x, n: x ** whole(n, MAX_BITS / (x.numerator.bit_length() + x.denominator.bit_length())),
    "frac": operator.truediv, "%": lambda x: x / 100, "mod": operator.mod, "abs": abs, "max": max, "min": min,
    "floor": lambda x: Fraction(math.floor(x)), "ceil": lambda x: Fraction(math.ceil(x)),
    "gcd": lambda *n: Fraction(math.gcd(*map(whole, n))), "lcm": lambda *n: Fraction(math.lcm(*map(whole, n))),
    "!": lambda n: Fraction(math.factorial(whole(n))), "!!": lambda n: Fraction(math.prod(range(whole(n), 0, -2))),
    "binom": lambda n, k: Fraction(math.comb(whole(n), whole(k))),
}  # fmt: skip


def rational(tree: Tree) -> Fraction | None:
    """Return the exact value of a tree; None if it has roots or symbols, or needs more than MAX_BITS."""
    with contextlib.suppress(KeyError, ArithmeticError, ValueError, TypeError):
        return evaluate(tree, lambda leaf: Fraction(leaf) if isinstance(leaf, int) else {}[leaf], EXACT)
    return None


CONSTANTS = {"e", "i", r"\pi", r"\infty", r"\in"}


def mentions(tree: Tree, names: set[str]) -> bool:
    """Tell whether any of these symbols or operators occurs in a tree."""
    return any(mentions(part, names) for part in tree) if isinstance(tree, (tuple, list)) else tree in names


def has_matrix(tree: Tree) -> bool:
    """Tell whether A^{-1} or A^T occurs in a tree: products of matrices must not be reordered."""
    if not isinstance(tree, (tuple, list)):
        return False
    is_matrix = tree[0] == "^" and tree[2] in (-1, "T") and isinstance(tree[1], str) and tree[1].isupper()
    return is_matrix or any(map(has_matrix, tree))


def symbols(tree: Tree) -> set[str]:
    """Return the variables of a tree, function names and words included, constants not."""
    if isinstance(tree, str):
        return {tree} - CONSTANTS if tree[:1].isalpha() or tree[:1] == "\\" else set()
    parts = tree[1:2] if kind(tree) == "unit" else tree[1:] if isinstance(tree, (tuple, list)) else ()
    return set().union(*map(symbols, parts))


def with_sign(tree: Tree, sign: int) -> Tree:
    r"""Read every \pm in a tree as + (if sign is 1) or - (if it is -1)."""
    if not isinstance(tree, tuple):
        return tree
    return ("*", sign * tree[1], tree[2]) if tree[0] == "pm" else tuple(with_sign(part, sign) for part in tree)


def jumps(tree: Tree) -> list[Tree]:
    """Return the expressions in a tree at whose zeros and integers a value may jump: the x of floor(x), abs(x) ..."""
    if not isinstance(tree, (tuple, list)):
        return []
    own: list[Tree] = list(tree[1:]) if tree[0] in ("floor", "ceil", "abs") else []
    own += [("frac", *pair) for pair in itertools.permutations(tree[1:], 2)] if tree[0] in ("mod", "gcd", "lcm") else []
    pairs = itertools.combinations(tree[1:], 2) if tree[0] in ("max", "min") else ()
    return own + [("+", x, ("*", -1, y)) for x, y in pairs] + [jump for part in tree for jump in jumps(part)]


def near(jump: Tree, point: dict[str, Fraction]) -> Iterator[dict[str, Fraction]]:
    """Yield points with one variable changed, so that a linear `jump` is zero or an integer, or close to that."""

    def value(known: dict[str, Fraction]) -> Fraction:
        return Fraction(evaluate(jump, lambda leaf: Fraction(leaf) if isinstance(leaf, int) else known[leaf], EXACT))

    for name in sorted(symbols(jump)):
        with contextlib.suppress(*UNSETTLED):
            at = value(point)
            slope = value(point | {name: point[name] + 1}) - at
            for target in (math.floor(at), 0, math.ceil(at)):
                there = point[name] + (target - at) / slope
                there, step = (Fraction(round(there)), 1) if name in {*"nmk"} else (there, Fraction(1, 1009))
                yield from (point | {name: there + sign * step} for sign in (-1, 0, 1))


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
    is_part = kind(tree) in ("*", "tuple") and all(map(is_name, tree[1 + (kind(tree) == "tuple") :]))
    return (isinstance(tree, str) and tree != r"\infty") or kind(tree) in ("word", "apply") or is_part


def renamed(tree: Tree, old: str, new: str) -> Tree:
    return new if tree == old else tuple(renamed(part, old, new) for part in tree) if isinstance(tree, tuple) else tree


# ---------------------------------------------------------------------------- 2. the question, as sympy sees it

# Values of the variables at the sample points: fractions, integers, odd, even, negative, large, small. The letters
# n, m and k stand for integers.
FRACTIONS, INTEGERS, COUNTS, SPECIAL = NOTATION["sample points"].values()
POINTS = [[Fraction(n, 1009) for n in row] for row in FRACTIONS] + [[Fraction(n) for n in row] for row in INTEGERS]
SIMPLE = [[Fraction(n, size) for n in row] for size in (2, 3, 4, 6) for row in INTEGERS[:6]]
ROWS = [*zip(POINTS, COUNTS, strict=True)]
MORE = [*zip(SIMPLE, COUNTS * 2, strict=False), *(([*map(Fraction, row)], row[:3]) for row in SPECIAL)]  # for jumps
MAX_NEAR = 60  # points close to jumps
LONG = 40  # operations in an expression of which sympy is not asked whether it proves what the digits say
ENOUGH = 4  # sample points at which two expressions must be defined and agree


def sympy_table(sympy: Any, is_real: bool) -> dict[str, Callable[..., Any]]:
    """Map the operators of a tree to sympy. They raise ValueError for huge values and, if is_real, for complex ones."""

    def real(value: Any, *arguments: Any) -> Any:
        if is_real and any(argument.is_negative for argument in arguments):
            raise ValueError("not a real number")
        return value

    def defined(inverse: Callable[..., Any], x: Any) -> Any:
        value = inverse(x)
        return real(value, sympy.Integer(-1 if value.is_extended_real is False else 0))

    def power(base: Any, exponent: Any) -> Any:
        bits = max(abs(base.p).bit_length(), base.q.bit_length()) if base.is_Rational else 1
        if exponent.is_Rational and bits * abs(exponent) > 1_000_000:
            raise ValueError("a power with too many digits")
        return base**exponent if exponent.is_integer else real(base**exponent, base)

    def root(base: Any, degree: Any) -> Any:  # the real root: the cube root of -8 is -2
        is_odd = degree.is_Integer and degree % 2 == 1
        return -power(-base, 1 / degree) if is_odd and base.is_negative else power(base, 1 / degree)

    def small(function: Callable[..., Any], *arguments: Any) -> Any:
        if any(argument.is_Rational and abs(argument) > 10_000 for argument in arguments):
            raise ValueError("a factorial or binomial with too many digits")
        return function(*arguments)

    def log(x: Any, *base: Any) -> Any:
        return real(sympy.log(x, *(base or (10,))), x, *base)

    def of_integers(name: str) -> Callable[..., Any]:
        def function(*numbers: Any) -> Any:
            if any(number.free_symbols for number in numbers):  # sympy takes m and n for polynomials without a divisor
                return sympy.Function(name)(*sorted(numbers, key=str))
            if not all(number.is_Integer and number > 0 for number in numbers):
                raise ValueError("not a positive integer")
            return sympy.Integer(getattr(math, name)(*map(int, numbers)))

        return function

    table = {name: getattr(sympy, name) for name in "sin cos tan sec csc cot sinh cosh tanh exp floor".split()}
    for name in "sin cos tan sec csc cot sinh cosh tanh".split():
        table[f"arc{name}"] = functools.partial(defined, getattr(sympy, f"a{name}"))
    return table | {
        "abs": sympy.Abs, "ceil": sympy.ceiling, "max": sympy.Max, "min": sympy.Min, "mod": sympy.Mod,
        "gcd": of_integers("gcd"), "lcm": of_integers("lcm"), "based": lambda x, base: x,
        "+": sympy.Add, "*": sympy.Mul, "frac": operator.truediv, "^": power, "root": root, "%": lambda x: x / 100,
        "log": log, "lg": log, "ln": lambda x: log(x, sympy.E), "apply": lambda f, *x: sympy.Function(str(f))(*x),
        "!": lambda n: small(sympy.factorial, n), "!!": lambda n: small(sympy.factorial2, n),
        "binom": lambda *n: small(sympy.binomial, *n),
    }  # fmt: skip


def settle(a: Tree, b: Tree, digits: int, sympy: Any) -> bool:
    """Decide whether two expressions, or two relations with two sides each, are the same.

    Expressions with variables are compared at sample points: first where both are real at every step, then, if that
    leaves fewer than ENOUGH points, as complex numbers. One point can refute; ENOUGH of them, or a proof, convince. A
    distance is exact if it is rational; if not, it is computed to more and more digits until it differs from zero or
    `digits` digits have cancelled. That also convinces of the equality of constants, unless sympy proves them
    different; it is asked only if they are short. Where floor, mod, abs, max ... occur, points at and near their jumps
    are added. Raises one of UNSETTLED if sympy has no answer.
    """
    constants = {"e": sympy.E, "i": sympy.I, r"\pi": sympy.pi}
    names = symbols(a) | symbols(b)
    if len(names) > 1 and all(map(str.isupper, names)) and has_matrix((a, b)):
        return False
    variables = {name: sympy.Symbol(name, real=True, integer=name in {*"nmk"} or None) for name in names}
    reals, points, places = sorted(names - {*"nmk"}), list[dict[str, Fraction]](), jumps((a, b)) if names else []
    for row, counts in ROWS + MORE * mentions((a, b), {"floor", "ceil", "mod", "gcd", "lcm"}):
        known = {name: row[n % 5] * (1 + n // 5) for n, name in enumerate(reals)}
        points.append(known | dict(zip("nmk", map(Fraction, counts), strict=True)))
    close = (other for point in points[:3] for place in places for other in near(place, point))
    points += [point for point in itertools.islice(close, MAX_NEAR) if point not in points]

    def build(tree: Tree, known: dict[str, Any], is_real: bool = False) -> Any:
        numbers = {name: sympy.Rational(x) if isinstance(x, Fraction) else x for name, x in known.items()}

        def leaf(x: Any) -> Any:
            return sympy.Integer(x) if isinstance(x, int) else constants[x] if x in constants else numbers[x]

        return evaluate(tree, leaf, sympy_table(sympy, is_real))

    def is_zero(distance: Any, *terms: Any) -> bool:
        """Tell whether a distance is zero as far as can be seen. Raises ValueError if it is undefined."""
        if any(term.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) for term in (distance, *terms)):
            raise ValueError("undefined")
        if not distance.is_Rational:
            size = sympy.log(1 + sum(map(abs, terms)), 10).evalf(3)
            parts = distance.evalf(5, maxn=digits + min(1000, int(size))).as_real_imag()
            if size > 1000 or not all(part.is_Float or part.is_Rational for part in parts):
                raise ValueError("undefined")
            # A precision of one bit is how sympy marks a zero of which all digits have cancelled.
            distance = max(abs(part) if getattr(part, "_prec", 2) > 1 else 0 for part in parts)
        return bool(distance == 0)

    is_relation = kind(a) == "relation"
    if is_relation:  # compare left - right, up to a constant factor, which must be positive for < and <=
        sign, a, b = a[2], *(("+", tree[1], ("*", -1, tree[3])) for tree in (a, b))
    else:
        gap = build(a, variables) - build(b, variables)
        if gap == 0:
            return True
    for is_real in (False,) if mentions((a, b), {"i"}) else (True, False):
        agreed, first = 0, None
        for point in points if variables else points[:1]:
            with contextlib.suppress(ValueError, ZeroDivisionError):  # which Mod raises
                x, y = (build(tree, point, is_real) for tree in (a, b))
                if is_relation:
                    if is_zero(x, x) or is_zero(y, y):
                        if not (is_zero(x, x) and is_zero(y, y)):
                            return False
                        continue
                    first = first or (x, y)
                    if sign in ("<", "<=") and not (x / y).is_positive:
                        return False
                    x, y = x * first[1], y * first[0]
                if not is_zero(x - y, x, y):
                    return False
                agreed += 1
        if agreed >= (ENOUGH if variables or is_relation else 1):
            break
    else:
        return not is_relation and (sympy.expand(gap) == 0 or sympy.simplify(gap) == 0)
    return bool(variables) or gap.count_ops() > LONG or sympy.expand(gap) == 0 or gap.equals(0) is not False


# What sympy raises when it cannot settle a question. RuntimeError includes RecursionError and NotImplementedError.
UNSETTLED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# ---------------------------------------------------------------------------- 3. the worker process


def set_alarm(seconds: float) -> None:
    """Have this process killed in `seconds`, whatever it is computing then. Zero cancels that."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)  # signal.alarm, but for fractions of a second
    elif seconds:  # Windows has no alarms, but faulthandler's watchdog needs no turn of the interpreter either
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def serve() -> None:
    """Answer each line of JSON, [a, b, digits, seconds], with true or false, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the parent, whose end closes the pipe
    if hasattr(signal, "SIGALRM"):  # a parent may have passed on that it ignores or blocks alarms
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with contextlib.suppress(ImportError, ValueError):  # Windows has no limits; or a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    import sympy

    print("ready", flush=True)
    for line in sys.stdin:
        a, b, digits, seconds = json.loads(line)
        set_alarm(seconds)
        try:
            verdict = bool(settle(a, b, digits, sympy))
        except MemoryError:
            os._exit(1)  # to the parent the same as running out of time
        except UNSETTLED:
            verdict = False
        set_alarm(0)
        print(json.dumps(verdict), flush=True)


# ---------------------------------------------------------------------------- 4. the parent's side


class Worker:
    """One worker process, started for the first question and replaced when it dies. Any thread may ask."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: Any = None  # a Popen with text pipes, once a question was asked
        self.timeouts = 0

    def start(self) -> None:
        """Start a new process without waiting for it: importing sympy takes a second."""
        self.stop()
        self.process = Popen([sys.executable, "-m", "problems.worker"], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
        self.starting = threading.Thread(target=self.process.stdout.readline, daemon=True)  # until it says "ready"
        self.starting.start()

    def stop(self) -> None:
        if self.process:
            with contextlib.suppress(OSError), self.process:  # which closes the pipes and waits for the end
                self.process.kill()
                self.starting.join()
            self.process = None

    def ask(self, a: Tree, b: Tree, digits: int, deadline: float) -> bool:
        """Return the worker's verdict. Raises TimeoutError, and counts it, if there is none by `deadline`.

        The deadline is a value of time.monotonic(). The worker also gives up after QUESTION_LIMIT seconds.
        """
        if self.lock.acquire(timeout=seconds_until(deadline)):
            try:
                if reply := self.exchange([a, b, digits], deadline):
                    return json.loads(reply)
            finally:
                self.lock.release()
        self.timeouts += 1
        raise TimeoutError("the worker gave no verdict in time")

    def exchange(self, question: list[Any], deadline: float) -> str:
        """Return the reply, or "": the worker is still starting, or it has died and a new one is on its way."""
        if not self.process or self.process.poll() is not None:
            self.start()
        self.starting.join(seconds_until(deadline))
        if self.starting.is_alive():
            return ""  # it is left alone, so that it is ready for a later question
        reply = ""
        try:
            question = [*question, min(QUESTION_LIMIT, seconds_until(deadline))]
            print(json.dumps(question), file=self.process.stdin, flush=True)
            reply = self.process.stdout.readline()
        except OSError:
            pass
        finally:
            if not reply:  # also after Ctrl-C, when a late reply would be taken for that to the next question
                self.start()
        return reply


def seconds_until(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())  # never 0, which would call off the alarm


WORKER = Worker()
atexit.register(WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKER.__init__)  # type: ignore[misc]  # a forked process gets its own worker


if __name__ == "__main__":
    serve()
