"""Load the evaluation sets of the paper, each from its place on the Hugging Face hub.

    python -m problems.benchmarks                         # the table of sets
    python -m problems.benchmarks MATH500 > math.jsonl    # a set as a file of problems; needs a network
    python eval.py --data math.jsonl --whole              # that file, on a machine without a network

Left out: sets whose answers are programs (MBPP, HumanEval, LiveCodeBench), because running code that a model wrote
needs a sandbox; problems with pictures; and few-shot prompts.
"""

import dataclasses
import json
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from problems import files
from problems.source import Problem, ProblemError
from problems.verify import extract_answer

Row = dict[str, Any]


def free(question: str, answer: str) -> Callable[[Row], Problem]:
    r"""Read a question and a free answer from two columns. The answer may be a list, or stand in \boxed{} or $...$."""

    def read(row: Row) -> Problem:
        text = ", ".join(map(str, row[answer])) if isinstance(row[answer], list) else str(row[answer])
        return Problem(str(row[question]), extract_answer(text) or text.strip("$"), files.level_in(row))

    return read


def choice(question: str, options: Sequence[str], right: int) -> Problem:
    """Build a problem with lettered options, of which number `right` (from 0) is the answer."""
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
    text = f"{question}\n{listed}\nAnswer with the letter of the right option."
    return Problem(text, "ABCDEFGH"[right], kind="choice")


def gpqa(row: Row) -> Problem:
    """Shuffle the right answer and three wrong ones, in the same way each time."""
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    right, *_ = options = [row[name].strip() for name in names]
    random.Random(row["Question"]).shuffle(options)
    return choice(row["Question"], options, options.index(right))


def arc(row: Row) -> Problem:
    """Read options that are labelled by letters or by numbers."""
    labels, options = row["choices"]["label"], row["choices"]["text"]
    return choice(row["question"], options, labels.index(row["answerKey"]))


def r_bench(row: Row) -> Problem:
    return choice(row["question"], [row[letter] for letter in "ABCDEF"], "ABCDEF".index(row["answer"]))


def ar_lsat(row: Row) -> Problem:
    return choice(f"{row['context']}\n{row['question']}", row["answers"], int(row["label"]))


def bbh(row: Row) -> Problem:
    """Read a question that contains its options, with an answer such as "(A)"."""
    return Problem(row["input"], row["target"].strip("()"), kind="choice")


def folio(row: Row) -> Problem:
    text = f"{row['premises']}\nIs it true, false or unknown: {row['conclusion']}"
    return Problem(text, row["label"].lower(), kind="truth")


def deduction(row: Row) -> Problem:
    """Read a question whose options are truth values: "A) True", "B) False", perhaps "C) Unknown"."""
    verdict = row["options"]["ABC".index(row["answer"])].rpartition(")")[2].strip()
    return Problem(f"{row['context']}\n{row['question']}", verdict.lower(), kind="truth")


class Benchmark(NamedTuple):
    hub: str  # owner/name[/config]:split
    read: Callable[[Row], Problem]  # turns a row of the set into a problem
    note: str = ""  # what to know before using it


BENCHMARKS = {
    "AIME24": Benchmark("HuggingFaceH4/aime_2024:train", free("problem", "answer")),
    "AIME25": Benchmark("math-ai/aime25:test", free("problem", "answer")),
    "AMC23": Benchmark("math-ai/amc23:test", free("question", "answer")),
    "MATH500": Benchmark("HuggingFaceH4/MATH-500:test", free("problem", "answer"), "levels 1 to 5"),
    "Minerva": Benchmark("math-ai/minervamath:test", free("question", "answer")),
    "OlympiadBench": Benchmark(
        "math-ai/olympiadbench:test", free("question", "final_answer"), "only problems without pictures"
    ),
    "GPQA-Diamond": Benchmark("Idavidrein/gpqa/gpqa_diamond:train", gpqa, "gated: accept its terms on the hub first"),
    "ARC-Challenge": Benchmark("allenai/ai2_arc/ARC-Challenge:test", arc),
    "SciBench": Benchmark("xw27/scibench:train", free("problem_text", "answer_number"), "units are not asked for"),
    "R-Bench": Benchmark("R-Bench/R-Bench/rbench-t_en:test", r_bench, "the English text problems"),
    "FOLIO": Benchmark("tasksource/folio:validation", folio, "an open copy of yale-nlp/FOLIO, which is gated"),
    "ProntoQA": Benchmark("renma/ProntoQA:validation", deduction),
    "ProofWriter": Benchmark("renma/ProofWriter:validation", deduction, "open world, depth 5"),
    "LogicalDeduction": Benchmark("lukaemon/bbh/logical_deduction_five_objects:test", bbh, "part of BIG-Bench Hard"),
    "AR-LSAT": Benchmark("olegbask/AR-LSAT:test", ar_lsat),
}


def load(name: str) -> list[Problem]:
    """Load the problems of a benchmark. Raises ProblemError; if the hub is out of reach, it says how to get the set."""
    if name not in BENCHMARKS:
        raise ProblemError(f"found {name!r}, expected one of {', '.join(BENCHMARKS)}")
    hub, read, _ = BENCHMARKS[name]
    try:
        rows = list(files.read_rows(hub))
    except ProblemError as error:
        raise ProblemError(
            f"{name}: {error}\nOn a machine with a network: pip install datasets && "
            f"python -m problems.benchmarks {name} > {name}.jsonl; then --data {name}.jsonl --whole here."
        ) from error
    problems = []
    for place, row in rows:
        try:
            problems.append(read(row))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ProblemError(f"{place}: found the columns {list(row)}, not what is expected of {name}") from error
    return problems


def main() -> None:
    if not sys.argv[1:]:
        for name, (hub, _, note) in BENCHMARKS.items():
            print(f"{name:<17}{hub:<55}{note}")
    try:
        for name in sys.argv[1:]:
            for problem in load(name):
                row = dataclasses.asdict(problem)
                print(json.dumps({"problem": row.pop("text"), **row}))
    except ProblemError as error:
        sys.exit(f"problems.benchmarks: {error}")


if __name__ == "__main__":
    main()
