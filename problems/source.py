"""Provide training problems without end, and held-out problems that training never sees.

    source = load_problems("arithmetic")      # or "words", "logic", FILE.jsonl, owner/name on the hub
    source.train(seed=0, start=32, count=16)  # problems 32..47 of the endless stream of that seed
    source.heldout(100)                       # a fixed set that training never sees

A source keeps no position: problem i of a stream depends only on the seed and on i, so a resumed run continues exactly
where it stopped. The *text* of a problem decides whether it is held out, so no seed leaks an evaluation problem into
training. Run `python -m problems.source` to see problems of every generator, and `python -m problems.source arithmetic
600 > problems.jsonl` to write a finite set of them.

Left out: mixtures of sources, data that do not fit into memory, and the request to box the answer (see masa.py).
"""

import dataclasses
import importlib
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Annotated

MAX_MISFITS = 1000  # prompts too long, one after the other: then the limit is wrong, not the data
# The built-in generators, each a module of this room. It has a function make(rng, level) that returns a Problem, for
# levels 1 to 5. It may have level_weights(setting), which returns how often to draw each level; `setting` is the text
# after the colon in a name such as "arithmetic:0.3".
GENERATORS = ("arithmetic", "words", "logic")


@dataclass(frozen=True)
class Problem:
    text: str  # what the model is asked
    answer: str  # the reference answer: what \boxed{} should hold
    level: int = 0  # difficulty, by which results are broken down; 0 if unknown
    kind: str = "free"  # of the answer, see kinds.py: "free", "choice", "truth" or "literal"


def as_line(problem: Problem) -> str:
    """Return a problem as a line of a JSONL file, which `problems/files.py` reads."""
    row = dataclasses.asdict(problem)
    return json.dumps({"problem": row.pop("text"), **row})


class ProblemError(ValueError):
    """Bad input. The message names the file and line (or option), what was found and what was expected."""


@dataclass
class DataOptions:
    """Which problems to train on."""

    data: Annotated[str, f"{', '.join(GENERATORS)}, a file, or owner/name on the hub", {"real": "words"}] = "arithmetic"
    levels: Annotated[str, "keep only problems of these levels, such as 1,2,3; empty for all"] = ""

    @property
    def chosen_levels(self) -> tuple[int, ...] | None:
        """The levels as numbers, or None for all. Raises ProblemError if `levels` is not a list of numbers."""
        try:
            return tuple(int(level) for level in self.levels.split(",") if level) or None
        except ValueError as error:
            raise ProblemError(f"--levels: found {self.levels!r}, expected numbers such as 1,2,3") from error


@dataclass
class Source:
    """A stream of training problems for each seed, and a held-out set."""

    name: str
    size: str  # how many problems there are to train on and held out, in words
    problem: Callable[[int, int], Problem]  # (seed, index) -> problem of the training stream of that seed
    held_out: Callable[[int, bool], Iterable[Problem]]  # (seed, whole) -> distinct problems; see heldout
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> number of problems of a file that were dropped
    checksum: int = 0  # of the problems of a file, so that a resumed run notices that they have changed

    def train(self, seed: int, start: int, count: int) -> list[Problem]:
        """Return problems start .. start+count-1 of the stream of this seed."""
        return [self.problem(seed, index) for index in range(start, start + count)]

    def take(self, seed: int, start: int, count: int, fits: Callable[[Problem], bool]) -> tuple[list[Problem], int]:
        """Return the next `count` problems from `start` on that fit, and the position in the stream after them.

        Raises ProblemError if MAX_MISFITS in a row do not fit.
        """
        taken: list[Problem] = []
        end = last_fit = start
        while len(taken) < count:
            problem, end = self.problem(seed, end), end + 1
            if fits(problem):
                taken.append(problem)
                last_fit = end
            elif end - last_fit == MAX_MISFITS:
                raise ProblemError(f"--max-prompt-tokens: the prompts of the last {MAX_MISFITS} problems are longer")
        return taken, end

    def heldout(self, count: int | None, seed: int = 0, whole: bool = False) -> list[Problem]:
        """Return `count` distinct problems, or all (None), that training never sees.

        `whole` adds the training problems of a file, for evaluation on files that nothing was trained on.
        """
        return list(islice(self.held_out(seed, whole), count))

    def print_skipped(self) -> None:
        """Print how many problems of a file were dropped, and why."""
        for reason, count in self.skipped.items():
            print(f"{self.name}: {count} problems left out ({reason})")


def is_held_out(problem: Problem) -> bool:
    """Tell whether a problem is in the tenth of all texts kept for evaluation, whatever its source, seed or file."""
    return zlib.crc32(problem.text.encode("utf-8", "surrogatepass")) % 10 == 0  # hash() differs between processes


