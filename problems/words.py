"""Generate word problems, from one small step (level 1) to four steps with larger numbers (level 5)."""

import operator
import random
from collections.abc import Callable
from fractions import Fraction

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
# One block is one family of stories. A line holds: rule | sentence | question, if the previous question no longer fits.
# The first sentence is always told and starts from a number {m}; a level adds some of the others, in this order. {mn}
# is m*n, {tens} is 10*m. {who} and {other} are the first two people, {next} is a new one, {last} the one before.
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
