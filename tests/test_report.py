"""The report is complete, self-contained, and harmless whatever a model wrote."""

import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import run_script
from test_compare import REWARDS, write_rows, write_run

from engine.run_folder import read_rows
from lab import compare, report

HOSTILE = "</pre></style><script>alert('x')</script><img src=x onerror=alert(1)>&\"' \ud83d\ude00".encode(
    "utf-16", "surrogatepass"
).decode("utf-16")


BELIEF = [0.0] * 6 + [1.0, 0.0, 0.0]  # a pass rate of 0.75


def hostile_problem() -> dict:
    predictions = [{"pass_rate": 0.75, "solution_length": 9, "notions": [HOSTILE]}, None]
    problem = {"problem": HOSTILE, "answer": HOSTILE, "level": 2, "predictions": predictions, "tokens_meta": 3}
    problem |= {"rewards": [dict.fromkeys(REWARDS, 0.0)] * 2, "correct": [1, 0, 0, 0], "lengths": [9, 8, 7, 6]}
    return problem | {"unparsed": [HOSTILE], "right_solution": HOSTILE, "wrong_solution": HOSTILE}


class Tags(HTMLParser):
    """Collect tags, and check that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.open += [tag] * (tag != "meta")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


@pytest.fixture
def hostile_page(tmp_path) -> str:
    for variant, seed in (("grpo", 0), ("grpo", 1), ("masa<b>", 0)):
        path = write_run(tmp_path, variant, seed, [0, 1000, 2_000_000], [0.2, 0.4, 0.6], meta=4)
        row = {"step": 2, "training_s": 1.0, "problems": [hostile_problem()] * 2}
        write_rows(path / "evaluations.jsonl", [row | {"step": 0}, row])
        rows = [row | {"grad_norm": 0.5, "wrongly_cut_frac": 0.25} for row in read_rows(path / "metrics.jsonl")]
        write_rows(path / "metrics.jsonl", rows)
    assert run_script("lab.report", str(tmp_path)).status == 0
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_a_model_wrote_is_shown_and_never_run(hostile_page):
    tags = parsed(hostile_page)
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in tags.seen}
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert HOSTILE in tags.text  # word for word, once unescaped
    assert "masa<b>" in "".join(tags.text)


def test_nothing_is_fetched(hostile_page):
    page = re.sub(r"&[a-z#0-9]+;|src=x", "", hostile_page)
    page = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"|xlink:href="#|url\(#', "", page)  # within the page
    assert not re.search(r"""(?:src|href|action)\s*=|url\(|@import|https?://""", page)


def test_every_part_is_there(hostile_page):
    text = "".join(parsed(hostile_page).text)
    parts = ["MASA: 3 runs", "pass@1 against steps", "pass@1 against tokens", "before training", "reward: notion"]
    parts += ["correlation: said, read", "Where the tokens went", "in predictions", "Transcripts"]
    parts += ["grpo: pass@1 0.200 before training, 0.600 after 2 steps and 2 M tokens", "trained until 20", "--seed=1"]
    parts += ["grad_norm", "wrongly_cut_frac", "off by 0.50", "1 of 4 correct", "(did not parse)"]
    parts += ["correct solutions have 9 to 9 tokens", "said 75%"]
    assert [part for part in parts if part not in text] == []


def test_the_worst_mispredictions_come_first(tmp_path):
    path = write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4], meta=4)
    rights = [4, 1, 3, 0, 2, 3, 3, 3, 3, 3, 3]  # of 4, all predicted 0.75
    problems = [
        hostile_problem() | {"problem": f"p{i}", "correct": [1] * n + [0] * (4 - n)} for i, n in enumerate(rights)
    ]
    write_rows(path / "evaluations.jsonl", [{"step": 1, "training_s": 1.0, "problems": problems}])
    text = "".join(parsed(report.page(compare.find_runs([tmp_path]))).text)
    assert re.findall(r"off by ([\d.]+)", text) == ["0.75", "0.50", "0.25", "0.25", "0.00", "0.00", "0.00", "0.00"]
    assert text.index("p3") < text.index("p1") < text.index("p0") < text.index("p4")


def test_a_run_without_predictions_or_evaluations_has_a_report(tmp_path):
    path = write_run(tmp_path, "grpo", 0, [0, 100], [0.2, 0.4])
    nothing = {f"eval_reward_{name}": None for name in REWARDS}
    write_rows(path / "metrics.jsonl", [row | nothing for row in read_rows(path / "metrics.jsonl")])
    (path / "evaluations.jsonl").unlink()
    text = "".join(parsed(report.page(compare.find_runs([tmp_path]))).text)
    assert "pass@1 against steps" in text
    assert not any(part in text for part in ("Transcripts", "Rewards of predictions", "Does it know itself"))


