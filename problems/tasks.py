"""Problems: the built-in generators, and files.

    source = load_problems("arithmetic")      # or "words", "logic", FILE.jsonl, owner/name on the hub
    source.train(seed=0, start=32, count=16)  # problems 32..47 of that seed's endless stream
    source.heldout(100)                       # a fixed set that training never sees

A source keeps no position: problem i of a stream depends on (seed, i) alone, so a resumed run goes on exactly where
it stopped. What is held out is decided by a problem's *text*, so no seed leaks an evaluation problem into training.

Built in: `arithmetic`, chains of single digits such as 9+8-4 and hopeless products, for the tiny model; `words`, word
problems from one tiny step (level 1) to four larger ones (level 5); `logic`, deductions: true, false or unknown?
Left out: mixtures of sources, data that does not fit into memory, and the request to box the answer (see masa.py).
"""

import importlib
import json
import operator
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Problem:
    text: str  # what the model is asked
    answer: str  # the reference answer: what \boxed{} should hold
    level: int = 0  # difficulty; results are read by level. 0: not known
    kind: str = "free"  # of answer: "free", "choice" (a letter) or "truth" (true, false or unknown)


class ProblemError(ValueError):
    """Bad input; says which file and line (or option), what was found and what was expected."""


Make = Callable[[random.Random, int], Problem]  # makes a problem of that level, 1 to 5 (arithmetic has a sixth)


def is_held_out(problem: Problem) -> bool:
    """One text in ten is kept for evaluation, whichever source, seed or file it comes from."""
    return zlib.crc32(problem.text.encode("utf-8", "surrogatepass")) % 10 == 0  # hash() differs between processes


# ------------------------------------------------------------------------------- arithmetic

TERM_WEIGHTS = {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0}  # how often a chain has so many terms
PRODUCT_LEVEL = 6  # a chain's level is its number of steps, 1..5


class Step(NamedTuple):
    total_before: int
    op_sign: str  # "+" or "-"
    digit: int
    total_after: int
    notion: str  # "carry", "borrow", "flip", or "" for an ordinary step


def notion_of(total: int, op_sign: str, digit: int) -> str:
    """The hard thing in a step, seen on magnitudes: 9+8 and -7-5 carry, 17-8 borrows, 3-8 flips."""
    if total == 0 or (total > 0) == (op_sign == "+"):  # the magnitude grows
        return "carry" if abs(total) % 10 + digit >= 10 else ""
    if abs(total) < digit:
        return "flip"  # the sign changes
    return "borrow" if abs(total) % 10 < digit else ""


def chain_steps(text: str) -> list[Step]:
    """Steps: "9+8-4" -> [Step(9, "+", 8, 17, "carry"), Step(17, "-", 4, 13, "")]. ProblemError if it is no chain."""
    if not re.fullmatch(r"[0-9]([+-][0-9])*", text):
        raise ProblemError(f"found {text!r}, expected a chain of single digits such as 9+8-4")
    total, steps = int(text[0]), []
    for op_sign, digit in zip(text[1::2], map(int, text[2::2]), strict=True):
        after = total + digit if op_sign == "+" else total - digit
        steps.append(Step(total, op_sign, digit, after, notion_of(total, op_sign, digit)))
        total = after
    return steps


def make_arithmetic(rng: random.Random, level: int) -> Problem:
    if level == PRODUCT_LEVEL:
        left, right = rng.randint(111, 999), rng.randint(111, 999)
        return Problem(f"{left}*{right}", str(left * right), level)
    text = "".join(f"{rng.choice('+-')}{rng.randint(1, 9)}" for _ in range(level + 1))[1:]
    return Problem(text, str(chain_steps(text)[-1].total_after), level)


# ------------------------------------------------------------------------------- words

