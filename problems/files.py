r"""Read problems from files and from the Hugging Face hub.

    read_problems("math.jsonl")          # an object per line; also .json (a list), .csv (with a header) and .parquet
    read_problems("owner/name:test")     # owner/name[/config][:split] on the hub, which needs the package datasets

The fields of common data sets are understood: the problem under "problem", "question" or "prompt" (a text or a chat),
the answer under "answer", "ground_truth" or "solution", where it may follow "####" (GSM8K) or stand in \boxed{} (MATH).
To add a format, write a function that yields (place, record) pairs and name its suffix in READERS.
"""

import contextlib
import csv
import io
import json
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from problems.source import GENERATORS, Problem, ProblemError
from problems.verify import answers_match, extract_answer

TEXT_KEYS, ANSWER_KEYS = ("problem", "question", "prompt"), ("answer", "ground_truth", "solution")  # by preference
# What data sets and tables write where there is nothing to compare with.
NOTHING = "proof notfound nan none null n/a [] {} - ? tbd #n/a #ref! #div/0! #num! #value! #name? #null!".split()
LIST_AS_TEXT = r"""\[\s*(["'])(.*)\1\s*\]"""  # '["5"]'
CHAT_AS_TEXT = r"""\[\s*\{.*["']role["']|.*<\|im_start\|>"""
PROSE = r"\n\s*\n|</?(answer|think)>|[Tt]he answer is"  # no answer looks like this, but the explanation of one
# Fields that belong to a problem, but are not in its text: choices (also A, option_a, opa) and what it is about.
APART = r"""choices|options?(_?[a-e1-5])?|[A-E]|op[a-e]|(decoded_)?(image|img)s?(_path)?|passage|context|body|table
    |story|paragraph|article|document|premises?|instruction|system|input"""
EATEN = r"[\x07\x08\x0b\x0c]|\t(imes|ext|heta)|\r(ight|ho)"  # "\frac" in JSON is a form feed and "rac"
HUB_NAME = r"[\w-][\w.-]*(/[\w.-]+){1,2}(:.+)?"
Records = Iterator[tuple[str, Any]]  # (place, record); the place, such as "FILE:LINE", starts error messages


def answer_in(record: dict[str, Any]) -> str | None:
    r"""Return the answer of a record, "" if it says that there is none, and None if none can be read.

    A solution, or any other text of several paragraphs, counts only if it marks its answer with \boxed{} or ####. A
    list is taken if it holds a single answer. A box wins over ####, which is also a heading of Markdown.
    """
    is_blank = False
    for key in (key for key in ANSWER_KEYS if key in record):
        value = record[key]
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, int | float) else ""
        is_blank |= value is None or r"\boxed{}" in text or value == ""
        if r"\boxed{" in text:
            text = extract_answer(text) or ""
        elif "####" in text:
            marked = text.partition("####")[2].strip()
            text = "" if "####" in marked or "\n" in marked else marked
        elif single := re.fullmatch(LIST_AS_TEXT, text.strip()):
            text = "" if re.search(rf"(?<!\\){single[1]}", single[2]) else single[2]
            with contextlib.suppress(ValueError):  # in JSON, a backslash is written twice
                text = text if re.search(EATEN, value := json.loads(f'"{text}"')) else value
        elif key == "solution" or re.search(PROSE, text.strip()):
            text = ""
        if re.sub(r"\\text\{(.*)\}", r"\1", text.strip(" .$\n")).casefold().replace(" ", "") in NOTHING:
            return ""
        if text.strip():
            return text.strip()
    return "" if is_blank else None


def level_in(record: dict[str, Any]) -> int:
    """Return the level of a record, 0 if it has none: 4, 4.0, "4" and "Level 4" are 4."""
    level = re.fullmatch(r"(?:level )?(\d{1,9})(?:\.0)?", str(record.get("level")).strip().casefold())
    return int(level[1]) if level else 0


def text_in(record: dict[str, Any]) -> str:
    """Return the text of a problem, or "". A chat is one message of the user, perhaps after one of the system."""
    text = next((record[key] for key in TEXT_KEYS if record.get(key)), "")
    if isinstance(text, list):
        roles = [turn.get("role") for turn in text if isinstance(turn, dict)]
        said = [turn["content"] for turn in text if isinstance(turn, dict) and isinstance(turn.get("content"), str)]
        text = "\n".join(said) if len(said) == len(text) and roles in (["user"], ["system", "user"]) else ""
    return text.strip() if isinstance(text, str) and not re.match(CHAT_AS_TEXT, text, re.DOTALL) else ""


