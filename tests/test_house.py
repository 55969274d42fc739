"""The house: who may import whom, and how large everything may get."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from conftest import ROOT

from engine.command_line import declared
from train import Options

LESSON = "train eval rollout rewards grpo masa ablate".split()
# Each part may import what stands on its right, and itself, but no variant another one.
MAY_IMPORT = {"masa": "", "grpo": "", "problems": "", "rewards": "masa problems", "rollout": "masa problems rewards"}
MAY_IMPORT |= {"models": "masa problems rewards rollout grpo"}
for upper, lower in (("engine", "models"), ("eval", "engine"), ("train", "eval"), ("ablate", "train")):
    MAY_IMPORT[upper] = f"{MAY_IMPORT[lower]} {lower}"
MAY_IMPORT |= {"variants": MAY_IMPORT["ablate"], "lab": MAY_IMPORT["ablate"]}
# The only imports against the arrows: those that a flag asks for, by name, and what tells a step of any variant.
EXCEPTIONS = {
    ("train.py", "lab.explain"),  # --explain
    ("train.py", "variants"),  # --variant
    ("ablate.py", "lab.compare"),
    ("lab/explain.py", "variants"),
}


def tracked() -> list[Path]:
    listed = subprocess.run("git ls-files -co --exclude-standard".split(), cwd=ROOT, capture_output=True, text=True)
    return [Path(line) for line in listed.stdout.splitlines() if line.endswith(".py") and (ROOT / line).exists()]


SOURCES = [path for path in tracked() if path.parts[0] != "tests"]


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, in functions as well, and those loaded by a name that is written out."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module or ""}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            modules |= {name.value for name in node.args if isinstance(name, ast.Constant)}
    return modules


def test_every_import_follows_the_arrows():
    against = set()
    for path in SOURCES:
        part = path.with_suffix("").parts[0]
        allowed = {*MAY_IMPORT[part].split(), part} - ({"variants"} if part == "variants" else set())
        ours = {module for module in imports(path) if module.partition(".")[0] in MAY_IMPORT}
        against |= {(path.as_posix(), module) for module in ours if module.partition(".")[0] not in allowed}
    assert against == EXCEPTIONS


def test_only_the_lab_needs_more_than_five_packages():
    five = {"torch", "transformers", "tqdm", "numpy", "sympy"} | {"safetensors", "tokenizers"}  # these come with them
    optional = {"problems/files.py": {"datasets", "pyarrow"}}  # hub sets and Parquet: imported when they are asked for
    known = {*sys.stdlib_module_names, *MAY_IMPORT, *five}
    for path in (path for path in SOURCES if path.parts[0] != "lab"):
        packages = {module.partition(".")[0] for module in imports(path)}
        assert packages <= known | optional.get(path.as_posix(), set()), path


def lines(paths: Iterable[Path]) -> int:
    return sum(bool(line.strip()) for path in paths for line in (ROOT / path).read_text().splitlines())


def test_the_house_stays_small():
    """All figures but that of README.md count lines that are not blank."""
    lesson = [path for path in SOURCES if len(path.parts) == 1]
    assert sorted(path.stem for path in lesson) == sorted(LESSON)
    options = [option for part in Options.parts().values() for option in declared(part)]
    sizes = {
        "root": (lines(lesson), 1560),
        "all but tests": (lines(SOURCES), 6800),
        "tests": (lines(path for path in tracked() if path.parts[0] == "tests"), 5480),
        "README.md": (len((ROOT / "README.md").read_text().splitlines()), 250),
        "options of train.py": (len(options), 56),
    }
    sizes |= {path.as_posix(): (lines([path]), 350) for path in SOURCES}
    assert {name: size for name, size in sizes.items() if size[0] > size[1]} == {}, "found, and the most allowed"
