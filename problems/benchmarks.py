"""The paper's evaluation sets: where each stands on the Hugging Face hub, and which columns hold what.

    python benchmarks.py                      # the table
    python benchmarks.py MATH500 > math.jsonl # on a machine with a network: the set as a file of problems
    python eval.py --data math.jsonl --whole  # where there is none

Sets whose answers are programs (MBPP, HumanEval, LiveCodeBench) are left out: running code that a model wrote needs
a sandbox. Left out too are problems with pictures, and few-shot prompts.
"""

import dataclasses
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from problems import tasks
from problems.tasks import Problem, ProblemError

Row = dict[str, object]


def _plain(question: str, answer: str) -> Callable[[Row], Problem]:
    r"""A question and a free answer, each in a column of its own; of a list of answers all, of \boxed{} the inside."""

    def read(row: Row) -> Problem:
        found = row[answer]
        text = ", ".join(map(str, found)) if isinstance(found, list) else str(found)
        level = re.search(r"\d+", str(row.get("level", "")))  # MATH500 has levels
        return Problem(str(row[question]), tasks.last_boxed(text) or text.strip("$"), int(level[0]) if level else 0)

    return read


def _choice(question: str, options: Sequence[str], letter: str) -> Problem:
    """A question with lettered options."""
    listed = "\n".join(f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options))
    return Problem(f"{question}\n{listed}\nAnswer with the letter of the right option.", letter, kind="choice")


def _truth(premises: str, claim: str, answer: str) -> Problem:
    return Problem(f"{premises}\nIs it true, false or unknown: {claim}", answer.lower(), kind="truth")


def _gpqa(row: Row) -> Problem:
    """The right answer first, three wrong ones: shuffled, the same way each time."""
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    right, *_ = options = [str(row[name]).strip() for name in names]
    random.Random(str(row["Question"])).shuffle(options)
    return _choice(str(row["Question"]), options, chr(ord("A") + options.index(right)))


def _arc(row: Row) -> Problem:
    """Options under letters or numbers, named in answerKey."""
    choices: dict = row["choices"]  # type: ignore[assignment]
    return _choice(str(row["question"]), choices["text"], chr(ord("A") + choices["label"].index(row["answerKey"])))


def _rbench(row: Row) -> Problem:
    return _choice(str(row["question"]), [str(row[letter]) for letter in "ABCDEF"], str(row["answer"]))


def _folio(row: Row) -> Problem:
    return _truth(str(row["premises"]), str(row["conclusion"]), str(row["label"]))


def _deduction(row: Row) -> Problem:
    """A context and a question whose lettered options are verdicts: "A) True", "B) False", perhaps "C) Unknown"."""
    options: list[str] = row["options"]  # type: ignore[assignment]
    verdict = options[ord(str(row["answer"])) - ord("A")].rpartition(")")[2].strip()
    return Problem(f"{row['context']}\n{row['question']}", verdict.lower(), kind="truth")


def _bbh(row: Row) -> Problem:
    """The options stand in the question, the answer is "(A)"."""
    return Problem(str(row["input"]), str(row["target"]).strip("()"), kind="choice")


def _arlsat(row: Row) -> Problem:
    options: list[str] = row["answers"]  # type: ignore[assignment]
    return _choice(f"{row['context']}\n{row['question']}", options, chr(ord("A") + int(str(row["label"]))))


@dataclass(frozen=True)
class Benchmark:
    """hub: owner/name[/config]:split.  read: a row of it as a problem.  note: what to know before using it."""

    hub: str
    read: Callable[[Row], Problem]
    note: str = ""


BENCHMARKS = {
    "AIME24": Benchmark("HuggingFaceH4/aime_2024:train", _plain("problem", "answer")),
    "AIME25": Benchmark("math-ai/aime25:test", _plain("problem", "answer")),
    "AMC23": Benchmark("math-ai/amc23:test", _plain("question", "answer")),
    "MATH500": Benchmark("HuggingFaceH4/MATH-500:test", _plain("problem", "answer"), "levels 1 to 5"),
    "Minerva": Benchmark("math-ai/minervamath:test", _plain("question", "answer")),
    "OlympiadBench": Benchmark("math-ai/olympiadbench:test", _plain("question", "final_answer"), "the text-only part"),
    "GPQA-Diamond": Benchmark("Idavidrein/gpqa/gpqa_diamond:train", _gpqa, "gated: accept its terms on the hub first"),
    "ARC-Challenge": Benchmark("allenai/ai2_arc/ARC-Challenge:test", _arc),
    "SciBench": Benchmark("xw27/scibench:train", _plain("problem_text", "answer_number"), "units are not asked for"),
    "R-Bench": Benchmark("R-Bench/R-Bench/rbench-t_en:test", _rbench, "the text part, in English"),
    "FOLIO": Benchmark("tasksource/folio:validation", _folio, "an open copy of yale-nlp/FOLIO, which is gated"),
    "ProntoQA": Benchmark("renma/ProntoQA:validation", _deduction),
    "ProofWriter": Benchmark("renma/ProofWriter:validation", _deduction, "open world, depth 5"),
    "LogicalDeduction": Benchmark("lukaemon/bbh/logical_deduction_five_objects:test", _bbh, "of BIG-Bench Hard"),
    "AR-LSAT": Benchmark("olegbask/AR-LSAT:test", _arlsat),
}


def load(name: str) -> list[Problem]:
    """The problems of a benchmark. Raises ProblemError, which says how to get it, if the hub is out of reach."""
    benchmark = BENCHMARKS[name]
    try:
        rows = list(tasks.read_rows(benchmark.hub))
    except ProblemError as error:
        raise ProblemError(
            f"{name}: {error}\nOn a machine with a network: pip install datasets && "
            f"python benchmarks.py {name} > {name}.jsonl; then --data {name}.jsonl --whole here."
        ) from error
    problems = []
    for where, row in rows:
        try:
            problems.append(benchmark.read(row))
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise ProblemError(f"{where}: found the columns {list(row)}, not what is expected of {name}") from error
    return problems


def main() -> None:
    if not sys.argv[1:]:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<17}{benchmark.hub:<55}{benchmark.note}")
        return
    for name in sys.argv[1:]:
        if name not in BENCHMARKS:
            sys.exit(f"benchmarks.py: found {name!r}, expected one of {', '.join(BENCHMARKS)}")
        try:
            for problem in load(name):
                row = dataclasses.asdict(problem)
                print(json.dumps({"problem": row.pop("text"), **row}))
        except ProblemError as error:
            sys.exit(f"benchmarks.py: {error}")


if __name__ == "__main__":
    main()
