"""Kinds of answers: a free one (mathematics), the letter of a choice, or a truth value."""

import re
from collections.abc import Sequence

from problems.verify import answers_match

# What a model may write for each truth value, in lower case.
VERDICTS = {
    "true": ("true", "yes", "t"),
    "false": ("false", "no", "f"),
    "unknown": ("unknown", "uncertain", "undetermined", "cannot be determined", "neither"),
}


def same_answer(answer: str, truth: str, kind: str = "free") -> bool:
    """Compare two answers as their kind asks for.

    "free": mathematically the same.  "choice": the same letter A to H, whatever is written after it ("(B) Paris" is B).
    "truth": the same truth value, in any of the words of VERDICTS.
    """
    if kind == "choice" and (letter := _letter(truth)):
        return _letter(answer) == letter
    if kind == "truth" and (verdict := _verdict(truth)):
        return _verdict(answer) == verdict
    return answers_match(answer, truth)


def answer_groups(answers: Sequence[str | None], kind: str = "free") -> list[int]:
    """Number the answers so that equal ones have equal numbers; None, no answer, is -1."""
    number: dict[str, int] = {}
    first: list[str] = []  # an answer of each group
    for answer in answers:
        if answer is not None and answer not in number:
            equal = (g for g, other in enumerate(first) if same_answer(answer, other, kind))
            number[answer] = next(equal, len(first))
            if number[answer] == len(first):
                first.append(answer)
    return [-1 if answer is None else number[answer] for answer in answers]


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
