"""What one run is, exactly: its spec, its id, and the grid a command spans."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any, TypeVar

from benchmark.data.base import Augmentation, Geometry
from benchmark.plugins import source_of
from benchmark.profiles import PROFILES, Profile
from methods.base import Method, Recipe
from results.errors import UserError
from results.lookup import find, unknown

ENGINE_VERSION = 1
"""Bumped when the engine's numbers change; part of every run's identity."""

COMMON_STEPS = Recipe().steps
LARGEST_SEED = 2**32 - 1
_NOT_IDENTITY = ("purpose", "checkpoint_every")
_LATER = ("channels_last", "compile")
"""Fields of a profile that the first stores do not know: in a run's identity only where they are
not the default, so that older runs keep their ids."""

D = TypeVar("D", Method, Profile, Recipe)


@dataclass(frozen=True)
class RunSpec:
    """One run: method, setting, seed, profile, recipe.

    dataset, fingerprint: the dataset's name and the sha256 of what it holds.
    geometry, augmentation: of the dataset's card, at the profile's size.
    labelled:   number of labelled training volumes.
    predictors: names to evaluate, in the method's order.
    """

    method: Method
    recipe: Recipe
    dataset: str
    fingerprint: str
    geometry: Geometry
    augmentation: Augmentation
    labelled: int
    seed: int
    profile: Profile
    predictors: tuple[str, ...] = ("main",)

    @property
    def steps(self) -> int:
        """Optimiser steps of this run: the recipe's length at the profile's scale."""
        return max(1, round(self.recipe.steps * self.profile.steps / COMMON_STEPS))

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Steps after which this run is evaluated."""
        return self.profile.evaluated(self.steps)

    def canonical(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, and nothing else."""
        source = source_of(type(self.method))
        default = {f.name: f.default for f in fields(Profile)}
        profile = {
            name: value
            for name, value in asdict(self.profile).items()
            if name not in _NOT_IDENTITY and not (name in _LATER and value == default[name])
        }
        return {
            "engine": ENGINE_VERSION,
            "method": {
                "name": self.method.name,
                "version": self.method.version,
                "hyperparameters": asdict(self.method),
            }
            | ({"source": source} if source else {}),
            "recipe": asdict(self.recipe),
            "dataset": {
                "name": self.dataset,
                "fingerprint": self.fingerprint,
                "geometry": asdict(self.geometry),
                "augmentation": self.augmentation,
            },
            "labelled": self.labelled,
            "seed": self.seed,
            "profile": profile,
            "predictors": list(self.predictors),
        }

    @property
    def run_id(self) -> str:
        """Readable slug and hex digest of the canonical spec, `[a-z0-9-]{1,64}`."""
        digest = hashlib.sha256(canonical_json(self.canonical()).encode()).hexdigest()[:12]
        words = (
            self.method.name,
            self.dataset,
            str(self.labelled),
            f"s{self.seed}",
            self.profile.name,
        )
        slug = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
        return f"{slug[:51].rstrip('-')}-{digest}"

    def changed(self) -> dict[str, Any]:
        """Hyperparameters that differ from the method's defaults."""
        return _changed(self.method, type(self.method)())

    @property
    def profile_label(self) -> str:
        """Profile name with overrides, as tables show it."""
        return _label(self.profile.name, _changed(self.profile, PROFILES[self.profile.name]))

    @property
    def recipe_label(self) -> str:
        """Recipe name with overrides, as tables show it."""
        return _label(
            self.recipe.name, _changed(self.recipe, recipe_of(type(self.method), self.recipe.name))
        )


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    >>> canonical_json({"b": 1, "a": (0.1,)})
    '{"a":[0.1],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_from_canonical(data: Mapping[str, Any], methods: Mapping[str, type[Method]]) -> RunSpec:
    """The spec that `canonical()` described, under the present code.

    Raises:
        UserError: the engine, the method's version or its hyperparameters are others by now.
    """
    if data["engine"] != ENGINE_VERSION:
        raise UserError(
            f"this run was begun by engine version {data['engine']}, this is {ENGINE_VERSION}; "
            "start it anew (its numbers would differ) or use the older bench"
        )
    described = data["method"]
    cls = find("method", described["name"], methods)
    if described["version"] != cls.version:
        raise UserError(
            f"this run was begun with {cls.name} version {described['version']}, "
            f"this is {cls.version}; start it anew or use the older bench"
        )
    if described.get("source", "") != source_of(cls):
        raise UserError(
            f"the file of {cls.name} has changed since this run was begun; give the same command "
            "again, which begins a run of the changed method"
        )
    recipe = {**data["recipe"], "milestones": tuple(data["recipe"]["milestones"])}
    name = data["profile"]["name"]
    dataset = data["dataset"]
    shape = dataset["geometry"]
    return RunSpec(
        method=_construct(cls, described["hyperparameters"]),
        recipe=Recipe(**recipe),
        dataset=dataset["name"],
        fingerprint=dataset["fingerprint"],
        geometry=Geometry(tuple(shape["patch"]), tuple(shape["stride"]), shape["scale"]),
        augmentation=dataset["augmentation"],
        labelled=data["labelled"],
        seed=data["seed"],
        profile=replace(find("profile", name, PROFILES), **data["profile"]),
        predictors=tuple(data["predictors"]),
    )


def recipe_of(cls: type[Method], name: str) -> Recipe:
    """The recipe called `name` of a method: `common`, or its `authors`' own.

    Raises:
        UserError: the method carries no such recipe.
    """
    known = {"common": Recipe()}
    if cls.authors is not None:
        known[cls.authors.name] = cls.authors
    return find(f"recipe of {cls.name}", name, known)


def method_for(cls: type[Method], recipe: str) -> Method:
    """The method as a recipe trains it: its defaults, or what its authors set with theirs."""
    theirs = cls.authors is not None and recipe == cls.authors.name
    return cls(**cls.with_authors) if theirs else cls()


def parse_overrides(
    texts: Sequence[str], methods: Mapping[str, type[Method]], others: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """`--set` texts such as "tcseg.tau=0.05" as {"tcseg": {"tau": "0.05"}}.

    The owner is a method's name, "profile", "recipe", or one of the others.

    Raises:
        UserError: a text that is not OWNER.NAME=VALUE, or an unknown owner.
    """
    parsed: dict[str, dict[str, str]] = {}
    for text in texts:
        match = re.fullmatch(r"([^.=\s]+)\.([^.=\s]+)=(.*)", text)
        if match is None:
            raise UserError(f"--set {text}: expected OWNER.NAME=VALUE, such as tcseg.tau=0.05")
        owner, name, value = match.groups()
        owners = [*methods, "profile", "recipe", *others]
        if owner not in owners:
            raise unknown("owner of a setting", owner, owners)
        if name in parsed.setdefault(owner, {}):
            raise UserError(f"--set {owner}.{name} is given twice; keep one")
        parsed[owner][name] = value
    return parsed


def override(instance: D, owner: str, values: Mapping[str, str]) -> D:
    """The dataclass with fields set from text, each read as its type.

    Raises:
        UserError: no such field, a value that is not of its type, or not in its range.
    """
    by_name: dict[str, Field[Any]] = {f.name: f for f in fields(instance)}
    changes: dict[str, Any] = {}
    for name, text in values.items():
        if name not in by_name or name in ("name", "purpose"):
            raise unknown(f"setting of {owner}", name, set(by_name) - {"name", "purpose"})
        changes[name] = _read(text, type(getattr(instance, name)), f"{owner}.{name}")
    try:
        changed = replace(instance, **changes)
    except ValueError as error:
        raise UserError(f"--set {owner}: {error}") from None
    return changed


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds of a grid: a count such as "5" (0 to 4), or a list ("0,1,7"; "3," is seed 3 alone).

    Raises:
        UserError: not a list of integers >= 0 without repetition, or a count below 1.
    """
    problem = UserError(
        f"--seeds {text}: expected a count such as 5, or seeds such as 0,1,7 "
        f"(each once, from 0 to {LARGEST_SEED})"
    )
    parts = [p for p in text.split(",") if p.strip()]
    try:
        numbers = tuple(int(p) for p in parts)
    except ValueError:
        raise problem from None
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise problem
    if max(numbers) > LARGEST_SEED:
        raise problem
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise problem
    return tuple(range(numbers[0]))


def _read(text: str, kind: type, where: str) -> object:
    lowered = text.strip().lower()
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[lowered]
        if kind is tuple:
            return tuple(float(p) for p in text.split(",") if p.strip())
        return kind(text.strip())
    except (ValueError, KeyError):
        raise UserError(f"--set {where}={text}: expected a value of type {kind.__name__}") from None


def _construct(cls: type[Method], values: Mapping[str, Any]) -> Method:
    known = {f.name for f in fields(cls)}
    if set(values) != known:
        differing = ", ".join(sorted(set(values) ^ known))
        raise UserError(
            f"hyperparameters of {cls.name} changed since this run was begun ({differing}); "
            "start it anew"
        )
    return cls(**values)


def _changed(instance: object, default: object) -> dict[str, Any]:
    return {
        f.name: getattr(instance, f.name)
        for f in fields(default)  # type: ignore[arg-type]
        if f.name not in _NOT_IDENTITY and getattr(instance, f.name) != getattr(default, f.name)
    }


def _label(name: str, changes: Mapping[str, Any]) -> str:
    return "+".join([name, *(f"{k}={v}" for k, v in sorted(changes.items()))])
