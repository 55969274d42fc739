"""Kinds of answers (free, the letter of a choice, a truth value, a Python literal), and majority votes among them."""

import ast
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from problems.verify import answers_match

MAX_LITERAL = 1000  # characters; Python's parser is known to survive anything so short
VOTE_PICKS = 32  # random choices of k solutions, over which majority votes are averaged
# What a model may write for each truth value, in lower case.
VERDICTS = {
    "true": ("true", "yes", "t"),
    "false": ("false", "no", "f"),
    "unknown": ("unknown", "uncertain", "undetermined", "cannot be determined", "neither"),
}


def same_answer(answer: str, truth: str, kind: str = "free") -> bool:
    """Compare two answers as their kind asks for.

    "free": mathematically the same.  "choice": the same letter A to H, whatever is written after it ("(B) Paris" is B).
    "truth": the same truth value, in any of the words of VERDICTS.  "literal": equal as Python compares values, so that
    [1,"a"] is [1, 'a'] and a word without quotes is no string.
    """
    if kind == "choice" and (letter := _letter(truth)):
        return _letter(answer) == letter
    if kind == "truth" and (verdict := _verdict(truth)):
        return _verdict(answer) == verdict
    if kind == "literal" and (value := _literal(truth)):
        without_latex = re.sub(r"\\([{}_#$%&])", r"\1", answer)  # \{1: 2\} is {1: 2}
        return value in (_literal(answer), _literal(without_latex))
    return answers_match(answer, truth)


def answer_groups(answers: Sequence[str | None], kind: str = "free") -> list[int]:
    """Number the answers so that equal ones have equal numbers; None, no answer, is -1."""
    number: dict[str | None, int] = {None: -1}
    first: list[str] = []  # the first answer of each group
    for answer in answers:
        if answer is not None and answer not in number:
            number[answer] = next((g for g, other in enumerate(first) if same_answer(answer, other, kind)), len(first))
            if number[answer] == len(first):
                first.append(answer)
    return [number[answer] for answer in answers]


def majority(votes: Sequence[int], correct: Sequence[int]) -> bool:
    """Say whether the most frequent answer is correct; the first of equally frequent ones counts.

    A vote of -1 abstains; if nobody votes, the answer counts as wrong.
    """
    counted = Counter(vote for vote in votes if vote >= 0)
    if not counted:
        return False
    [(winner, _)] = counted.most_common(1)
    return bool(correct[list(votes).index(winner)])


def vote_at_k(rows: Sequence[dict], k: int, seed: int = 0) -> float:
    """Estimate the share of correct majority votes of k solutions; rows: problems with "votes" and "correct"."""
    if k == 1:
        return float(np.mean([correct for row in rows for correct in row["correct"]]))
    rng = np.random.default_rng(seed)
    picks = ((row, rng.permutation(len(row["votes"]))[:k]) for row in rows for _ in range(VOTE_PICKS))
    right = [majority([row["votes"][i] for i in pick], [row["correct"][i] for i in pick]) for row, pick in picks]
    return float(np.mean(right))


def _plain(text: str) -> str:
    r"""Strip \text{...} and its relatives, outer white space, full stops and dollar signs."""
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf|bf|rm)\b|[{}]", "", text).strip().strip("$.").strip()


def _letter(text: str) -> str:
    """Return the letter of a choice, "" if there is none: "b", "(B)", "B.", "B) Paris" and "B: Paris" are B."""
    match = re.match(r"\(?([A-Ha-h])(?:$|\)|[.:,](?:\s|$))", _plain(text))
    return match[1].upper() if match else ""


def _verdict(text: str) -> str:
    words = _plain(text).casefold()
    return next((verdict for verdict, names in VERDICTS.items() if words in names), "")


def _literal(text: str) -> tuple:
    """Return (value,) of a Python literal, () for any other text. Only literals are built: nothing is called or run."""
    try:
        return (ast.literal_eval(text.strip(" \n`$")),) if len(text) <= MAX_LITERAL else ()
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ()
