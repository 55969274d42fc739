"""The pages: every link leads somewhere, every command is understood, every name exists, every figure is explained."""

import re
import shlex
import sys
from pathlib import Path
from pydoc import locate

import pytest
from conftest import ROOT, run_script
from test_house import MAY_IMPORT, SOURCES
from test_train import metrics

import ablate
import eval as evaluation
from engine.command_line import declared, make
from train import Options, build_parser

PAGES = ["README.md", "RESULTS.md", "EXERCISES.md"] + sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))
every_page = pytest.mark.parametrize("page", PAGES)


def read(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")


def anchors(text: str) -> set[str]:
    """Return what GitHub makes of headings."""
    titles = (re.sub(r"[^\w\s-]", "", title.lower()) for title in re.findall(r"(?m)^#+ (.*)$", text))
    return {title.strip().replace(" ", "-") for title in titles}


def commands(page: str) -> list[tuple[str, list[str]]]:
    """Return each script (or "-m module") that is called, in blocks or in the text, and its arguments."""
    calls = re.findall(r"(?:python|torchrun[^\n`]*?) (-m [\w.]+|[\w/]+\.py)((?: [^\n`|]*)?)", read(page))
    return [(script, shlex.split(arguments, comments=True)) for script, arguments in calls]


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = (ROOT / page).parent / file if file else ROOT / page
            assert path.exists(), target
            assert not anchor or anchor in anchors(read(path)), target


@every_page
def test_commands_are_understood(page, monkeypatch, tmp_path):
    for script, arguments in commands(page):
        if script == "train.py":
            given = [argument for argument in arguments if argument not in ("--explain", "...")]
            Options.of(vars(build_parser().parse_args(given)))
        elif script == "eval.py":
            make(evaluation.TestOptions, vars(evaluation.build_parser().parse_args(arguments)))
        elif script == "ablate.py" and "--help" not in arguments:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            options, train_options = ablate.parse_arguments()
            options.out = str(tmp_path)
            assert ablate.plan(options, train_options)
        elif script.startswith("-m ") and script != "-m pytest":
            module = script.removeprefix("-m ")
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
            flags = [argument for argument in arguments if argument.startswith("--")]
            known = run_script(module, "--help").stdout if flags else ""
            assert [flag for flag in flags if flag not in known] == [], module
        for file in (word for word in [script, *arguments] if word.endswith(".py")):
            assert (ROOT / file).exists(), file


@every_page
def test_files_and_names_exist(page):
    for name in set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md|diff))`", read(page))):
        assert (ROOT / name).exists(), name
    for name in set(re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)(?:\([^`]*)?`", read(page))):
        owner, _, last = name.rpartition(".")
        if name.partition(".")[0] in MAY_IMPORT and last not in ("py", "html"):  # else a file, or no name of ours
            fields = getattr(locate(owner), "__annotations__", {})  # those without a default are no attributes
            assert locate(name) is not None or last in fields, name


@every_page
def test_the_interpreter_is_spelt_in_one_way(page):
    assert re.findall(r".*(?<!\.venv/bin/)\bpython (?:-m [a-z]+\.|\w+\.py).*", read(page)) == []


@every_page
def test_flags_exist(page):
    classes = [*Options.parts().values(), evaluation.TestOptions, ablate.AblateOptions]
    known = {option.flag for part in classes for option in declared(part)}
    known |= {flag for path in SOURCES for flag in re.findall(r"\"(--[a-z][a-z-]+)\"", read(path))}
    known |= {"--help", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--no-deps"}
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(re.findall(r"`[^`\n]+`", read(page)))))
    assert {flag for flag in flags if flag not in known and flag.replace("--no-", "--") not in known} == set()


def test_each_metric_is_explained_in_the_glossary(finished_run):
    glossary = read("docs/glossary.md")
    assert [name for name in metrics(finished_run)[-1] if f"`{name}`" not in glossary] == []
