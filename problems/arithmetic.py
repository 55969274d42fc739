"""Generate arithmetic for the tiny model: chains of single digits such as 9+8-4, and products that are beyond it.

A chain of n steps has level n, from 1 to 5. Some steps are hard (see notion_of), so long chains fail more often.
Products such as 437*862, of level 6, are hopeless for the tiny model. They give predictive gating and early cutoff
something to find. "arithmetic:0.3" sets their share of all problems, which is 0.15 otherwise.
"""

import random
import re
from typing import NamedTuple

from problems.source import Problem, ProblemError

PRODUCT_LEVEL = 6
PRODUCT_SHARE = 0.15  # of the problems drawn


class Step(NamedTuple):
    total_before: int
    op_sign: str  # "+" or "-"
    digit: int
    total_after: int
    notion: str  # "carry", "borrow", "flip", or "" for an easy step


def notion_of(total: int, op_sign: str, digit: int) -> str:
    """Name what is hard in a step, going by magnitudes: 9+8 and -7-5 carry, 17-8 borrows, 3-8 flips the sign."""
    if total == 0 or (total > 0) == (op_sign == "+"):  # the magnitude grows
        return "carry" if abs(total) % 10 + digit >= 10 else ""
    if abs(total) < digit:
        return "flip"
    return "borrow" if abs(total) % 10 < digit else ""


def chain_steps(text: str) -> list[Step]:
    """Work out a chain: "9+8-4" -> [Step(9, "+", 8, 17, "carry"), Step(17, "-", 4, 13, "")].

    Raises ProblemError if the text is not a chain of single digits.
    """
    if not re.fullmatch(r"[0-9]([+-][0-9])*", text):
        raise ProblemError(f"found {text!r}, expected a chain of single digits such as 9+8-4")
    total, steps = int(text[0]), []
    for op_sign, digit in zip(text[1::2], map(int, text[2::2]), strict=True):
        after = total + digit if op_sign == "+" else total - digit
        steps.append(Step(total, op_sign, digit, after, notion_of(total, op_sign, digit)))
        total = after
    return steps


def level_weights(setting: str) -> dict[int, float]:
    """Return how often to draw each level, where `setting` is the share of products as text, or "" for the default."""
    try:
        share = float(setting or PRODUCT_SHARE)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ProblemError(f"arithmetic:{setting}: found {setting!r}, expected a share of products from 0 to 1")
    return dict.fromkeys(range(1, PRODUCT_LEVEL), (1 - share) / 5) | {PRODUCT_LEVEL: share}


def make(rng: random.Random, level: int) -> Problem:
    """Draw a chain of `level` steps, or a product of two three-digit numbers."""
    if level == PRODUCT_LEVEL:
        left, right = rng.randint(111, 999), rng.randint(111, 999)
        return Problem(f"{left}*{right}", str(left * right), level)
    text = "".join(f"{rng.choice('+-')}{rng.randint(1, 9)}" for _ in range(level + 1))[1:]
    return Problem(text, str(chain_steps(text)[-1].total_after), level)
