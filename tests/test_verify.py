"""The verifier is right (labelled pairs), safe (evaluates nothing, never hangs), and cheap where it can be."""

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import check_answers
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from problems import verify, worker
from problems.verify import answers_match, extract_answer, judge, timeouts

PAIRS = [json.loads(line) for line in (ROOT / "tests" / "verify_pairs.jsonl").open(encoding="utf-8")]
KNOWN_MISJUDGED = {  # (prediction, truth) -> reason; at most 1% of the pairs
    (r"f(x)=\begin{cases} x & x\ge 0 \\ -x & x<0 \end{cases}", "|x|"): "cases are compared row by row",
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"): "left out: sums",
    (r"\int_0^1 x dx", r"\frac12"): "left out: integrals",
    ("1:10", "2:20"): "two times of day, as far as can be seen",
    (r"x>1 \text{ and } x<3", "(1,3)"): "two inequalities are not combined",
    ("1A_{16}", "1A"): "digits beyond 9 are read as letters without a base",
}
SLOW_PAIR = (r"e^{e^{e^{e^{e^{e}}}}}", "1")  # sympy never finishes this one
LIMIT = 5.0  # seconds that a call may take, by the contract in design.md


def test_the_pairs_are_many_and_balanced():
    equal = Counter(pair["equal"] for pair in PAIRS)
    assert len(PAIRS) >= 400 and len({(p["prediction"], p["truth"]) for p in PAIRS}) == len(PAIRS)
    assert 0.45 < equal[True] / len(PAIRS) < 0.55
    assert len(KNOWN_MISJUDGED) <= 0.01 * len(PAIRS)


@pytest.mark.parametrize("name", sorted({pair["class"] for pair in PAIRS}))
def test_labelled_pairs_in_both_directions(name):
    for pair in PAIRS:
        prediction, truth = pair["prediction"], pair["truth"]
        if pair["class"] == name and (prediction, truth) not in KNOWN_MISJUDGED:
            assert judge(prediction, truth)[0] == pair["equal"], pair
            assert judge(truth, prediction)[0] == pair["equal"], f"swapped: {pair}"


def test_rewrites_match_and_corruptions_do_not():
    counts, wrong = check_answers.check(check_answers.BUILT_IN)
    assert not wrong
    assert counts["rewrites"] > 400 and counts["corruptions"] > 150


BOXES = r"""so \boxed{5}. => 5 | \boxed{\frac{1}{2}} => \frac{1}{2} | \boxed{1} and then \boxed{2} => 2 |
\boxed{1} and then \boxed{2 => 1 | \boxed{2} and \boxed{3} => 2,3 | $\boxed{2}$, $\boxed{3}$ or $\boxed{5}$. => 2,3,5 |
\boxed{2}\text{ and }\boxed{3} => 2,3 | \boxed{4}\ \boxed{5} => 4,5 | \boxed{5}, \boxed{5} => 5 |
\boxed{1}. So \boxed{2} and \boxed{3} => 2,3 | \fbox{3} => 3 | \boxed {4} => 4 | $\boxed 5$. => 5 |
thus \boxed 12, done => 12 | \boxed{\boxed{7}} => 7 | \boxed{\{1,2\}} => \{1,2\} |
\boxed{\text{a \} b}} => \text{a \} b} | <think>\boxed{1}</think> \boxed{2} => 2 | } \boxed{6} } => 6 |
{ \boxed{6} => 6 | \\boxed{8} => 8 | \boxed{} => """


@pytest.mark.parametrize("box", BOXES.replace("\n", " ").split(" | "))
def test_extract_answer(box):
    text, _, expected = box.partition(" => ")
    assert extract_answer(text) == expected


def test_boxes_that_are_missing_or_joined():
    for text in (r"<think>\boxed{1}</think> no box here", r"\boxedsomething{9}", "no box", "", None, 17):
        assert extract_answer(text) is None
    assert answers_match(r"\boxed{2}, \boxed{3}", "3,2") and not answers_match(r"\boxed{2}, \boxed{3}", "3")