RULES: dict[str, Callable[[Fraction, int], Fraction]] = {  # what a sentence's number n does to its story's value t
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "rest": operator.mod,
    "given": lambda t, n: t,  # the sentence states t*n, and t is left to be found
    "off": lambda t, n: t * (100 - n) / 100,
    "twice": lambda t, n: 2 * t,
    "both": lambda t, n: t + (t + n),
    "hours": lambda t, n: 60 * t + n,
    "change": lambda t, n: 10 * t - n,
}
# A story a block, a sentence a line: rule | sentence | question, unless the question before still fits. The first
# sentence is always told and starts from a number {m}; a level adds some of the others, in this order. {mn} is m*n,
# {tens} is 10*m; {who} and {other} are the first two people, {next} is somebody new, {last} whoever was so before.
STORIES = """
* | {who} buys {m} {things} for ${n} each. | How many dollars does {who} pay?
+ | {who} also takes a bag for ${n}.
- | A coupon takes ${n} off the bill.
off | Finally the shop takes {n}% off the whole bill.

change | {who} has ${tens} and spends ${n} on lunch. | How many dollars does {who} have left?
+ | Then {other} pays {who} a debt of ${n}. | How many dollars does {who} have now?
- | Then {who} spends ${n} on a book. | How many dollars does {who} have now?
/ | {who} shares this money equally among {n} children. | How many dollars does each child get?

* | {who} cycles for {m} hours at {n} km per hour. | How many km does {who} travel in all?
+ | Then {who} walks {n} km.
* | {who} makes this same trip {n} times.
/ | {other} drives the same total distance at {n} km per hour. | How many hours does {other} drive?

+ | The house of {who} is {m} years old. That of {next} is {n} years older. | How old is the house of {next}?
twice | The house of {next} is twice as old as that of {last}. | How old is the house of {next}?
- | The house of {next} is {n} years younger than that of {last}. | How old is the house of {next}?
+ | {n} years go by. | How old is the house of {last} then?

both | {who} has {m} {things} and {other} has {n} more than {who}. | How many {things} do they have together?
- | They give away {n} of their {things}. | How many {things} do they have together now?
+ | Then they find {n} more {things}. | How many {things} do they have together now?
rest | They put all of them into bags of {n}, as many full bags as possible. | How many {things} are left over?

given | {who} has {mn} {things}, and 1/{n} of them are red. | How many red {things} does {who} have?
+ | Then {who} gets {n} more red {things}. | How many red {things} does {who} have now?
- | {other} takes away {n} of the red {things}. | How many red {things} does {who} have now?
/ | {who} puts 1/{n} of the red {things} into a jar. | How many {things} are in the jar?

* | {m} painters need {n} days to paint a hall. | How many days would one painter need for all this?
+ | A second hall is as much work as one painter does in {n} days.
- | But {n} painters have already worked for one day. | How many days would one painter need for the rest?
/ | Now {n} painters do this work together, all equally fast. | How many days do they need?

hours | A machine runs for {m} hours and {n} minutes. | How many minutes does it run in all?
+ | Then it runs for {n} minutes more.
* | It does all this {n} times.
- | For {n} of these minutes it only warms up. | For how many minutes does it really work?
"""
FAMILIES = [[(line.split(" | ") + [""])[:3] for line in block.split("\n")] for block in STORIES.strip().split("\n\n")]
WORD_LEVELS = {1: (0, 5), 2: (1, 9), 3: (2, 12), 4: (2, 30), 5: (3, 80)}  # sentences added, largest number
NAMES = "Anna Ben Clara David Emma Farid Grace Hugo Ines Jonas Kira Leo Maya Noah Olga".split()
THINGS = "apples beads books buttons cards marbles pencils shells stamps stickers".split()


def make_words(rng: random.Random, level: int, family: int | None = None) -> Problem:
    """A word problem; numbers are drawn again until every value on the way is a whole one from 1 to 20,000."""
    first, *others = FAMILIES[rng.randrange(len(FAMILIES)) if family is None else family]
    added, largest = WORD_LEVELS[level]
    story = [first, *(others[i] for i in sorted(rng.sample(range(len(others)), added)))]
    people, things = rng.sample(NAMES, len(story) + 1), rng.choice(THINGS)
    values = [Fraction(0)]
    while not all(1 <= value <= 20_000 and value.denominator == 1 for value in values):
        texts, question, values = [], "", [Fraction(rng.randint(2, largest))]
        for i, (rule, text, new_question) in enumerate(story):
            m, n = values[-1], rng.choice((10, 20, 25, 50) if rule == "off" else range(2, largest + 1))
            slots = {"m": str(m), "n": str(n), "mn": str(m * n), "tens": str(10 * m), "things": things}
            slots |= {"who": people[0], "other": people[1], "last": people[i], "next": people[i + 1]}
            texts.append(text.format(**slots))
            question = new_question.format(**slots) or question
            values.append(RULES[rule](m, n))
    return Problem(" ".join([*texts, question]), str(values[-1]), level)


