"""Generate deductions: does a claim follow from some rules and facts, is it refuted, or is it unknown?"""

import random
from itertools import pairwise

from problems.source import Problem
from problems.words import NAMES

PLAIN = "brave calm careful clever gentle honest hungry kind lucky patient quick quiet tall".split()
MADE_UP = "bliv dorny flumic glim jorpy kazzy merv noxic plimsy quorn sproy tolvic vasky".split()


def make(rng: random.Random, level: int) -> Problem:
    """Draw a chain of `level` rules that leads from what a person is to the claim, and as many rules that distract.

    No two rules have the same conclusion, and nothing follows from the claim, so only the whole chain settles it. If
    the chain has a gap, or starts from what another person is, both values agree with the text: unknown.
    """
    words = rng.sample(rng.choice((PLAIN, MADE_UP)), 2 * level + 2)
    chain, extras, gap = words[: level + 1], words[level + 1 : -1], words[-1]
    who, other = rng.sample(NAMES, 2)
    known, known_of_other = chain[0], rng.choice([*extras, gap])
    holds, negated = rng.random() < 0.5, rng.random() < 0.5  # both random, or "Nobody" would give the answer away
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
