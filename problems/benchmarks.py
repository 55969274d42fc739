"""Load the evaluation sets of the paper, each from its place on the Hugging Face hub or its authors' repository.

    python -m problems.benchmarks                         # the table of sets
    python -m problems.benchmarks MATH500 > math.jsonl    # a set as a file of problems; needs a network
    python eval.py --data math.jsonl --whole              # that file, on a machine without a network

The sets stand in benchmarks.json. An entry holds the place on the hub (owner/name[/config]:split), or the address of a
file; a template of the question, with columns in braces; the column of the answer and the kind of answer (see
kinds.py); the column that lists the options, or a column for each; their labels, if these are not letters; and what to
know before using the set.

Left out: sets whose answers are programs (MBPP, HumanEval and its EvalPlus, LiveCodeBench), because running code that a
model wrote needs a sandbox; problems with pictures; and few-shot prompts. In CRUX-O the code is given and its output
is asked for, so nothing is run.
"""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from problems import files
from problems.source import Problem, ProblemError, as_line
from problems.verify import extract_answer

BENCHMARKS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
LETTERS = "ABCDEFGH"


def read_row(row: dict[str, Any], entry: dict[str, Any]) -> Problem:
    """Turn a row of a set into a problem, as the set's entry in benchmarks.json says."""
    question, answer, kind = entry["question"].format_map(row), row[entry["answer"]], entry.get("kind", "free")
    if kind == "free":
        text = ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
        return Problem(question, extract_answer(text) or text.strip("$"), files.level_in(row))
    if "options" not in entry:  # a literal, or a truth value such as "Uncertain"
        return Problem(question, answer if kind == "literal" else answer.lower(), kind=kind)
    options, right = options_in(row, entry)
    if kind == "truth":
        return Problem(question, options[right].lower(), kind=kind)
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Problem(f"{question}\n{listed}\nAnswer with the letter of the right option.", LETTERS[right], kind=kind)


def options_in(row: dict[str, Any], entry: dict[str, Any]) -> tuple[list[str], int]:
    """Return the options of a row, and which of them is the right one, counted from 0."""
    columns, answer = entry["options"], row[entry["answer"]]
    options = row[columns] if isinstance(columns, str) else [row[column] for column in columns]
    if entry.get("shuffle"):  # GPQA names the right one first: shuffle them, in the same way each time
        options = [option.strip() for option in options]
        random.Random(row["Question"]).shuffle(options)
        return options, options.index(answer.strip())
    if isinstance(options, dict):  # ARC labels its options, by letters or by numbers
        return options["text"], options["label"].index(answer)
    # Logic-LM writes the letter into the option: "A) True"
    return [re.sub(r"^[A-H]\) ", "", option) for option in options], entry.get("labels", LETTERS).index(str(answer))


def load(name: str) -> list[Problem]:
    """Load the problems of a benchmark. Raises ProblemError; if the hub is out of reach, it says how to get the set."""
    if name not in BENCHMARKS:
        raise ProblemError(f"found {name!r}, expected one of {', '.join(BENCHMARKS)}")
    try:
        rows = list(files.read_rows(BENCHMARKS[name]["hub"]))
    except ProblemError as error:
        raise ProblemError(
            f"{name}: {error}\nOn a machine with a network: pip install datasets && "
            f"python -m problems.benchmarks {name} > {name}.jsonl; then --data {name}.jsonl --whole here."
        ) from error
    problems = []
    for place, row in rows:
        try:
            problems.append(read_row(row, BENCHMARKS[name]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ProblemError(f"{place}: found the columns {list(row)}, not what is expected of {name}") from error
    return problems


def main() -> None:
    if {"-h", "--help"} & {*sys.argv}:
        return print(__doc__)
    if not sys.argv[1:]:
        for name, entry in BENCHMARKS.items():
            print(f"{name:<17}{entry['hub']:<42} {entry.get('note', '')}")
    try:
        for problem in (problem for name in sys.argv[1:] for problem in load(name)):
            print(as_line(problem))
    except ProblemError as error:
        sys.exit(f"problems.benchmarks: {error}")


if __name__ == "__main__":
    main()
