"""What keeps the tree as it is described: imports point one way, every file is listed."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.data import SOURCES
from benchmark.executors import EXECUTORS
from benchmark.networks import NETWORKS
from methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmark", "methods", "protocols", "results", "reports")
MAY_IMPORT = {
    "methods": {"methods"},
    "results": {"results"},
    "protocols": {"protocols", "results"},
    "reports": {"reports", "protocols", "results"},
    "benchmark": set(PACKAGES),
}
USES_TORCH = {"benchmark", "methods"}
LISTED = {
    "methods": (
        {inspect.getmodule(c) for c in METHODS},
        {"base", "common", "compiled", "components"},
    ),
    "benchmark.executors": ({inspect.getmodule(c) for c in EXECUTORS.values()}, {"base"}),
    "benchmark.networks": ({inspect.getmodule(c) for c in NETWORKS.values()}, set()),
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    forbidden = set(PACKAGES) - MAY_IMPORT[package]
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & forbidden, path


def test_no_method_imports_another() -> None:
    """What several need is a function in `methods/common.py`, or a module that is no method."""
    methods = {cls.__module__ for cls in METHODS}
    assert len(methods) > 10
    for path in (ROOT / "methods").glob("*.py"):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in methods, path


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - USES_TORCH))
def test_only_benchmark_and_methods_import_torch(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert "torch" not in imported(path), path


@pytest.mark.parametrize("module", ["reports.report", "benchmark.status", "benchmark.cli"])
def test_what_is_to_start_fast_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", sorted(LISTED))
def test_every_implementation_is_listed_in_its_registry(package: str) -> None:
    modules, not_implementations = LISTED[package]
    listed = {m.__name__.split(".")[-1] for m in modules if m}
    folder = importlib.import_module(package).__path__
    files = {m.name for m in pkgutil.iter_modules(folder)} - not_implementations
    assert files == listed, f"list it in {package}/__init__.py"


def test_names_are_unique_and_what_users_can_type() -> None:
    names = [m.name for m in METHODS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", n) for n in [*names, *SOURCES, *EXECUTORS])


def test_only_seeding_seeds() -> None:
    seeds = re.compile(r"\b(manual_seed|np\.random\.seed|random\.seed)\(")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "seeding.py":
                assert not seeds.search(path.read_text()), path


def test_nothing_loads_pickles() -> None:
    loads = re.compile(r"\bpickle\b|joblib\.load|read_pickle|allow_pickle=True|weights_only=False")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert not loads.search(path.read_text()), path