# ------------------------------------------------------------------------------- logic

PLAIN = "brave calm careful clever gentle honest hungry kind lucky patient quick quiet tall".split()
MADE_UP = "bliv dorny flumic glim jorpy kazzy merv noxic plimsy quorn sproy tolvic vasky".split()


def make_logic(rng: random.Random, level: int) -> Problem:
    """A chain of `level` rules from what somebody is to the claim, and as many rules that lead elsewhere.

    No property is the conclusion of two rules, and nothing follows from the claim. So the whole chain settles it;
    with a gap, or about the wrong person, either value is consistent with all that is said: unknown.
    """
    words = rng.sample(rng.choice((PLAIN, MADE_UP)), 2 * level + 2)
    chain, extras, gap = words[: level + 1], words[level + 1 : -1], words[-1]
    who, other = rng.sample(NAMES, 2)
    known, known_of_other = chain[0], rng.choice([*extras, gap])
    holds, negated = rng.random() < 0.5, rng.random() < 0.5  # both, or "nobody" would give the answer away
    who_is = ["Everyone who is"] * (level - 1) + ["Everyone who is" if holds else "Nobody who is"]
    rules = [f"{whoever} {given} is {then}." for whoever, (given, then) in zip(who_is, pairwise(chain), strict=True)]
    answer = rng.choice(("settled", "settled", "unknown"))
    if answer == "settled":
        answer = "true" if holds != negated else "false"
    elif rng.random() < 0.5:
        known, known_of_other = known_of_other, known
    else:
        i = rng.randrange(level)
        rules[i] = rules[i].replace(f"who is {chain[i]} ", f"who is {gap} ")
    for i, extra in enumerate(extras):
        rules.append(f"{rng.choice(('Everyone', 'Nobody'))} who is {rng.choice(chain[:-1] + extras[:i])} is {extra}.")
    texts = [*rules, f"{who} is {known}.", f"{other} is {known_of_other}."]
    rng.shuffle(texts)
    claim = f"{who} is {'not ' if negated else ''}{chain[-1]}"
    return Problem(" ".join([*texts, f"Is it true, false or unknown that {claim}?"]), answer, level, "truth")


# ------------------------------------------------------------------------------- files and the hub

TEXT_KEYS, ANSWER_KEYS = ("problem", "question", "prompt"), ("answer", "ground_truth", "solution")  # the surest first
SUFFIXES = (".jsonl", ".json", ".parquet")


def last_boxed(text: str) -> str:
    r"""What the last \boxed{...} holds, braces nesting: "so \boxed{\frac{1}{2}}." -> "\frac{1}{2}"."""
    _, mark, rest = text.rpartition(r"\boxed{")
    depths = accumulate((character == "{") - (character == "}") for character in rest)
    return next((rest[:i] for i, depth in enumerate(depths) if mark and depth < 0), "")


def text_in(record: dict[str, Any]) -> str:
    """The problem of a record, "" if there is none; of a chat, what its user said last."""
    found = next((record[key] for key in TEXT_KEYS if record.get(key)), "")
    if isinstance(found, list):
        turns = [turn for turn in found if isinstance(turn, dict) and turn.get("role") == "user"]
        found = turns[-1].get("content") if turns else ""
    return found.strip() if isinstance(found, str) else ""


def answer_in(record: dict[str, Any]) -> str:
    r"""GSM8K's "#### 72", MATH's "\boxed{72}", or the value itself unless it is a solution's prose; "" if none."""
    nested = record.get("reward_model")  # where verl and DAPO keep the answer
    record = {**nested, **record} if isinstance(nested, dict) else record
    for key, value in ((key, record.get(key)) for key in ANSWER_KEYS):
        text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, int | float) else ""
        if "####" in text:
            text = text.rpartition("####")[2]
        elif r"\boxed{" in text or key == "solution":
            text = last_boxed(text)
        if text.strip():
            return text.strip()
    return ""


