"""Ask sympy whether two expressions are equal, in a process that is killed when it takes too long.

A short answer can keep sympy busy for hours or fill the memory, and sympy cannot be interrupted from within. So it runs
in a worker process with limited memory. Before each question the worker sets an alarm that has no handler: when it goes
off, the kernel kills the worker, whatever it is computing. The parent then reads an empty reply and starts another.

    WORKER.ask(a, b, digits, deadline)   # True or False; from any thread, in the process that needs the verdict
    python -m problems.worker            # the worker itself, which reads questions from its standard input

The worker receives trees (see latex.py) as JSON, never text, so nothing that a model wrote can be evaluated.
Left out: a pool of workers. One is enough, because the cheaper stages of verify.py settle most answers.
"""

import atexit
import contextlib
import faulthandler
import json
import operator
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from problems.latex import Tree, evaluate, kind, mentions

ROOT = Path(__file__).parent.parent
QUESTION_LIMIT = 2.0  # seconds that the worker may spend on one question
WORKER_BYTES = 1 << 30  # address space of the worker, on systems that can limit it

# ---------------------------------------------------------------------------- 1. the question, as sympy sees it

# Values of the variables at the sample points, in units of 1/1009: twice all positive, twice of either sign, and once
# integers, because expressions such as (-1)^n are real only there.
POINTS = [(1361, 523, 2459, 811, 1733), (317, 2797, 1213, 1999, 449), (-1511, 2083, -677, 3011, -199)]
POINTS += [(-421, -1871, 1103, -2203, 907), (2018, 3027, 1009, 5045, 4036)]


def sympy_table(sympy: Any, is_real: bool) -> dict[str, Callable[..., Any]]:
    """Map the operators of a tree to sympy. They raise ValueError for huge values and, if is_real, for complex ones."""

    def real(value: Any, *arguments: Any) -> Any:
        if is_real and any(argument.is_negative for argument in arguments):
            raise ValueError("not a real number")
        return value

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

    names = "sin cos tan sec csc cot sinh cosh tanh exp floor".split()
    return {name: getattr(sympy, name) for name in names} | {
        "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "abs": sympy.Abs, "ceil": sympy.ceiling,
        "+": sympy.Add, "*": sympy.Mul, "frac": operator.truediv, "^": power, "root": root, "%": lambda x: x / 100,
        "log": log, "lg": log, "ln": lambda x: log(x, sympy.E), "apply": lambda f, *x: sympy.Function(str(f))(*x),
        "!": lambda n: small(sympy.factorial, n), "binom": lambda *n: small(sympy.binomial, *n),
    }  # fmt: skip


def settle(a: Tree, b: Tree, digits: int, sympy: Any) -> bool:
    """Decide whether two expressions, or two relations with two sides each, are the same.

    A sample point at which both are real can refute it. Their distance there is exact if it is rational; if not, it is
    computed to more and more digits until it differs from zero or `digits` digits have cancelled. If no point refutes
    it, expressions with variables count as equal, and so do constants unless sympy proves them different. Expressions
    that are real at no point must be proved equal. Raises one of UNSETTLED if sympy has no answer.
    """
    constants = {"e": sympy.E, "i": sympy.I, r"\pi": sympy.pi}
    symbols: dict[str, int] = {}  # name -> index, in order of appearance

    def build(tree: Tree, point: tuple[int, ...] = (), is_real: bool = False) -> Any:
        def leaf(x: Any) -> Any:
            if not isinstance(x, str):
                return sympy.Integer(x) if isinstance(x, int) else x
            if x in constants:
                return constants[x]
            n = symbols.setdefault(x, len(symbols))
            return sympy.Rational(point[n % 5] * (1 + n // 5), 1009) if point else sympy.Symbol(x, real=True)

        return evaluate(tree, leaf, sympy_table(sympy, is_real))

    is_real = not mentions((a, b), {"i"})
    if kind(a) == "relation":
        # Compare left - right, up to a constant factor, which must be positive for < and <=.
        sign, a, b = a[2], *(("+", tree[1], ("*", -1, tree[3])) for tree in (a, b))
        factor = build(("frac", a, b), POINTS[0])
        if not (factor.is_nonzero if sign in ("=", "!=") else factor.is_positive):
            return False
        b = ("*", factor, b)
    gap, is_supported = build(a) - build(b), False
    if gap == 0:
        return True
    for point in POINTS if symbols else POINTS[:1]:
        with contextlib.suppress(ValueError):
            distance = build(a, point, is_real) - build(b, point, is_real)
            if not distance.is_Rational:
                size = sympy.log(1 + abs(build(a, point, is_real)), 10).evalf(3)
                parts = distance.evalf(5, maxn=digits + int(size)).as_real_imag()
                if not all(part.is_Float or part.is_Rational for part in parts):
                    continue  # undefined at this point
                # A precision of one bit is how sympy marks a zero of which all digits have cancelled.
                distance = max(abs(part) if getattr(part, "_prec", 2) > 1 else 0 for part in parts)
            if distance != 0:
                return False
            is_supported = True
    if is_supported and symbols:
        return True
    return sympy.expand(gap) == 0 or (gap.equals(0) is not False if is_supported else sympy.simplify(gap) == 0)


# What sympy raises when it cannot settle a question. RuntimeError includes RecursionError and NotImplementedError.
UNSETTLED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# ---------------------------------------------------------------------------- 2. the worker process


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


# ---------------------------------------------------------------------------- 3. the parent's side


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
