"""Command lines from dataclasses: a flag for each annotated field, with its help, its bounds and its default.

    @dataclass
    class UpdateOptions:
        lr: Annotated[float, "learning rate", {"above": 0, "real": 1e-6}] = 1e-4

becomes --lr. The bounds are "least", "above" and "most"; "real" is the default for real models, which differ from the
embedded one. A bool becomes --name and --no-name, a Literal a choice. A field that is not annotated is no option.
"""

import argparse
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

from models import tiny

USAGE = "%(prog)s [OPTIONS], which --help lists"  # a mistyped option would print all of them before the error


class OptionError(ValueError):
    """Options that cannot be used, or not together; the message names them."""


class Declared(NamedTuple):
    name: str
    kind: Any  # a type or a Literal
    help: str
    bounds: Mapping[str, Any]
    default: Any

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any) -> None:
        """Raise OptionError for a value out of bounds."""
        least, above, most = (self.bounds.get(name) for name in ("least", "above", "most"))
        choices = get_args(self.kind)
        expected = {
            f"at least {least}": least is None or value >= least,
            f"above {above}": above is None or value > above,
            f"at most {most}": most is None or value <= most,
            f"one of {', '.join(map(str, choices))}": not choices or value in choices,
        }
        for text, holds in expected.items():
            if not holds:
                raise OptionError(f"{self.flag}: found {value!r}, expected {text}")


def declared(options: type) -> Iterator[Declared]:
    """Yield the options that a dataclass declares."""
    hints = get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        if get_origin(hints[field.name]) is Annotated:
            kind, text, *bounds = get_args(hints[field.name])
            yield Declared(field.name, kind, text, bounds[0] if bounds else {}, field.default)


def add_flags(
    parser: argparse.ArgumentParser,
    classes: Iterable[type],
    presets: Mapping[str, Mapping] = MappingProxyType({}),
    leave_out: Collection[str] = (),
) -> None:
    """Add a group of flags for each class.

    presets: name -> other defaults, shown in the help.  leave_out: options that get no flag.
    Flags that are not given stay absent, so that a preset or a resumed run can fill them in.
    """
    for options in classes:
        group = parser.add_argument_group((options.__doc__ or options.__name__).splitlines()[0].rstrip("."))
        for option in (option for option in declared(options) if option.name not in leave_out):
            defaults = [str(option.default) or "empty"]
            defaults += [f"{name}: {values[option.name]}" for name, values in presets.items() if option.name in values]
            if "real" in option.bounds:
                defaults.append(f"real models: {option.bounds['real']}")
            text = f"{option.help} (default: {'; '.join(defaults)})".replace("%", "%%")
            arguments: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
            if option.kind is bool:
                arguments["action"] = argparse.BooleanOptionalAction
            elif get_origin(option.kind) is Literal:
                arguments["choices"] = get_args(option.kind)
            else:
                arguments |= {"type": option.kind, "metavar": {int: "N", float: "X"}.get(option.kind, "TEXT")}
            group.add_argument(option.flag, **arguments)


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the flags that give options these values."""
    flags = []
    for name, value in values.items():
        prefix, suffix = ("" if value else "no-", "") if isinstance(value, bool) else ("", f"={value}")
        flags.append(f"--{prefix}{name.replace('_', '-')}{suffix}")
    return flags


def defaults_for(model: str, classes: Iterable[type]) -> dict[str, Any]:
    """Return the defaults that differ for this model: none for the embedded policy, those of real models otherwise."""
    if tiny.is_embedded(model):
        return {}
    every = (option for options in classes for option in declared(options))
    return {option.name: option.bounds["real"] for option in every if "real" in option.bounds}


def make(options: type, values: Mapping[str, Any]) -> Any:
    """Make an instance from its share of the values, and check them.  Raises OptionError."""
    known = list(declared(options))
    try:
        made = options(**{option.name: values[option.name] for option in known if option.name in values})
    except ValueError as error:  # the class has a check of its own
        raise OptionError(str(error)) from error
    for option in known:
        option.check(getattr(made, option.name))
    return made


class Parts:
    """Options in parts, each a dataclass that its reader declares. A subclass is a dataclass with a field per part."""

    @classmethod
    def parts(cls) -> dict[str, type]:
        """Return the class of each part by its name."""
        return get_type_hints(cls)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Make all parts from values by option name, where real models have their own defaults.  Raises OptionError."""
        values = defaults_for(values.get("model", "tiny"), cls.parts().values()) | dict(values)
        return cls(**{name: make(part, values) for name, part in cls.parts().items()})

    @classmethod
    def check(cls, values: Mapping[str, Any], place: str) -> None:
        """Raise OptionError unless values that were read from `place` hold each option, of its type, and no others."""
        known = {option.name: option for part in cls.parts().values() for option in declared(part)}
        for name in sorted(known.keys() ^ values.keys()):
            found, expected = ("no ", "one") if name in known else ("", "no such option")
            raise OptionError(f"{place}: found {found}{name}, expected {expected}; was it made by another version?")
        for name, value in values.items():
            kind = str if get_origin(known[name].kind) is Literal else known[name].kind
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise OptionError(f"{place}: found {name} = {value!r}, expected a value of type {kind.__name__}")

    def flat(self) -> dict[str, Any]:
        """Return all options in one dictionary, as config.json holds them."""
        every = (getattr(self, name) for name in self.parts())
        return {option.name: getattr(part, option.name) for part in every for option in declared(type(part))}