def read_problem(record: Any, where: str) -> Problem:
    """A record as a problem, its answer "" if it was left blank; `where` ("FILE:LINE") begins a message."""
    if not isinstance(record, dict):
        raise ProblemError(f"{where}: found a {type(record).__name__}, expected an object")
    text, answer = text_in(record), answer_in(record)
    blank = any(record.get(key) == "" or r"\boxed{}" in str(record.get(key)) for key in ANSWER_KEYS)  # MATH has one
    if not (text and (answer or blank)):
        what, keys = ("an answer (in a solution: #### or \\boxed)", ANSWER_KEYS) if text else ("a problem", TEXT_KEYS)
        raise ProblemError(f"{where}: found the keys {list(record)}, expected {what} under {', '.join(keys)}")
    level = re.search(r"\d+", str(record.get("level")))  # 4, "4" or "Level 4"
    kind = record["kind"] if record.get("kind") in ("choice", "truth") else "free"
    return Problem(text, answer, int(level[0]) if level else 0, kind)


def read_file(name: str) -> Iterator[tuple[str, Any]]:
    """(where, record) for each record of a .jsonl or .json file."""
    number = 1
    try:
        text = Path(name).read_bytes().decode("utf-8-sig")  # -sig: there may be a byte order mark
        if name.endswith(".jsonl"):
            for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028
                if line.strip():
                    yield f"{name}:{number}", json.loads(line)
            return
        found = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long, brackets too deep
        place = f"{name}:{number + getattr(error, 'lineno', 1) - 1}"
        raise ProblemError(f"{place}: found {getattr(error, 'msg', error)}, expected JSON in UTF-8") from error
    lists = [value for value in (found.values() if isinstance(found, dict) else [found]) if isinstance(value, list)]
    if len(lists) != 1:
        raise ProblemError(f"{name}: found {len(lists)} lists, expected one, or an object that holds one")
    yield from ((f"{name}: item {number}", record) for number, record in enumerate(lists[0], 1))


def read_rows(name: str) -> Iterator[tuple[str, Any]]:
    """(where, record) for each row of FILE.parquet, or of owner/name[/config][:split] on the hub."""
    offline = "Without a network, fetch the data elsewhere and give it as a local .jsonl file."
    try:
        datasets = importlib.import_module("datasets")
        if name.endswith(".parquet"):
            rows = datasets.load_dataset("parquet", data_files=name, split="train")
        else:
            place, _, split = name.partition(":")
            rows = datasets.load_dataset(*re.findall("[^/]+/[^/]+|[^/]+", place), split=split or "train")
    except ImportError as error:
        raise ProblemError(f"{name}: needs the package datasets: pip install datasets. {offline}") from error
    except Exception as error:  # files, networks and the hub fail in many ways
        raise ProblemError(f"{name}: could not be loaded ({type(error).__name__}: {error}). {offline}") from error
    yield from ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))


# ------------------------------------------------------------------------------- sources


@dataclass
class Source:
    """Endless seeded training problems, and a fixed held-out set."""

    name: str
    problem: Callable[[int, int], Problem]  # (seed, index) -> that problem of the seed's training stream
    held_out: Callable[[int, bool], Iterable[Problem]]  # (seed, whole) -> different problems, see heldout
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> how many problems of a file were dropped

    def train(self, seed: int, start: int, count: int) -> list[Problem]:
        """Problems start .. start+count-1 of this seed's stream."""
        return [self.problem(seed, index) for index in range(start, start + count)]

    def print_skipped(self) -> None:
        """Say how many problems of a file were dropped, and why."""
        for reason, count in self.skipped.items():
            print(f"{self.name}: {count} problems left out ({reason})")

    def heldout(self, count: int | None, seed: int = 0, whole: bool = False) -> list[Problem]:
        """`count` different problems, or all (None), that training never sees; `whole`: of a file, seen or not."""
        return list(islice(self.held_out(seed, whole), count))


def generated_source(name: str, make: Make, weights: dict[int, float]) -> Source:
    """Problems made on the spot by make(rng, level), levels drawn by their weights."""

    def draw(rng: random.Random) -> Problem:
        return make(rng, *rng.choices(list(weights), list(weights.values())))

    def problem(seed: int, index: int) -> Problem:
        rng = random.Random(f"train {seed} {index}")
        return next(problem for problem in iter(lambda: draw(rng), None) if not is_held_out(problem))

    def held_out(seed: int, whole: bool) -> Iterator[Problem]:
        rng, seen, misses = random.Random(f"held out {seed}"), set[Problem](), 0
        while misses < 2000:  # there may be few: of two-term chains only about sixteen
            fresh = is_held_out(problem := draw(rng)) and problem not in seen
            misses = 0 if fresh else misses + 1
            if fresh:
                seen.add(problem)
                yield problem

    return Source(name, problem, held_out)