@pytest.mark.parametrize("prediction", [None, 5, 5.0, b"5", ["5"], "", "  ", "$$", r"\text{}"])
def test_blank_answers_and_other_types_equal_nothing(prediction):
    for pair in ((prediction, "5"), ("5", prediction), (prediction, prediction)):
        assert answers_match(*pair) is False


def test_integers_of_any_size_are_exact():
    digits = "1234567890" * 1000  # too long for int()
    assert answers_match(digits, "+000" + digits) and answers_match("-" + digits, f" -{digits} ")
    assert not answers_match(digits, digits[:-1] + "1") and not answers_match(digits, "-" + digits)


@pytest.mark.parametrize("pair", "17;20;text 0.5;\\frac12;number (1,2);(2,1);structure xy;yx;sympy ;1;empty".split())
def test_the_cheapest_stage_that_can_decide_does(pair):
    prediction, truth, stage = pair.split(";")
    assert judge(prediction, truth)[1] == stage


def test_no_code_evaluates_text():
    forbidden = set("eval exec compile sympify S parse_expr parse_latex __import__ lambdify loads".split())
    for name in ("verify.py", "latex.py", "worker.py"):
        for node in ast.walk(ast.parse((ROOT / "problems" / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                is_json_or_regex = ast.unparse(node.func) in ("json.loads", "re.compile")
                assert called not in forbidden or is_json_or_regex, f"{name}:{node.lineno}: {ast.unparse(node)}"


def test_a_hostile_answer_creates_no_file(tmp_path):
    victim = tmp_path / "created"
    attacks = rf"""open("{victim}","w") | `touch {victim}`; $(touch {victim}) | (lambda: open("{victim}","w"))()
__import__("os").system("touch {victim}") | \text{{__import__("os").system("touch {victim}")}}
\input{{|touch {victim}}} | x=__import__("pathlib").Path("{victim}").touch() | 1+exec("open('{victim}','w')")
\sin(open("{victim}","w"))"""
    for attack in re.split(r" \| |\n", attacks):
        for truth in ("1", "x", attack + "+1"):
            assert not answers_match(attack, truth)
    assert not victim.exists()


HOSTILE = r"""9^{9^{9^{9}}} ((9!)!)! 100000000! \binom{10^{9}}{5\cdot10^{8}} (a+b+c+d+e)^{50} 1e9999
\frac{1}{0}+0^{-1}""".split()
HOSTILE += ["5\x00", "\ud8005", "-" * 1900 + "5", "0." + "3" * 1900, r"\pm 2" * 300, *(sign * 1900 for sign in "{|,\\")]
HOSTILE += ["(1+1)^{" * 25 + "9" + "}" * 25, "(" * 1000 + "5" + ")" * 1000, r"\sqrt{" * 300 + "2" + "}" * 300]
HOSTILE += [r"\frac{" * 300 + "1" + "}{2}" * 300, "+".join(f"x_{{{n}}}" for n in range(150))]
HOSTILE += [",".join(rf"\sqrt{{{n}}}" for n in range(150))]
HOSTILE += [text * (10**6 // len(text)) for text in ("x", "9", r"\boxed{", "111,", "\\")]  # a megabyte each


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_hostile_answers_are_quick_and_wrong(text):
    for truth in ("1", "x+1"):
        start = time.monotonic()
        assert answers_match(text, truth) is False
        extract_answer(text)
        assert time.monotonic() - start < LIMIT


def test_a_pair_out_of_time_is_wrong_counted_and_survived(monkeypatch):
    monkeypatch.setattr(worker, "QUESTION_LIMIT", 0.5)
    assert answers_match(r"\sqrt{8}", r"2\sqrt{2}")  # starts a worker
    pid, before = verify.WORKER.process.pid, timeouts()
    assert answers_match(*SLOW_PAIR) is False
    assert timeouts() == before + 1
    assert verify.WORKER.process.pid != pid
    monkeypatch.undo()
    assert answers_match(r"\sqrt{8}", r"2\sqrt{2}") and timeouts() == before + 1


def test_a_killed_worker_is_replaced():
    assert answers_match(r"\sqrt{12}", r"2\sqrt{3}")
    verify.WORKER.process.kill()
    verify.WORKER.process.wait()
    before = timeouts()
    assert answers_match(r"\sqrt{12}", r"2\sqrt{3}") and timeouts() == before


def test_a_worker_that_starts_slowly_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "worker.py").write_text(
        "import time; time.sleep(0.5); print('ready', flush=True); input(); print('true', flush=True)"
    )
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    slow = worker.Worker()
    try:
        with pytest.raises(TimeoutError):
            slow.ask("x", "y", 9, time.monotonic() + 0.1)
        pid = slow.process.pid
        assert slow.ask("x", "y", 9, time.monotonic() + LIMIT) is True
        assert slow.timeouts == 1 and slow.process.pid == pid
    finally:
        slow.stop()


def test_threads_share_the_worker():
    """These are not the main thread, in which alone Python handles signals."""

    def verdict(number: int) -> bool:
        return answers_match(rf"\sqrt{{{4 * number}}}", rf"2\sqrt{{{number + number % 2}}}")

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(verdict, range(2, 26))) == [number % 2 == 0 for number in range(2, 26)]


PROGRAMS = {
    "cheap verdicts need neither sympy nor a worker": """
assert answers_match("17", "17") and not answers_match("17", "20") and answers_match("0.5", "1/2")
assert not answers_match("(1,2)", "(2,1)")
assert verify.WORKER.process is None and not {"sympy", "torch", "transformers"} & set(sys.modules)
assert answers_match("xy", "yx") and verify.WORKER.process and "sympy" not in sys.modules
""",
    "a forked process gets its own worker": """
assert answers_match("xy", "yx")
pid = os.fork() if hasattr(os, "fork") else None
if pid == 0:
    os._exit(0 if answers_match("ab", "ba") and not answers_match("ab", "bb") else 1)
assert not pid or os.waitpid(pid, 0)[1] == 0
assert answers_match("xyz", "zyx") and verify.timeouts() == 0
""",
    "the worker's alarm does not depend on the signals of its parent": f"""
if hasattr(signal, "SIGALRM"):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
start = time.monotonic()
assert not answers_match(*{SLOW_PAIR!r}) and verify.timeouts() == 1 and time.monotonic() - start < {LIMIT}
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_its_own(name, tmp_path):
    script = tmp_path / "main_script.py"  # not in the project's folder, and neither is its working directory
    script.write_text(
        f"import os, signal, sys, time; sys.path.insert(0, {str(ROOT)!r}); print('once', flush=True)\n"
        f"from problems import verify; from problems.verify import answers_match\n{PROGRAMS[name]}"
    )
    finished = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["once"], "the worker does not import the main script"


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.parametrize("is_busy", [False, True])
def test_the_worker_does_not_outlive_its_parent(is_busy):
    code = f"""
import threading, time
from problems import verify
verify.answers_match("xy", "yx")
print(verify.WORKER.process.pid, flush=True)
if {is_busy}: threading.Thread(target=verify.answers_match, args={SLOW_PAIR!r}).start()
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + worker.QUESTION_LIMIT + 2
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has prlimit")
def test_the_worker_has_a_memory_limit():
    import resource

    assert answers_match("xy", "yx")
    assert resource.prlimit(verify.WORKER.process.pid, resource.RLIMIT_AS)[0] == worker.WORKER_BYTES


PIECES = r"""1 2 7 10 999 0.5 .3 1e9 x y n e i a_1 \pi \infty \alpha + - * / ^ _ = < > \le \in \cup \pm ! % , ; : ( ) [
] { } \{ \} | & \\ \frac \sqrt \binom \sin \log \ln \tan \left( \right) \text{cm} \text{or} \text \boxed{ \row or and
\begin{pmatrix} \end{pmatrix} \overline ^{99} ^\circ \% \$ $ \, \! {,} \frac{1}{2} \lfloor \rfloor Monday yes A (B)
mod \unknown __import__ ° ½ √ − 9^{9^{9}} 99! \frac{x}{ \sqrt[3]{ (x+1)^ e^{e^{""".split()
LATEX_LIKE = st.lists(st.sampled_from([*PIECES, " "]), max_size=25).map("".join)
ATOMS = ["x", "y", "n", "2", "7", "0.5", "-3", r"\pi", "i", "e", "99", "10^{9}"]
SHAPES = [r"\frac{%s}{%s}", "(%s)^{%s}", "%s+%s", "%s-%s", r"%s\cdot %s", r"\binom{%s}{%s}", "(%s,%s)", r"\{%s,%s\}"]
SHAPES += [r"\sqrt[%s]{%s}", r"\sin(%s)\ln(%s)", r"\left(%s\right)!%%\pm %s", "%s = %s", "%s < %s", "|%s|%s"]
EXPRESSIONS = st.recursive(
    st.sampled_from(ATOMS),
    lambda part: st.tuples(st.sampled_from(SHAPES), part, part).map(lambda drawn: drawn[0] % drawn[1:]),
    max_leaves=8,
)
ANY = st.text(st.characters(exclude_categories=()), max_size=40)  # control characters and surrogates included
ANSWERS = LATEX_LIKE | EXPRESSIONS | EXPRESSIONS | ANY | st.sampled_from(sorted({pair["truth"] for pair in PAIRS}))


def check_one(prediction: str, truth: str) -> None:
    start = time.monotonic()
    verdict, stage = judge(prediction, truth)  # answers_match would hide what it raises
    boxed = extract_answer(f"{prediction} \\boxed{{{truth}}}")
    assert time.monotonic() - start < LIMIT
    assert verdict in (True, False) and stage in verify.STAGES and (boxed is None or isinstance(boxed, str))
    if truth.strip(" ,;:.$") and prediction == truth and verify.normalise(extract_answer(truth) or truth):
        assert verdict


FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def test_fuzz_a_thousand(monkeypatch):
    monkeypatch.setattr(worker, "QUESTION_LIMIT", 0.2)  # the slow test uses the real limit
    settings(FUZZ, max_examples=1000)(given(ANSWERS, ANSWERS)(check_one))()


@pytest.mark.slow
def test_fuzz_twenty_thousand():
    import resource

    settings(FUZZ, max_examples=20_000)(given(ANSWERS, ANSWERS)(check_one))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000  # kB; pytest, hypothesis and torch included
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= worker.WORKER_BYTES / 1024  # the dead workers


def resident(pid: int | str) -> int:
    """Return the resident memory of a process in kB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_ten_thousand_verifications_leak_nothing():
    for pair in PAIRS:
        answers_match(pair["prediction"], pair["truth"])
    pid, threads, files = verify.WORKER.process.pid, threading.active_count(), len(os.listdir("/proc/self/fd"))
    before = resident("self"), resident(pid)
    for number in range(10_000):
        pair = PAIRS[number % len(PAIRS)]
        answers_match(pair["prediction"], pair["truth"])
    assert verify.WORKER.process.pid == pid
    assert threading.active_count() == threads and len(os.listdir("/proc/self/fd")) == files
    grown = resident("self") - before[0], resident(pid) - before[1]
    print(f"resident memory grew by {grown} kB (this process, worker)")
    assert max(grown) < 20_000


def test_command(capsys):
    def command(*arguments: str) -> tuple[int, str]:
        return verify.main([*arguments]), capsys.readouterr().out

    status, table = command(r"-\frac12", "-0.5")
    assert status == 0 and table.splitlines()[1].split() == [r"-\frac12", "-0.5", "equal", "number"]
    assert command("1", "2")[0] == 1
    (status, table), (help_status, usage) = command(), command("--help")
    assert status == 0 and len(table.splitlines()) == 1 + len(verify.EXAMPLES)
    assert help_status == 0 and "usage" in usage
    assert command("one")[0] == 2
