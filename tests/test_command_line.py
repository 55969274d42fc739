"""Flags from dataclasses: types, bounds, choices, and defaults that depend on algorithm and model."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from conftest import run_script

from engine.command_line import OptionError, Parts, add_flags, declared, defaults_for, make
from models import tiny
from train import Options, build_parser


@dataclass
class Cooking:
    """How it is cooked.

    The help shows the first line only.
    """

    minutes: Annotated[int, "time on the fire", {"least": 1, "real": 90}] = 5
    heat: Annotated[float, "share of full heat, not 100%", {"above": 0, "most": 1}] = 0.5
    lid: Annotated[bool, "cover it"] = True
    pot: Annotated[Literal["small", "large"], "size of the pot", {"real": "large"}] = "small"
    spice: Annotated[str, "what to add"] = ""
    cook: str = "not an option"


@dataclass
class Kitchen(Parts):
    cooking: Cooking


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="cook")
    add_flags(made, [Cooking], {"soup": {"minutes": 30, "lid": False}}, leave_out=["spice"])
    return made


def test_only_flags_that_are_given_are_parsed():
    assert vars(parser().parse_args([])) == {}
    given = vars(parser().parse_args("--minutes 7 --heat 1 --no-lid --pot large".split()))
    assert given == {"minutes": 7, "heat": 1.0, "lid": False, "pot": "large"}
    assert make(Cooking, given) == Cooking(7, 1.0, False, "large")


@pytest.mark.parametrize("flags", ["--minutes soon", "--pot huge", "--spice salt", "--cook me"])
def test_flags_that_are_wrong_or_left_out_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(flags.split())
    assert flags.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.py", "eval.py", "ablate.py", "models.warm_start"])
def test_a_mistyped_option_is_named_without_pages_of_usage(name):
    finished = run_script(name, "--model", "tiny", "--out", "nowhere", "--stepz", "3")
    assert finished.status == 2 and "--stepz" in finished.stderr and len(finished.stderr.splitlines()) <= 3


@pytest.mark.parametrize("module", ["masa.py", "problems.verify", "problems.benchmarks", "lab.ask", "models.tiny"])
def test_help_works(module):
    assert run_script(module, "--help").status == 0


def test_the_help_names_every_default():
    text = " ".join(parser().format_help().split())
    assert "How it is cooked: --minutes" in text
    assert "time on the fire (default: 5; soup: 30; real models: 90)" in text
    assert "share of full heat, not 100% (default: 0.5)" in text
    assert "--lid, --no-lid cover it (default: True; soup: False)" in text
    assert "--pot {small,large} size of the pot (default: small; real models: large)" in text


BAD = [("minutes", 0, "found 0, expected at least 1"), ("heat", 0.0, "found 0.0, expected above 0")]
BAD += [("heat", 1.5, "found 1.5, expected at most 1"), ("pot", "huge", "found 'huge', expected one of small, large")]


@pytest.mark.parametrize("name, value, message", BAD)
def test_values_out_of_bounds_are_refused(name, value, message):
    with pytest.raises(OptionError, match=f"--{name}: {message}"):
        make(Cooking, {name: value})


@pytest.mark.parametrize("name", "problems steps temperature lr explore minibatches cutoff kl_coef samples".split())
def test_options_of_training_refuse_what_makes_no_sense(name):
    with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}"):
        Options.of({name: -1})


def test_real_models_have_their_own_defaults(tmp_path):
    assert defaults_for("tiny", [Cooking]) == defaults_for(str(tiny.directory()), [Cooking]) == {}
    assert defaults_for("owner/name", [Cooking]) == {"minutes": 90, "pot": "large"}
    made = Kitchen.from_values({"model": "owner/name", "pot": "small"})
    assert made.flat() == {"minutes": 90, "heat": 0.5, "lid": True, "pot": "small", "spice": ""}


def test_all_options_of_training_are_in_the_help_with_valid_defaults():
    every = [option for part in Options.parts().values() for option in declared(part)]
    printed = build_parser().format_help()
    assert len({option.name for option in every}) == len(every) == len(Options.of({}).flat())
    for option in every:
        for value in (option.default, option.bounds.get("real", option.default)):
            option.check(value)
            assert type(value) is option.kind or isinstance(value, str), option
        assert f" {option.flag} " in printed or f" {option.flag}, --no-" in printed
        assert set(option.bounds) <= {"least", "above", "most", "real"} and option.help


def test_a_configuration_gives_the_same_options_again():
    options = Options.of({"algo": "masa", "model": "somewhere", "lr": 0.5, "gate": "both", "experts": True})
    assert Options.of(options.flat()) == options
