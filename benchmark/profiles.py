"""How large the world of a run is. Part of every run's identity; tables never mix profiles."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "bf16", "exact")


@dataclass(frozen=True)
class Profile:
    """Size of network, data and training.

    purpose:          what it is for, in a sentence.
    geometry:         which of a dataset card's geometries: "full", "reduced" or "tiny".
    width, levels:    first-level filters and resolution levels of the networks.
    dropout:          probability at the bottleneck and before the last convolution.
    steps:            optimiser steps of the `common` recipe.
    evaluate_every, evaluate_from: in steps; the last step is always evaluated.
    checkpoint_every: steps between checkpoints; a kill loses at most these.
    precision:        "fp32" (on GPUs that have it with TF32, as the field trains), "bf16"
                      (autocast of the networks' forward passes; everything else stays fp32), or
                      "exact" (fp32 without TF32, and an error from any kernel that does not
                      repeat itself; on CPUs the numbers of "fp32").
    channels_last:    whether networks on a GPU lie channels last; on CPUs they always do.
    compile:          whether `torch.compile` fuses the networks.
    """

    name: str
    purpose: str
    geometry: str
    width: int
    levels: int
    dropout: float
    steps: int
    evaluate_every: int
    evaluate_from: int
    checkpoint_every: int
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}; known: {', '.join(PRECISIONS)}")
        for name in ("width", "steps", "evaluate_every", "evaluate_from", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; it must lie in [0, 1)")
        if self.geometry not in ("full", "reduced", "tiny"):
            raise ValueError(f"geometry={self.geometry!r}; known: full, reduced, tiny")
        if self.levels < 2:
            raise ValueError(f"levels={self.levels}; it must be at least 2")

    def evaluated(self, total: int) -> tuple[int, ...]:
        """Steps after which a run of `total` steps is evaluated; the last is always among them.

        A recipe of another length than the profile's is evaluated as often, at scaled steps.
        """
        factor = total / self.steps
        first = max(1, round(self.evaluate_from * factor))
        every = max(1, round(self.evaluate_every * factor))
        return tuple(sorted({*range(first, total + 1, every), total}))


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            name="paper",
            purpose="the paper's scale: full volumes, 16-filter V-Net, 20,000 steps; needs a GPU",
            geometry="full",
            width=16,
            levels=5,
            dropout=0.5,
            steps=20_000,
            evaluate_every=200,
            evaluate_from=5_000,
            checkpoint_every=200,
        ),
        Profile(
            name="mini",
            purpose="real data at reduced resolution, thin V-Net; minutes a run on a laptop's CPU",
            geometry="reduced",
            width=8,
            levels=4,
            dropout=0.5,
            steps=1_000,
            evaluate_every=50,
            evaluate_from=500,
            checkpoint_every=50,
        ),
        Profile(
            name="demo",
            purpose="mini cut to 300 steps, for the embedded phantom; half a minute a run",
            geometry="reduced",
            width=8,
            levels=4,
            dropout=0.5,
            steps=300,
            evaluate_every=25,
            evaluate_from=150,
            checkpoint_every=50,
        ),
        Profile(
            name="smoke",
            purpose="seconds; proves that a command works, its numbers mean nothing",
            geometry="tiny",
            width=4,
            levels=3,
            dropout=0.5,
            steps=8,
            evaluate_every=4,
            evaluate_from=4,
            checkpoint_every=2,
        ),
    )
}