def read_problem(record: Any, place: str) -> Problem:
    """Turn a record into a problem. Its answer is "" if the data set has none: blank, null or one of NOTHING.

    Raises ProblemError, also if two fields disagree, or if there are fields that the problem would be asked without.
    """
    if not isinstance(record, dict):
        raise ProblemError(f"{place}: found a {type(record).__name__}, expected an object")
    text, nested = text_in(record), record.get("reward_model")  # where the data sets of verl and DAPO keep the answer
    kind = record["kind"] if record.get("kind") in ("choice", "truth", "literal") else "free"
    record = {**nested, **record} if isinstance(nested, dict) else record
    answer = answer_in(record)
    if kind == "literal":  # a string in it may hold anything
        answer = str(record.get("answer", ""))
    if not text or answer is None:
        what, keys = ("one answer (in a solution: #### or \\boxed)", ANSWER_KEYS) if text else ("a problem", TEXT_KEYS)
        if "prompt" in record:
            what += " (in a chat: a list of one message of the user, or of the system and the user)"
        found = {key: record[key] for key in keys if key in record}
        shown = reprlib.repr(found) if found else f"the keys {list(record)}"
        raise ProblemError(f"{place}: found {shown}, expected {what} under {', '.join(keys)}")
    texts = {text_in({key: record.get(key)}) for key in ("problem", "question")} - {""}
    answers = {answer_in({key: record.get(key)}) or "" for key in ("answer", "ground_truth")} - {""}
    rivals = texts if len(texts) > 1 else answers if len(answers) > 1 and not answers_match(*answers) else ()
    filled = [str(key) for key in record if record[key]]
    apart = next((key for key in filled if re.fullmatch(APART, key, re.VERBOSE | re.IGNORECASE)), "")
    raw = text + "".join(str(record[key]) for key in (*TEXT_KEYS, *ANSWER_KEYS) if key in record and kind != "literal")
    for fault, expected in (
        (" and ".join(sorted(rivals)), "one of these: delete a field"),
        (apart, "it in the text of the problem; delete the field if it does not belong there"),
        (re.search("[\ud800-\udfff]", raw) and "half of a surrogate pair (as \\ud83d alone)", "whole characters"),
        (re.search(EATEN, raw) and "what is left of a LaTeX command", "two backslashes for each of LaTeX in JSON"),
    ):
        if fault:
            raise ProblemError(f"{place}: found {fault}, expected {expected}")
    return Problem(text, answer, level_in(record), kind)


def read_text(name: str) -> str:
    """Return the text of a file in UTF-8, without its byte order mark."""
    try:
        return Path(name).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"{name}: found {error}, expected a file in UTF-8 that can be read") from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object.  Raises ValueError if it has a key twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"a key twice among {[key for key, _ in pairs]}")
    return record


def read_json(name: str) -> Records:
    """Yield the records of a JSON file: objects one after the other, a list, or an object that holds exactly one list.

    What is in the file decides, whether it is named .json or .jsonl.
    """
    text, decoder = read_text(name), json.JSONDecoder(object_pairs_hook=unique)
    values: list[tuple[str, Any]] = []
    end, line = 0, 1
    try:
        while match := re.compile(r"\s*(?=\S)").match(text, end):
            line += text.count("\n", end, match.end())
            value, after = decoder.raw_decode(text, match.end())
            values.append((f"{name}:{line}", value))
            line, end = line + text.count("\n", match.end(), after), after
    except (ValueError, RecursionError) as error:  # not JSON, too long a number, too deeply nested
        place = f"{name}:{getattr(error, 'lineno', line)}"
        raise ProblemError(f"{place}: found {getattr(error, 'msg', error)}, expected JSON") from error
    if len(values) == 1:
        [(_, value)] = values
        lists = [part for part in (value.values() if isinstance(value, dict) else [value]) if isinstance(part, list)]
        if not isinstance(value, dict) or (lists and not value.keys() & {*TEXT_KEYS}):  # else it is a record
            if len(lists) != 1:
                raise ProblemError(f"{name}: found {len(lists)} lists, expected one, or an object that holds one")
            values = [(f"{name}: item {number}", record) for number, record in enumerate(lists[0], 1)]
    yield from values


def read_csv(name: str) -> Records:
    """Yield the rows of a CSV file with a header. A comma too many, in a text without quotes, is an error."""
    rows = csv.reader(io.StringIO(read_text(name), newline=""), skipinitialspace=True, strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        for row in (row for row in rows if row):
            if len(row) != len(header) or len({*header}) < len(header) or row[:2] == header[:2]:
                found = "the header again" if row[:2] == header[:2] else f"{len(row)} fields"
                expected = f"one for each of {', '.join(header)}, between commas; a text with a comma needs quotes"
                raise ProblemError(f"{name}:{rows.line_num}: found {found}, expected {expected}")
            yield f"{name}:{rows.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ProblemError(f"{name}:{rows.line_num}: found {error}, expected CSV") from error


def read_rows(name: str) -> Records:
    """Yield the rows of FILE.parquet, of a .json file at an address, or of owner/name[/config][:split] on the hub.

    The default split is "train".
    """
    offline = "Without a network, fetch the data elsewhere and give it as a local .jsonl file."
    try:
        if name.lower().endswith(".parquet"):
            from pyarrow import parquet

            rows = parquet.ParquetFile(name).read().to_pylist()
        else:
            import datasets

            path, _, split = name.partition(":")
            if name.endswith(".json"):
                rows = datasets.load_dataset("json", data_files=name, split="train")
            else:
                rows = datasets.load_dataset(*re.findall("[^/]+/[^/]+|[^/]+", path), split=split or "train")
    except ImportError as error:
        raise ProblemError(f"{name}: needs a package: pip install {error.name}. {offline}") from error
    except Exception as error:  # files, networks and the hub fail in many ways
        raise ProblemError(f"{name}: could not be loaded ({type(error).__name__}: {error}). {offline}") from error
    yield from ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))


READERS = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_rows}


def read_problems(name: str) -> list[Problem]:
    """Read all problems of a file or of a data set on the hub. Raises ProblemError, which names the file and line."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in READERS and not path.is_file():
        raise ProblemError(f"{name}: found no such file")
    if suffix not in READERS and (path.exists() or not re.fullmatch(HUB_NAME, name)):
        choices = f"{', '.join(GENERATORS)}, a file ending in {', '.join(READERS)}, or owner/name[/config][:split]"
        raise ProblemError(f"found {name!r}, expected {choices} on the hub")
    return [read_problem(record, place) for place, record in READERS.get(suffix, read_rows)(name)]
