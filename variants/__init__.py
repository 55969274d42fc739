"""Variants: what MASA is compared with, and what goes beyond it.

Each is a small subclass of `train.Trainer` that overrides a method or two, above all `choose` (which problems are
solved) and `wanted` (when there are enough). `python train.py --variant NAME` trains with it, and `--variant NAME,NAME`
with several at once; `ablate.py` compares them.

    dapo.py      dynamic sampling: draw on until P problems have solutions that differ in outcome
    history.py   skip by what became of the same problem before
    oracle.py    the oracle gate: the most that any gate could save
    read.py      read what the policy knows, and gate by it (--algo masa-read)
    refill.py    fresh problems take the place of those that the gate skips
"""

import importlib

CLASSES = {"dapo": "Dapo", "history": "History", "oracle-gate": "OracleGate", "read": "Reader", "refill": "Refill"}


def load(names: str) -> type:
    """Return the trainer of a variant; of several, with commas between, a class that inherits from each."""
    kinds = []
    for name in names.split(","):
        module = importlib.import_module(f"variants.{name.partition('-')[0]}")
        kinds.append(getattr(module, CLASSES[name]))
    return kinds[0] if len(kinds) == 1 else type("Combined", tuple(kinds), {})
