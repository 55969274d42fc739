"""docs/paper.md: what its tables say of our default and of --algo masa-paper is so, and the tests they name exist."""

import re
from pydoc import locate

import pytest
from conftest import ROOT

from train import ALGORITHMS, Options

LINES = (ROOT / "docs/paper.md").read_text(encoding="utf-8").splitlines()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in LINES if line.startswith("| ")]
PARTS = [row for row in ROWS if row[0] != "part"]


def written(value: object) -> str:
    """Write a value as the page does."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("row", PARTS, ids=[row[0] for row in PARTS])
def test_a_row_says_what_is_so(row):
    *_, default, paper, check = row
    assert len(row) == 6
    if check.startswith("`--"):
        name = check.strip("`-").replace("-", "_")
        for algo, cell in (("masa-efficient", default), ("masa-paper", paper)):
            embedded, real = re.match(r"`([^`]*)`(?:; real models `([^`]*)`)?", cell).groups()
            assert written(Options.of({"algo": algo}).flat()[name]) == embedded
            of_real = written(Options.of({"algo": algo, "model": "x"}).flat()[name])
            assert name == "model" or of_real == (real or embedded)
    elif "::" in check:
        file, _, name = check.strip("`").partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert written(locate(check.strip("`"))) == default.strip("`")


def test_every_option_that_masa_paper_sets_is_in_the_tables():
    named = {row[-1].strip("`-").replace("-", "_") for row in PARTS}
    assert set(ALGORITHMS["masa-paper"]) <= named
