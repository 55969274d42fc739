"""Problems are right, reproducible and kept apart. Answers are worked out again here, from the text alone."""

import itertools
import json
import random
import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problems import arithmetic, files, words
from problems.arithmetic import chain_steps
from problems.source import GENERATORS, DataOptions, Problem, ProblemError, is_held_out, load_problems, main


def problems_of(name: str, count: int, **options) -> list[Problem]:
    return load_problems(name, **options).train(seed=0, start=0, count=count)


# Each total with what made it hard. 3-8-7 adds 5 and 7 below zero, 3-8-7+4 takes 4 from 12; from zero no step is hard.
CHAINS = """9+8-4+7 17carry 13 20carry/3-8 -5flip/3-8-7 -5flip -12carry/3-8-7+4 -5flip -12carry -8borrow/
3-8+9 -5flip 4flip/9+8-8 17carry 9borrow/5-5 0/5-5-7 0 -7/5-5+7 0 7/1-6+5-9 -5flip 0 -9/9+1-1 10carry 9borrow/4"""


@pytest.mark.parametrize("chain", CHAINS.split("/"))
def test_chains_worked_by_hand(chain):
    text, *steps = chain.split()
    assert [f"{step.total_after}{step.notion}" for step in chain_steps(text)] == steps


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.lists(st.booleans(), min_size=7, max_size=7))
def test_chain_totals_are_signed_sums(digits, signs):
    terms = [digits[0]] + [digit if plus else -digit for digit, plus in zip(digits[1:], signs, strict=False)]
    steps = chain_steps(str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:]))
    assert [step.total_after for step in steps] == list(itertools.accumulate(terms))[1:]
    assert [step.total_before for step in steps] == list(itertools.accumulate(terms))[:-1]
    for step in steps:  # another way to tell what is hard: the tens digit or the sign changes
        before, after = step.total_before, step.total_after
        assert (step.notion == "flip") == (before * after < 0)
        if before * after > 0:
            assert (step.notion in ("carry", "borrow")) == (abs(before) // 10 != abs(after) // 10)
            assert step.notion != ("borrow" if abs(after) > abs(before) else "carry")


@pytest.mark.parametrize("text", ["", "12+3", "437*862", "+3", "3+", "3 + 4", "3+-4", "٣+4", "3+4\n"])
def test_other_texts_are_refused_as_chains(text):
    with pytest.raises(ProblemError, match="expected a chain of single digits"):
        chain_steps(text)


def test_arithmetic_answers_and_levels():
    problems = problems_of("arithmetic", 400)
    for problem in problems:
        if problem.level == arithmetic.PRODUCT_LEVEL:
            left, right = problem.text.split("*")
            assert len(left) == len(right) == 3 and int(problem.answer) == int(left) * int(right)
        else:
            terms = re.findall(r"[+-]?[1-9]", problem.text)
            assert "".join(terms) == problem.text and problem.level == len(terms) - 1
            assert problem.answer == str(sum(map(int, terms)))
    counts = Counter(problem.level for problem in problems)
    assert set(counts) == {1, 2, 3, 4, 5, 6} and 40 <= counts[6] <= 80  # 15% of 400 is 60
    assert any(problem.answer.startswith("-") for problem in problems)


def test_the_name_sets_the_share_of_products():
    for share, least, most in ((0, 0, 0), (0.3, 45, 75), (1, 200, 200)):
        assert least <= sum("*" in problem.text for problem in problems_of(f"arithmetic:{share}", 200)) <= most
    assert problems_of("arithmetic:0.15", 50) == problems_of("arithmetic", 50)


BY_HAND = [  # the start of the problem for seed = family at level 5, and its answer, worked out by hand
    ("Emma buys 47 shells for $76 each.", "2828"),  # 47*76 = 3572, +29, -66 = 3535, less a fifth
    ("Ben has $590 and spends $30 on lunch.", "12"),  # 560, +69, -5 = 624, shared by 52
    ("Farid cycles for 5 hours at 12 km per hour.", "152"),  # 60 + 16 = 76, ten times, at 5 km per hour
    ("The house of Olga is 79 years old.", "201"),  # 82, 164, 129, 201
    ("Leo has 30 beads and Grace has 68 more than Leo.", "32"),  # 30 + 98 = 128, 58, 106 = 2*37 + 32
    ("Maya has 154 apples, and 1/2 of them are red.", "11"),  # 77, 155, 110, a tenth
    ("79 painters need 42 days to paint a hall.", "238"),  # 3318 + 20 - 6 = 3332 = 14*238
    ("A machine runs for 13 hours and 57 minutes.", "8888"),  # 837 + 55 = 892, ten times, less 32
]


@pytest.mark.parametrize("family", range(len(words.FAMILIES)))
def test_stories_worked_by_hand(family):
    beginning, answer = BY_HAND[family]
    problem = words.make(random.Random(family), 5, family)
    assert problem.text.startswith(beginning) and problem.answer == answer


P, N = r"[A-Z][a-z]+", r"(\d+)"
T = "(?:apples|beads|books|buttons|cards|marbles|pencils|shells|stamps|stickers)"
READINGS = {  # an independent reader: what sentences do to the value t before them, with the numbers a and b in them
    lambda t, a, b: a * b: rf"""{P} buys {N} {T} for \${N} each; {P} cycles for {N} hours at {N} km per hour;
        {N} painters need {N} days to paint a hall""",
    lambda t, a: t + a: rf"""{P} also takes a bag for \${N}; Then {P} pays {P} a debt of \${N}; Then {P} walks {N} km;
        That of {P} is {N} years older; {N} years go by; Then they find {N} more {T}; Then {P} gets {N} more red {T};
        A second hall is as much work as one painter does in {N} days; Then it runs for {N} minutes more""",
    lambda t, a: t - a: rf"""A coupon takes \${N} off the bill; Then {P} spends \${N} on a book;
        The house of {P} is {N} years younger than that of {P}; They give away {N} of their {T};
        {P} takes away {N} of the red {T}; But {N} painters have already worked for one day;
        For {N} of these minutes it only warms up""",
    lambda t, a: t * a: rf"{P} makes this same trip {N} times; It does all this {N} times",
    lambda t, a: t / a: rf"""{P} shares this money equally among {N} children; {P} puts 1/{N} of the red {T} into a jar;
        {P} drives the same total distance at {N} km per hour;
        Now {N} painters do this work together, all equally fast""",
    lambda t, a: t - t * a / 100: rf"Finally the shop takes {N}% off the whole bill",
    lambda t, a, b: a - b: rf"{P} has \${N} and spends \${N} on lunch",
    lambda t, a: a: rf"The house of {P} is {N} years old",
    lambda t: 2 * t: rf"The house of {P} is twice as old as that of {P}",
    lambda t, a, b: a + a + b: rf"{P} has {N} {T} and {P} has {N} more than {P}",
    lambda t, a: t - a * (t // a): rf"They put all of them into bags of {N}, as many full bags as possible",
    lambda t, a, b: Fraction(a, b): rf"{P} has {N} {T}, and 1/{N} of them are red",
    lambda t, a, b: 60 * a + b: rf"A machine runs for {N} hours and {N} minutes",
}
READERS = [(sentence.strip(), rule) for rule, sentences in READINGS.items() for sentence in sentences.split(";")]


def read_story(text: str) -> Fraction:
    value = Fraction(0)
    *sentences, question = re.split(r"(?<=[.?]) ", text)
    assert re.fullmatch(r"(For )?(How|how) [^?]*\?", question)
    for sentence in sentences:
        ((match, rule),) = [(m, rule) for pattern, rule in READERS if (m := re.fullmatch(pattern + r"\.", sentence))]
        value = Fraction(rule(value, *map(int, match.groups())))
        assert value > 0 and value.denominator == 1  # no debts and no fractions
    return value


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("family", range(len(words.FAMILIES)))
def test_answers_follow_from_the_stories(family, level):
    for seed in range(15):
        problem = words.make(random.Random(seed), level, family)
        assert problem.answer == str(read_story(problem.text))
        assert problem.level == level and "{" not in problem.text
        if level == 1:
            assert int(problem.answer) <= 305


def test_people_are_introduced_before_they_are_referred_to():
    for problem in problems_of("words", 200):
        owners = re.findall(r"house of (\w+) is|That of (\w+) is|that of (\w+)\.", problem.text)
        for i, (_, _, referred) in enumerate(owners):
            assert not referred or referred in {name for names in owners[:i] for name in names[:2]}


def answer_by_enumeration(text: str) -> str:
    """Try every combination of properties that the text allows its subject to have."""
    name, negation, claim = re.search(r"unknown that (\w+) is (not )?(\w+)\?$", text).groups()
    rules = re.findall(r"(Everyone|Nobody) who is (\w+) is (\w+)\.", text)
    known = {word for who, word in re.findall(r"(\w+) is (\w+)\.", text) if who == name}
    properties = sorted({word for _, a, b in rules for word in (a, b)} | known | {claim})
    seen = set()
    for values in itertools.product((False, True), repeat=len(properties)):
        person = dict(zip(properties, values, strict=True))
        if all(person[word] for word in known) and all(
            person[then] == (who == "Everyone") for who, given, then in rules if person[given]
        ):
            seen.add(person[claim] != bool(negation))
    assert seen, "the text contradicts itself"
    return "unknown" if len(seen) == 2 else str(seen.pop()).lower()


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_logic_answers_by_enumeration(level):
    for problem in problems_of("logic", 12 if level == 5 else 40, levels=(level,)):
        assert problem.answer == answer_by_enumeration(problem.text), problem.text
        assert len(re.findall("Everyone|Nobody", problem.text)) == 2 * level
        assert problem.kind == "truth" and problem.level == level


def test_logic_answers_are_balanced_and_no_word_gives_them_away():
    problems = problems_of("logic", 900)
    counts = Counter(problem.answer for problem in problems)
    assert all(240 <= counts[answer] <= 360 for answer in ("true", "false", "unknown"))
    for sign in ("is not", "Nobody"):
        with_sign = Counter(p.answer for p in problems if sign in p.text.split("?")[0])
        assert max(with_sign.values()) < 0.45 * with_sign.total()


@pytest.mark.parametrize("name", GENERATORS)
def test_streams_depend_on_the_seed_alone_and_avoid_what_is_held_out(name):
    source = load_problems(name)
    stream, held = source.train(seed=3, start=0, count=300), source.heldout(60)
    assert load_problems(name).train(seed=3, start=20, count=10) == stream[20:30]
    assert load_problems(name).train(seed=4, start=0, count=300) != stream
    assert load_problems(name).heldout(20) == held[:20]
    assert len({problem.text for problem in held}) == 60
    assert all(map(is_held_out, held)) and not any(map(is_held_out, stream))


def test_streams_are_the_same_in_every_process_and_version():
    assert [problem.text for problem in problems_of("arithmetic", 3)] == ["3+1", "5-8-4", "4+3+7-5"]


def test_a_small_held_out_set_ends():
    held = load_problems("arithmetic", levels=(1,)).heldout(1000)
    every = [f"{a}{sign}{b}" for a in range(1, 10) for sign in "+-" for b in range(1, 10)]
    assert {p.text for p in held} <= {text for text in every if is_held_out(Problem(text, ""))}
    assert 5 < len(held) < 40


@pytest.mark.parametrize("name", GENERATORS)
def test_levels_filter(name):
    assert {problem.level for problem in problems_of(name, 40, levels=(1, 2))} == {1, 2}
    with pytest.raises(ProblemError, match=rf"--levels: found \(9,\), expected some of \[1, 2.*the levels of {name}"):
        load_problems(name, levels=(9,))


def test_chosen_levels():
    for levels, chosen in {"": None, "3": (3,), "1, 2,5": (1, 2, 5), "1,2,": (1, 2)}.items():
        assert DataOptions(levels=levels).chosen_levels == chosen
    for levels in ("a", "1-3", " ", "1.5"):
        with pytest.raises(ProblemError, match=f"levels: found '{levels}', expected numbers such as 1,2,3"):
            _ = DataOptions(levels=levels).chosen_levels


def write(path: Path, *records, encoding: str = "utf-8") -> str:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return str(path)


def records(count: int) -> list[dict]:
    return [{"problem": f"What is {i}+{i}?", "answer": str(2 * i), "level": i % 3} for i in range(count)]


def whole(name: str) -> list[Problem]:
    return load_problems(name).heldout(None, whole=True)


ANSWERS: list = [
    ({"answer": "5"}, "5"),
    ({"answer": True}, "true"),
    ({"answer": ["5"]}, "5"),
    ({"answer": [0.5]}, "0.5"),
]
ANSWERS += [({"answer": "She has 2*36 = <<72>>72.\n#### 72"}, "72"), ({"answer": "#### 1,072 "}, "1,072")]
ANSWERS += [({"answer": r"\text{(A)}"}, r"\text{(A)}"), ({"ground_truth": 0}, "0"), ({"ground_truth": -2.5}, "-2.5")]
ANSWERS += [({"solution": r"first \boxed{1}, so \boxed{\frac{1}{\sqrt{2}}}."}, r"\frac{1}{\sqrt{2}}")]
ANSWERS += [({"solution": r"first \boxed{1}, so \boxed{2"}, "1")]
ANSWERS += [({"solution": r"never closed \boxed{1", "ground_truth": 3}, "3")]
ANSWERS += [({"answer": "5", "solution": r"\boxed{6}", "ground_truth": "5.0"}, "5"), ({"answer": "['5']"}, "5")]
ANSWERS += [({"answer": r'["x \\in \u03c0"]'}, r"x \in π"), ({"answer": r'["\frac{1}{2}"]'}, r"\frac{1}{2}")]
ANSWERS += [({"answer": "", "solution": r"\boxed{6}"}, "6"), ({"answer": None, "ground_truth": "7"}, "7")]
ANSWERS += [({"reward_model": {"style": "rule", "ground_truth": "34"}}, "34")]
ANSWERS += [({key: "So \\boxed{5}.\n#### Check\n2 + 3 = 5"}, "5") for key in ("solution", "answer")]


@pytest.mark.parametrize("record, answer", ANSWERS)
def test_answers_in_records(tmp_path, record, answer):
    for key in ("problem", "question", "prompt"):
        assert whole(write(tmp_path / "a.jsonl", {key: "q"} | record)) == [Problem("q", answer)]


def test_levels_in_records(tmp_path):
    levels = (3, 3), ("4", 4), ("Level 5", 5), ("Level ?", 0), (None, 0), (2.0, 2), (True, 0), (-1, 0), ("AMC10", 0)
    for level, read in levels:
        record = {"problem": "q", "answer": "1", "level": level}
        assert whole(write(tmp_path / "a.jsonl", record)) == [Problem("q", "1", read)]


def test_chat_prompts_and_kinds(tmp_path):
    chat = [{"role": "system", "content": "In base 7:"}, {"role": "user", "content": "wie groß? 🙂"}]
    for turns, text in ((chat, "In base 7:\nwie groß? 🙂"), (chat[1:], "wie groß? 🙂")):
        record = {"prompt": turns, "answer": "B", "kind": "choice"}
        assert whole(write(tmp_path / "a.jsonl", record)) == [Problem(text, "B", 0, "choice")]
    with pytest.raises(ProblemError, match="in a chat: a list of one message of the user"):
        whole(write(tmp_path / "a.jsonl", {"prompt": [*chat, *chat[1:]], "answer": "B"}))


def test_jsonl_with_blank_lines_byte_order_mark_and_line_separators(tmp_path):
    lines = "", records(1)[0], "   ", {"problem": "x\u2028y", "answer": "1"}
    path = write(tmp_path / "a.jsonl", *lines, encoding="utf-8-sig")
    assert {problem.text for problem in whole(path)} == {"What is 0+0?", "x\u2028y"}


def test_what_is_in_a_file_decides_not_its_ending(tmp_path):
    lines, rows = [json.dumps(record) for record in records(20)], records(20)
    texts = ["\n".join(lines), lines[0], *(json.dumps(kept, indent=1) for kept in (rows, {"version": 1, "data": rows}))]
    for name in ("a.json", "a.jsonl"):
        for text, count in zip(texts, (20, 1, 20, 20), strict=True):
            (tmp_path / name).write_text(text)
            assert sorted(int(problem.answer) for problem in whole(str(tmp_path / name))) == [*range(0, 2 * count, 2)]


def test_csv(tmp_path):
    text = '\ufeffquestion, answer, level\r\n"a, ""b""\nc", "1,000", 2\r\n\r\nd,nan,\r\n'
    (tmp_path / "a.CSV").write_bytes(text.encode())
    assert whole(str(tmp_path / "a.CSV")) == [Problem('a, "b"\nc', "1,000", 2)]


def test_a_file_is_split_and_shuffled_by_epoch(tmp_path):
    source = load_problems(write(tmp_path / "a.jsonl", *records(50)))
    held, size = source.heldout(99), 50 - len(source.heldout(99))
    epochs = [source.train(seed=0, start=epoch * size, count=size) for epoch in range(2)]
    assert 0 < len(held) < 15 and all(map(is_held_out, held))
    for epoch in epochs:
        assert len({problem.text for problem in epoch}) == size  # each problem once per epoch
        assert not set(epoch) & set(held)
    assert epochs[0] != epochs[1] and epochs[0] != source.train(seed=1, start=0, count=size)
    assert source.train(0, size - 3, 6) == epochs[0][-3:] + epochs[1][:3]
    backwards = load_problems(write(tmp_path / "b.jsonl", *reversed(records(50))))
    assert backwards.train(0, 0, size) == epochs[0]  # the order in the file does not matter


@pytest.mark.parametrize("count", range(2, 8))
def test_small_files_keep_a_problem_on_each_side(tmp_path, count):
    source = load_problems(write(tmp_path / "a.jsonl", *records(count)))
    held, trained = set(source.heldout(99)), set(source.train(0, 0, 3 * count))
    assert held and trained and not held & trained and len(held | trained) == count


def test_a_file_of_generated_problems_has_some_of_both_sides(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["source.py", "arithmetic", "90"])
    main()
    path = tmp_path / "problems.jsonl"
    path.write_text(capsys.readouterr().out)
    source = load_problems(str(path))
    assert [len(path.read_text().splitlines()), len(source.heldout(None))] == [100, 10]
    assert all(map(is_held_out, source.heldout(None))) and not any(map(is_held_out, source.train(0, 0, 90)))


def test_a_single_problem_can_be_trained_on_but_not_held_out(tmp_path):
    source = load_problems(write(tmp_path / "a.jsonl", *records(1)))
    assert len(source.train(0, 0, 5)) == 5
    with pytest.raises(ProblemError, match="found one problem, expected two or more"):
        source.heldout(1)


def test_problems_left_out_are_counted(tmp_path, capsys):
    """MATH itself has a problem whose answer is an empty box. That must not keep anyone from using it."""
    blanks = [{"problem": "a", "answer": "", "solution": r"so \boxed{}."}, {"problem": "b", "solution": r"\boxed{}."}]
    unproved = (r"\text{proof}", "N/A", "not found", None)
    blanks += [{"problem": f"c {answer}", "answer": answer, "solution": "prose"} for answer in unproved]
    again = [{"problem": "What is  0+0?", "answer": "0"}, {"problem": "What is 0+0?", "answer": "1"}]
    path = write(tmp_path / "a.jsonl", *blanks, *records(30), *records(6), *again)
    source = load_problems(path, levels=(1,))
    reasons = {"blank answer": 6, "duplicate": 7, "with another answer than before": 1, "other level": 20}
    assert source.skipped == reasons
    source.print_skipped()
    assert "a.jsonl: 6 problems left out (blank answer)" in capsys.readouterr().out
    assert {problem.level for problem in source.train(0, 0, 20)} == {1}
    with pytest.raises(ProblemError, match=r"--levels: found \(7,\), expected some of \[0, 1, 2\]"):
        load_problems(path, levels=(7,))


GOOD = '{"problem": "q", "answer": "1"}'


FAULTS: dict[str, list[tuple[str | bytes, str]]] = {  # a file's content, and what the message says after its name
    "a.jsonl": [
        (f"{GOOD}\n\n{{broken\n", ":3: found Expecting property name"),
        (f"{GOOD}\n[1, 2]\n", ":2: found a list, expected an object"),
        (f'{GOOD}\n{{"problem": "q", "points": 3}}', ":2: found the keys .*points.* expected one answer"),
        ('{"problem": "q", "solution": "prose"}', ":1: .*expected one answer .*solution: #### or"),
        ('{"text": "q", "answer": "1"}', ":1: .*text.* under problem, question, prompt"),
        ('{"prompt": [], "answer": "1"}', ":1: .*expected a problem"),
        ('{"prompt": [{"role": "system", "content": "s"}], "answer": "1"}', ":1: .*expected a problem"),
        ('{"problem": "q", "answer": [1, 2]}', r":1: found \{'answer': \[1, 2\]\}, expected one answer"),
        ('{"problem": "q", "answer": {"value": 1}}', r":1: found \{'answer': \{'value': 1\}\}, expected one answer"),
        ('{"problem": "which?", "answer": 1, "choices": ["a", "b"]}', ":1: found choices"),
        ('{"question": "which?", "option_a": "1", "answer": "B"}', ":1: found option_a"),
        ('{"question": "who?", "passage": "They met.", "answer": "B"}', ":1: found passage"),
        ('{"question": "q", "answer": "6", "ground_truth": "5"}', ":1: found 5 and 6, expected one of these"),
        ('{"question": "q", "problem": "p", "answer": "6"}', ":1: found p and q, expected one of these"),
        ('{"problem": "q", "answer": "#### 5\\n\\nsure"}', ":1: .*expected one answer"),
        ('{"problem": "q", "answer": "#### Sum\\n5\\n#### End"}', ":1: .*expected one answer"),
        ('{"problem": "q", "answer": "First add.\\n\\nThen 7."}', ":1: .*expected one answer"),
        ('{"problem": "q", "answer": "<think>3+4</think>7"}', ":1: .*expected one answer"),
        (r'{"problem": "q", "answer": "\frac{1}{2}"}', ":1: found what is left of a LaTeX command"),
        (r'{"problem": "2 \times 3", "answer": "6"}', ":1: found what is left of a LaTeX command"),
        ('{"question": "How many?", "Body": "Tom has 5.", "answer": "5"}', ":1: found Body"),
        ('{"question": "How many?", "answer": "5 + 6 = 11. The answer is 11."}', ":1: .*expected one answer"),
        ("""{"problem": "q", "answer": "['5', '6']"}""", ":1: .*expected one answer"),
        ('{"problem": "q", "answer": "1", "answer": "2"}', ":1: found a key twice"),
        (r'{"problem": "q \ud83d", "answer": "1"}', ":1: found half of a surrogate pair"),
        ("\n  \n", ": found no problem, expected at least one"),
        ("[" * 100_000, ":1: found .*expected JSON"),
        ('{"problem": "q", "answer": ' + "1" * 5000 + "}", ":1: found .*expected JSON"),
        (b'{"problem": "gro\xdf", "answer": "1"}', ": found .*0xdf.*expected a file in UTF-8"),
    ],
    "a.json": [
        ("", ": found no problem, expected at least one"),
        ("[\n1,\n}", ":3: found"),
        ("[1]", ": item 1: found a int, expected an object"),
        ('{"a": [], "b": []}', ": found 2 lists, expected one"),
        ("3", ": found 0 lists, expected one"),
    ],
    "a.csv": [
        ('problem,answer\nq,"1,000"\nq, r,2\n', ":3: found 3 fields, expected one for each of problem, ans"),
        ("problem,answer\nq\n", ":2: found 1 fields"),
        ("problem,answer\nq,1\nproblem,answer\n", ":3: found the header again"),
        ("problem,answer,answer\nq,1,2\n", ":2: found 3 fields"),
        ('problem,answer\n"q,1\n', ":2: found unexpected end of data"),
        ("q;1\nr;2\n", r":2: found the keys \['q;1'\]"),
        (
            "prompt,answer\n\"[{'role': 'user', 'content': '1+1'}]\",2\n",
            ":2: .*in a chat: a list of one message of the user",
        ),
    ],
    "data/a.tsv": [("q\t1", "', expected")],  # an existing file is not a name on the hub
}


@pytest.mark.parametrize("name, content, message", [(name, *fault) for name in FAULTS for fault in FAULTS[name]])
def test_errors_in_files_name_the_place(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ProblemError, match=re.escape(name) + message):
        load_problems(name)


ANY_NAME = rf"expected {', '.join(GENERATORS)}, a file ending in \.jsonl.*owner/name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((f"arithmetic:{x}", f"^arithmetic:{x}: found '{x}', expected a share") for x in ("1.5", "-0.1", "nan", "x")),
        ("words:3", "words:3: found the setting '3', expected 'words' without one"),
        *((name, f"{name}: found no such file") for name in ("missing.jsonl", "data/missing.json", "missing.parquet")),
        *((name, ANY_NAME) for name in ("arithmetics", "", "a.tsv", "../x", "a/b/c/d", "https://host/a/b")),
    ],
)
def test_names_that_cannot_be_loaded(name, message):
    with pytest.raises(ProblemError, match=message):
        load_problems(name)