def listed_source(name: str, problems: Sequence[Problem], levels: Sequence[int] | None) -> Source:
    """The different problems of a file, each epoch in an order of its own."""
    answered = [problem for problem in problems if problem.answer]
    distinct = {problem.text: problem for problem in reversed(answered)}.values()  # the first of a text stays
    chosen = [problem for problem in distinct if levels is None or problem.level in levels]
    if not chosen:
        found = f"the levels {sorted({problem.level for problem in distinct})}" if distinct else "no problem"
        raise ProblemError(f"{name}: found {found}, expected {levels or 'at least one'}")
    # The held-out tenth first, whatever the order in the file. At least one problem stays on each side, if it can.
    chosen.sort(key=lambda problem: (not is_held_out(problem), problem.text))
    count = min(max(sum(map(is_held_out, chosen)), 1), len(chosen) - 1)
    held, trained = chosen[:count], chosen[count:]

    @lru_cache(maxsize=4)
    def epoch_problems(seed: int, epoch: int) -> list[Problem]:
        return random.Random(f"epoch {seed} {epoch}").sample(trained, len(trained))

    def problem(seed: int, index: int) -> Problem:
        return epoch_problems(seed, index // len(trained))[index % len(trained)]

    def held_out(seed: int, whole: bool) -> Iterable[Problem]:
        among = chosen if whole else held
        if not among:
            raise ProblemError(f"{name}: found one problem, expected two or more to hold one out")
        return random.Random(f"held out {seed}").sample(among, len(among))

    skipped = Counter({"blank answer": len(problems) - len(answered), "duplicate": len(answered) - len(distinct)})
    return Source(name, problem, held_out, +(skipped + Counter({"other level": len(distinct) - len(chosen)})))


GENERATORS: dict[str, Make] = {"arithmetic": make_arithmetic, "words": make_words, "logic": make_logic}


def level_weights(name: str, hopeless: float, levels: Sequence[int] | None) -> dict[int, float]:
    """How often a built-in source draws each level, of those wanted."""
    if not 0 <= hopeless <= 1:
        raise ProblemError(f"hopeless: found {hopeless}, expected a share from 0 to 1")
    weights = dict.fromkeys(range(1, 6), 1.0)
    if name == "arithmetic":
        share = (1 - hopeless) / sum(TERM_WEIGHTS.values())
        weights = {**{terms - 1: share * w for terms, w in TERM_WEIGHTS.items()}, PRODUCT_LEVEL: hopeless}
    chosen = {level: w for level, w in weights.items() if w > 0 and (levels is None or level in levels)}
    if not chosen:
        raise ProblemError(f"{name}: found the levels {[k for k, w in weights.items() if w > 0]}, expected {levels}")
    return chosen


def load_problems(name: str, *, hopeless: float = 0.15, levels: Sequence[int] | None = None) -> Source:
    """A built-in source, a .jsonl, .json or .parquet file, or owner/name[/config][:split] on the hub.

    `hopeless` is the share of products in "arithmetic"; `levels`, if given, are the only ones kept. Raises
    ProblemError for a source that does not exist, is not understood or is empty.
    """
    if name in GENERATORS:
        return generated_source(name, GENERATORS[name], level_weights(name, hopeless, levels))
    path = Path(name)
    if path.suffix in SUFFIXES and not path.is_file():
        raise ProblemError(f"{name}: found no such file")
    if path.suffix not in SUFFIXES and (path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+){1,2}(:.+)?", name)):
        there_is = f"{', '.join(GENERATORS)}, a file ending in {', '.join(SUFFIXES)}, or owner/name[/config][:split]"
        raise ProblemError(f"found {name!r}, expected {there_is} on the hub")
    read = read_file if path.suffix in (".jsonl", ".json") else read_rows
    return listed_source(name, [read_problem(record, where) for where, record in read(name)], levels)


if __name__ == "__main__":
    print(*chain_steps("9+8-4+7"), sep="\n")
    for name in GENERATORS:
        print(f"\n{name}")
        for problem in load_problems(name).train(seed=0, start=0, count=6):
            print(f"  level {problem.level}: {problem.text}  ->  {problem.answer}")