def generated_source(name: str, draw: Callable[[random.Random], Problem]) -> Source:
    """Make problems on demand with draw(rng)."""

    def problem(seed: int, index: int) -> Problem:
        rng = random.Random(f"train {seed} {index}")
        return next(problem for problem in iter(lambda: draw(rng), None) if not is_held_out(problem))

    def held_out(seed: int, whole: bool) -> Iterator[Problem]:
        rng, seen, misses = random.Random(f"held out {seed}"), set[Problem](), 0
        while misses < 2000:  # there may be few: only about sixteen chains of two terms are held out
            problem, misses = draw(rng), misses + 1
            if is_held_out(problem) and problem not in seen:
                seen.add(problem)
                yield problem
                misses = 0

    return Source(name, "problems without end, a tenth of all held out", problem, held_out)


def listed_source(name: str, problems: Sequence[Problem], levels: Sequence[int] | None) -> Source:
    """Serve the distinct problems of a list, in a new order in each epoch."""
    answered = [problem for problem in problems if problem.answer]
    key = {problem: "".join(problem.text.split()) for problem in answered}  # "8 + 5" is "8+5"
    distinct = {key[problem]: problem for problem in reversed(answered)}.values()  # keeps the first with each key
    differing = len({(key[problem], problem.answer) for problem in answered}) - len(distinct)
    chosen = [problem for problem in distinct if levels is None or problem.level in levels]
    if not chosen:
        if not distinct:
            raise ProblemError(f"{name}: found no problem, expected at least one")
        known = sorted({problem.level for problem in distinct})
        raise ProblemError(f"--levels: found {levels}, expected some of {known}, the levels of {name}")
    # Sorting puts the held-out tenth first and makes the order in the file irrelevant. If there are two problems or
    # more, at least one goes to each side.
    chosen.sort(key=lambda problem: (not is_held_out(problem), problem.text))
    count = min(max(sum(map(is_held_out, chosen)), 1), len(chosen) - 1)
    held, trained = chosen[:count], chosen[count:]

    @lru_cache(maxsize=4)
    def epoch_problems(seed: int, epoch: int) -> list[Problem]:
        return random.Random(f"epoch {seed} {epoch}").sample(trained, len(trained))

    def problem(seed: int, index: int) -> Problem:
        return epoch_problems(seed, index // len(trained))[index % len(trained)]

    def held_out(seed: int, whole: bool) -> Iterable[Problem]:
        among = chosen if whole else held
        if not among:
            raise ProblemError(f"{name}: found one problem, expected two or more to hold one out")
        return random.Random(f"held out {seed}").sample(among, len(among))

    size = f"{len(chosen):,} problems: {len(trained):,} to train, {len(held):,} held out"
    skipped = {
        "blank answer": len(problems) - len(answered),
        "duplicate": len(answered) - len(distinct) - differing,
        "with another answer than before": differing,
        "other level": len(distinct) - len(chosen),
    }
    checksum = zlib.crc32(repr(chosen).encode("utf-8", "surrogatepass"))
    return Source(name, size, problem, held_out, +Counter(skipped), checksum)


def load_problems(name: str, levels: Sequence[int] | None = None) -> Source:
    """Load a generator (see GENERATORS), a .jsonl, .json, .csv or .parquet file, or owner/name on the hub.

    If `levels` is given, only problems of these levels are kept. Raises ProblemError for a source that does not exist,
    cannot be read or holds no such problem.
    """
    generator, colon, setting = name.partition(":")
    if generator not in GENERATORS:
        from problems import files  # here, because files.py imports this module

        return listed_source(name, files.read_problems(name), levels)
    module = importlib.import_module(f"problems.{generator}")
    level_weights = getattr(module, "level_weights", None)
    if colon and not level_weights:
        raise ProblemError(f"{name}: found the setting {setting!r}, expected {generator!r} without one")
    weights = level_weights(setting) if level_weights else dict.fromkeys(range(1, 6), 1.0)
    drawn = [level for level in weights if weights[level] > 0]
    chosen = [level for level in drawn if levels is None or level in levels]
    if not chosen:
        raise ProblemError(f"--levels: found {levels}, expected some of {drawn}, the levels of {name}")
    frequencies = [weights[level] for level in chosen]
    return generated_source(name, lambda rng: module.make(rng, *rng.choices(chosen, frequencies)))


def main() -> None:
    if sys.argv[1:]:
        source, count = load_problems(sys.argv[1]), int(sys.argv[2])
        for problem in source.train(0, 0, count) + source.heldout(count // 9):  # as a tenth is held out
            print(as_line(problem))
        return
    for name in GENERATORS:
        print(name)
        for problem in load_problems(name).train(seed=0, start=0, count=6):
            print(f"  level {problem.level}: {problem.text}  ->  {problem.answer}")


if __name__ == "__main__":
    main()
