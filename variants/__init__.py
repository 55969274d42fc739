"""Variants: what MASA is compared with, and what goes beyond it.

Each is a small subclass of `train.Trainer` that overrides one of its two seams, `choose` (which problems are solved) or
`wanted` (when there are enough). `python train.py --variant NAME` trains with it, `ablate.py` compares them.

    dapo.py      dynamic sampling: draw on until P problems have solutions that differ in outcome
    history.py   skip by what became of the same problem before
    oracle.py    the oracle gate: the most that any gate could save
    refill.py    fresh problems take the place of those that the gate skips
"""

import importlib

VARIANTS = {
    "dapo": "variants.dapo:Dapo",
    "history": "variants.history:History",
    "oracle-gate": "variants.oracle:OracleGate",
    "refill": "variants.refill:Refill",
}


def load(name: str) -> type:
    """Return the trainer of a variant."""
    module, _, trainer = VARIANTS[name].partition(":")
    return getattr(importlib.import_module(module), trainer)
