"""Generate word problems, from one small step (level 1) to four steps with larger numbers (level 5)."""

import operator
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from problems.source import Problem

RULES: dict[str, Callable[[Fraction, int], Fraction]] = {  # how the number n of a sentence changes the value t
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "rest": operator.mod,
    "given": lambda t, n: t,  # the sentence states t*n, and the solver has to find t
    "off": lambda t, n: t * (100 - n) / 100,
    "twice": lambda t, n: 2 * t,
    "both": lambda t, n: t + (t + n),
    "hours": lambda t, n: 60 * t + n,
    "change": lambda t, n: 10 * t - n,
}
# A block of words.txt is one family of stories. A line holds: rule | sentence | question, if the previous one no longer
# fits. The first sentence is always told and starts from a number {m}; a level adds some of the others, in this order.
# {mn} is m*n, {tens} is 10*m. {who} and {other} are the first two people, {next} is a new one, {last} the one before.
BLOCKS = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").strip().split("\n\n")
FAMILIES = [[(line.split(" | ") + [""])[:3] for line in block.split("\n")] for block in BLOCKS]
LEVELS = {1: (0, 5), 2: (1, 9), 3: (2, 12), 4: (2, 30), 5: (3, 80)}  # sentences added to the first, largest number
NAMES = "Anna Ben Clara David Emma Farid Grace Hugo Ines Jonas Kira Leo Maya Noah Olga".split()
THINGS = "apples beads books buttons cards marbles pencils shells stamps stickers".split()


def make(rng: random.Random, level: int, family: int | None = None) -> Problem:
    """Draw a word problem, of a random family by default.

    The numbers are drawn again until every intermediate value is an integer from 1 to 20,000.
    """
    first, *others = FAMILIES[rng.randrange(len(FAMILIES)) if family is None else family]
    added, largest = LEVELS[level]
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
