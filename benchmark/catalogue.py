"""The table of methods that `bench list methods` and the README show."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from importlib.resources import files

import torch

from benchmark.networks import initialise
from benchmark.profiles import PROFILES
from methods.base import Method
from results.text import told

HEAD = ("name", "title", "paper", "follows", "recipes", "parameters, millions", "published for")


def rows(methods: Iterable[type[Method]]) -> list[tuple[str, ...]]:
    """One row a method, under `HEAD`."""
    printed = settings()
    return [
        (
            m.name,
            m.title,
            m.paper,
            str(m.fidelity),
            "common" + ", authors" * bool(m.authors),
            _sizes_text(m),
            printed.get(m.name, ""),
        )
        for m in methods
    ]


def _sizes_text(method: type[Method]) -> str:
    """A method of a plugin that cannot be built must not hide the others."""
    try:
        counted = method.sizes or sizes(method)
    except Exception as error:
        return f"cannot be built: {told(error)}"
    return ", ".join(f"{name} {n / 1e6:.4g}" for name, n in counted.items())


def sizes(method: type[Method]) -> dict[str, int]:
    """Parameters of each network that has some, at the paper's scale, without making them."""
    paper = PROFILES["paper"]
    with torch.device("meta"):
        nets = initialise(
            method(), 0, channels=1, width=paper.width, levels=paper.levels, dropout=paper.dropout
        )
    counted = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    return {name: n for name, n in counted.items() if n}


def settings() -> dict[str, str]:
    """By method, the datasets and labelled volumes for which a packaged table prints a Dice.

    Read as text, without `results.published`: a listing must not wait for pandas.
    """
    found: dict[str, dict[str, set[int]]] = {}
    for path in files("results").joinpath("published").iterdir():
        if not path.name.endswith(".csv"):
            continue
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["metric"] == "dsc" and row["labelled"]:
                    labelled = found.setdefault(row["method"].split()[0], {})
                    labelled.setdefault(row["dataset"], set()).add(int(row["labelled"]))
    return {name: _setting(labelled) for name, labelled in found.items()}


def _setting(labelled: dict[str, set[int]]) -> str:
    order = sorted(labelled, key=lambda name: (name == "brats2019", name))
    return "; ".join(f"{d} {', '.join(map(str, sorted(labelled[d])))}" for d in order)