def test_the_area_of_a_dot_is_the_number_of_its_problems(tmp_path, monkeypatch):
    path = write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4], meta=4)
    problems = [hostile_problem() | {"correct": correct} for correct in ([0] * 4, [1, 0, 0, 0], [0] * 4, [0] * 4)]
    write_rows(path / "evaluations.jsonl", [{"step": 1, "training_s": 1.0, "problems": problems}])
    drawn = []
    monkeypatch.setattr(report.Axes, "scatter", lambda self, x, y, s, **_: drawn.append((x, y, s)))
    report.awareness_chart("masa", compare.by_variant(compare.find_runs([tmp_path])))
    dots = [(x.tolist(), y.tolist(), size) for x, y, size in drawn[:2]]
    assert dots == [([0.75], [0.25], report.DOT), ([0.75], [0.0], 3 * report.DOT)]


def test_what_is_said_and_what_is_read_stand_side_by_side(tmp_path):
    beliefs = {"belief": [0.5, *[0.0] * 7, 0.5]}
    for variant, more in (("both", beliefs), ("said", {}), ("read", beliefs | {"predictions": [], "rewards": []})):
        path = write_run(tmp_path, variant, 0, [0, 100], [0.2, 0.4])
        write_rows(path / "evaluations.jsonl", [{"step": i, "problems": [hostile_problem() | more]} for i in (0, 1)])
    runs = compare.find_runs([tmp_path])
    said, read = ["before training: said", "after training: said"], ["after training: read"]
    for variant, drawn in report.pictures(runs).items():
        expected = {"awareness-both.svg": said + read, "awareness-said.svg": said, "awareness-read.svg": read}
        assert re.findall(r"\w+ training: \w+(?=<)", drawn) == expected.get(variant, [])
    text = "".join(parsed(report.page(runs)).text)
    assert "read, seed 0" in text and "gate, read: precision" in text and re.search(r"said 75%\s+read 50%\s+corr", text)


def test_bands_reach_from_the_lowest_to_the_highest_seed(tmp_path):
    write_run(tmp_path, "grpo", 0, [0, 100, 200], [0.2, 0.4, 0.8])
    write_run(tmp_path, "grpo", 1, [0, 200, 400], [0.2, 0.6, 0.6])
    runs = compare.find_runs([tmp_path])
    x, y = report.over_seeds(runs, "eval_pass1", "step")
    assert list(x) == [0, 1, 2] and y.tolist() == [[0.2, 0.4, 0.8], [0.2, 0.6, 0.6]]
    x, y = report.over_seeds(runs, "eval_pass1", "tokens")  # as far as the seed that spent less
    assert list(x) == [0, 100, 200] and y == pytest.approx(np.array([[0.2, 0.4, 0.8], [0.2, 0.4, 0.6]]))
    [ax] = report.learning_curves({"grpo": runs}, "pass@1", {"pass@1": ("eval_pass1", "step")}).axes
    [line], [band] = ax.lines, ax.collections
    assert line.get_ydata() == pytest.approx([0.2, 0.5, 0.7])
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(1, 0.4), (1, 0.6), (2, 0.6), (2, 0.8)}


def test_predicted_and_actual_rates_are_those_of_all_seeds_at_each_evaluation(tmp_path):
    for seed, rates in enumerate([(0.25, 0.5), (0.75, 1.0)]):  # predicted at steps 0 and 1
        path = write_run(tmp_path, "grpo", seed, [0, 100], [0.2, 0.4])
        problems = [
            hostile_problem() | {"predictions": [{"pass_rate": p, "solution_length": 9}], "belief": BELIEF}
            for p in rates
        ]
        problems[seed]["correct"] = [1, 1, 1, 1]  # the other problem: 1 of 4
        write_rows(path / "evaluations.jsonl", [{"step": i, "problems": [p]} for i, p in enumerate(problems)])
    figure = report.rate_curves({"grpo": compare.find_runs([tmp_path])})
    [actual, predicted, believed], [correlation, read] = [ax.lines for ax in figure.axes]
    assert believed.get_ydata() == pytest.approx([0.75, 0.75]) and np.isnan(read.get_ydata()).all()  # the same for all
    assert predicted.get_ydata() == pytest.approx([0.5, 0.75]) and list(predicted.get_xdata()) == [0, 1]
    assert actual.get_ydata() == pytest.approx([0.625, 0.625])
    assert correlation.get_ydata() == pytest.approx([-1, 1])


def test_pictures_stand_alone_as_svg_files(hostile_page, tmp_path):
    run_script("lab.report", str(tmp_path), "--pictures", str(tmp_path / "pictures"))
    found = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "pictures").iterdir()}
    assert set(found) == {"learning.svg", *(f"awareness-{run.variant}.svg" for run in compare.find_runs([tmp_path]))}
    for svg in found.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "http" not in re.sub(r"http://www.w3.org/(2000/svg|1999/xlink)", "", svg)


def test_the_command_names_what_is_wrong(tmp_path):
    finished = run_script("lab.report", str(tmp_path / "nothing"))
    assert finished.status == 1 and "nothing" in finished.stderr and "Traceback" not in finished.stderr
    assert run_script("lab.report", "--help").stdout.startswith("usage: python -m lab.report ")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_by_its_requirements(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    finished = run_script("lab.report", "runs")
    assert finished.status == 1
    assert finished.stderr == "lab.report needs more packages: pip install -r requirements-lab.txt"