def fake_datasets(monkeypatch, load_dataset) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_hub_names(monkeypatch):
    calls = []
    fake_datasets(monkeypatch, lambda *args, **kwargs: calls.append((args, kwargs)) or records(20))
    assert [len(whole(name)) for name in ("o/n", "openai/gsm8k/main:test", "o/n:train[:5%]")] == [20] * 3
    assert [arguments for arguments, _ in calls] == [("o/n",), ("openai/gsm8k", "main"), ("o/n",)]
    assert [named for _, named in calls] == [{"split": split} for split in ("train", "test", "train[:5%]")]


def test_a_file_at_an_address_is_one_to_datasets(monkeypatch):
    fake_datasets(monkeypatch, lambda kind, data_files, split: [{"is": f"{kind} {data_files} {split}"}])
    assert [row for _, row in files.read_rows("https://a.b/c.json")] == [{"is": "json https://a.b/c.json train"}]


def test_without_datasets_the_message_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    for name, package in (("openai/gsm8k", "datasets"), (str(tmp_path / "a.parquet"), "pyarrow")):
        monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
        with pytest.raises(ProblemError, match=rf"pip install {package}.*Without a network.*local \.jsonl"):
            load_problems(name)


def test_errors_of_the_hub_and_of_its_rows_are_named(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    fake_datasets(monkeypatch, unreachable)
    with pytest.raises(ProblemError, match=r"o/n: could not be loaded \(ConnectionError: no route.*local \.jsonl"):
        load_problems("o/n")
    fake_datasets(monkeypatch, lambda *args, **kwargs: [*records(1), {"text": "x"}])
    with pytest.raises(ProblemError, match=r"o/n: row 2: found the keys \['text'\]"):
        load_problems("o/n")


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**record, "prompt": [{"role": "user", "content": record.pop("problem")}]} for record in records(20)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a [b].parquet")  # no pattern, just a name
    assert len(whole(str(tmp_path / "a [b].parquet"))) == 20


def test_the_checksum_of_a_file_depends_on_its_problems_and_not_on_their_order(tmp_path):
    rows = records(9)
    changed = [*rows[1:], rows[0] | {"answer": "9"}]
    sums = [load_problems(write(tmp_path / "a.jsonl", *some)).checksum for some in (rows, rows[::-1], changed)]
    assert sums[0] == sums[1] != sums[2]
