"""README.md and the pages it links to: every link leads somewhere, every command is understood, every name exists."""

import importlib
import re
import shlex
import sys

import pytest
from conftest import ROOT

import ablate
import options

PAGES = ["README.md", "EXERCISES.md", "RESULTS.md", "RUNNING.md"]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings."""
    titles = (re.sub(r"[^\w\s-]", "", title.lower()) for title in re.findall(r"(?m)^#+ (.*)$", text))
    return {title.strip().replace(" ", "-") for title in titles}


def commands(page: str, script: str) -> list[list[str]]:
    """The arguments of every call of a script, in blocks and in tables; a comment at the end is left out."""
    found = re.findall(rf"(?m)(?:python|torchrun[^\n`]*) {re.escape(script)}((?: [^\n`|]*)?)", read(page))
    return [shlex.split(arguments, comments=True) for arguments in found]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        assert (ROOT / (file or page)).exists(), target
        assert not anchor or anchor in anchors(read(file or page)), target


@pytest.mark.parametrize("page", PAGES)
def test_training_commands_are_understood(page):
    for arguments in commands(page, "train.py"):
        given = [argument for argument in arguments if argument not in ("--explain", "...")]
        options.Options(**vars(options.build_parser().parse_args(given)))


@pytest.mark.parametrize("page", PAGES)
def test_ablations_are_understood(page, monkeypatch, tmp_path):
    for arguments in commands(page, "ablate.py"):
        monkeypatch.setattr(sys, "argv", ["ablate.py", *arguments])
        if "--help" not in arguments:
            parsed = ablate.parse_arguments()
            parsed.out = tmp_path
            assert ablate.plan(parsed)


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_exist(page):
    for name in set(re.findall(r"`((?:tests/|speed/)?\w+\.(?:py|md))`", read(page))):
        assert (ROOT / name).exists(), name
    modules = "|".join(path.stem for path in ROOT.glob("*.py"))
    for module, name in set(re.findall(rf"`({modules})\.([A-Za-z_.]+)`", read(page))):
        found = importlib.import_module(module)
        for part in () if name in ("py", "html") else name.split("."):
            assert hasattr(found, part) or part in getattr(found, "__annotations__", {}), f"{module}.{name}"
            found = getattr(found, part, None)
