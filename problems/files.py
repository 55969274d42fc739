r"""Read problems from files and from the Hugging Face hub.

    read_problems("math.jsonl")          # an object per line; also .json (a list) and .parquet
    read_problems("owner/name:test")     # owner/name[/config][:split] on the hub, which needs the package datasets

The fields of common data sets are understood: the problem under "problem", "question" or "prompt" (a text or a chat),
the answer under "answer", "ground_truth" or "solution", where it may follow "####" (GSM8K) or stand in \boxed{} (MATH).
To add a format, write a function that yields (place, record) pairs and name its suffix in READERS.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from problems.source import GENERATORS, Problem, ProblemError
from problems.verify import extract_answer

TEXT_KEYS, ANSWER_KEYS = ("problem", "question", "prompt"), ("answer", "ground_truth", "solution")  # by preference
NO_ANSWERS = ("", "proof", "notfound")  # what data sets write where there is nothing to compare with
HUB_NAME = r"[\w-][\w.-]*(/[\w.-]+){1,2}(:.+)?"
Records = Iterator[tuple[str, Any]]  # (place, record); the place, such as "FILE:LINE", starts error messages


def answer_in(record: dict[str, Any]) -> str:
    r"""Return the answer of a record, or "". A solution counts only if it marks its answer with \boxed{} or ####.

    A box wins over ####, which is also a heading of Markdown.
    """
    for key in ANSWER_KEYS:
        value = record.get(key)
        text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, int | float) else ""
        if text.strip().casefold() in NO_ANSWERS[1:]:
            return ""
        if r"\boxed{" in text or (key == "solution" and "####" not in text):
            text = extract_answer(text) or ""
        else:
            text = text.rpartition("####")[2]
        if text.strip():
            return text.strip()
    return ""


def level_in(record: dict[str, Any]) -> int:
    """Return the level of a record, 0 if it has none: 4, "4" and "Level 4" are 4."""
    digits = re.search(r"\d+", str(record.get("level")))
    return int(digits[0]) if digits else 0


def read_problem(record: Any, place: str) -> Problem:
    """Turn a record into a problem. Its answer is "" if the data set has none: blank, null or one of NO_ANSWERS."""
    if not isinstance(record, dict):
        raise ProblemError(f"{place}: found a {type(record).__name__}, expected an object")
    text = next((record[key] for key in TEXT_KEYS if record.get(key)), "")
    if isinstance(text, list):  # a chat: the problem is the last message of the user
        said = [turn.get("content") for turn in text if isinstance(turn, dict) and turn.get("role") == "user"]
        text = said[-1] if said else ""
    text = text.strip() if isinstance(text, str) else ""
    nested = record.get("reward_model")  # where the data sets of verl and DAPO keep the answer
    kind = record["kind"] if record.get("kind") in ("choice", "truth", "literal") else "free"
    answer = answer_in({**nested, **record} if isinstance(nested, dict) else record)
    if kind == "literal":  # a string in it may hold anything
        answer = str(record.get("answer", ""))
    given = [str(record[key] or "").strip() for key in ANSWER_KEYS if key in record]
    is_blank = any(value.casefold() in NO_ANSWERS or r"\boxed{}" in value for value in given)
    if not (text and (answer or is_blank)):
        what, keys = ("an answer (in a solution: #### or \\boxed)", ANSWER_KEYS) if text else ("a problem", TEXT_KEYS)
        raise ProblemError(f"{place}: found the keys {list(record)}, expected {what} under {', '.join(keys)}")
    return Problem(text, answer, level_in(record), kind)


def read_json(name: str) -> Records:
    """Yield the records of a .jsonl file, or of a .json file: a list, or an object that holds exactly one list."""
    number = 1
    try:
        text = Path(name).read_bytes().decode("utf-8-sig")  # -sig skips a byte order mark
        if name.endswith(".jsonl"):
            for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at U+2028
                if line.strip():
                    yield f"{name}:{number}", json.loads(line)
            return
        content = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, too long a number, too deeply nested
        place = f"{name}:{number + getattr(error, 'lineno', 1) - 1}"
        raise ProblemError(f"{place}: found {getattr(error, 'msg', error)}, expected JSON in UTF-8") from error
    values = content.values() if isinstance(content, dict) else [content]
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) != 1:
        raise ProblemError(f"{name}: found {len(lists)} lists, expected one, or an object that holds one")
    yield from ((f"{name}: item {number}", record) for number, record in enumerate(lists[0], 1))


def read_rows(name: str) -> Records:
    """Yield the rows of FILE.parquet, of a .json file at an address, or of owner/name[/config][:split] on the hub.

    The default split is "train".
    """
    offline = "Without a network, fetch the data elsewhere and give it as a local .jsonl file."
    try:
        import datasets

        if name.endswith((".parquet", ".json")):
            rows = datasets.load_dataset(Path(name).suffix[1:], data_files=name, split="train")
        else:
            path, _, split = name.partition(":")
            rows = datasets.load_dataset(*re.findall("[^/]+/[^/]+|[^/]+", path), split=split or "train")
    except ImportError as error:
        raise ProblemError(f"{name}: needs the package datasets: pip install datasets. {offline}") from error
    except Exception as error:  # files, networks and the hub fail in many ways
        raise ProblemError(f"{name}: could not be loaded ({type(error).__name__}: {error}). {offline}") from error
    yield from ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))


READERS = {".jsonl": read_json, ".json": read_json, ".parquet": read_rows}


def read_problems(name: str) -> list[Problem]:
    """Read all problems of a file or of a data set on the hub. Raises ProblemError, which names the file and line."""
    path = Path(name)
    if path.suffix in READERS and not path.is_file():
        raise ProblemError(f"{name}: found no such file")
    if path.suffix not in READERS and (path.exists() or not re.fullmatch(HUB_NAME, name)):
        choices = f"{', '.join(GENERATORS)}, a file ending in {', '.join(READERS)}, or owner/name[/config][:split]"
        raise ProblemError(f"found {name!r}, expected {choices} on the hub")
    return [read_problem(record, place) for place, record in READERS.get(path.suffix, read_rows)(name)]
