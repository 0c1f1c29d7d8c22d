r"""CDS, competitive dual students (Hu et al., EAAI 144, 2025, 10.1016/j.engappai.2025.110082).

Two students :math:`f_A, f_B` learn from a teacher, the moving average of their mean. On unlabelled
voxels only the surer student learns the teacher's class. Contrast, at the deepest level of the
networks, whose cells pass through a projection and a prediction head, pulls a student's vector
:math:`a` to the vectors :math:`P` of its class and pushes it from :math:`N`, with cosines s:

.. math:: \ell(a) = - \frac{1}{|P|} \sum_{p \in P} \log
          \frac{e^{s(a, p) / \tau}}{e^{s(a, p) / \tau} + \sum_{n \in N} e^{s(a, n) / \tau}}

Two memories of the teacher's vectors supply P (it was right and sure) and N (wrong and unsure), by
the true class of a cell: N are cells of the same class that the teacher missed.

=====================  ============================================  =============================
term                   here                                          paper
=====================  ============================================  =============================
``supervised``         cross-entropy, both students                  supervised loss
``competition``        `competition`: teacher's class, where surer   competitive consistency loss
``low_level``          all cells; class of the nearest prototype     low-level contrastive loss
``high_level``         reliable cells; P from the memory if they     high-level contrastive loss
                       are so in one student, else of the other
prototypes             `prototypes`, mean of the teacher's vectors   class prototypes
reliable               `reliable`                                    reliability features
memories               `Memory`, first in first out                  memory bank
teacher                ``after_step``                                average EMA update
=====================  ============================================  =============================

The paper's terms are named as in its overview figure; what they are is taken from the released
code for the left atrium, of which three things are not followed. Its memories are filled with the
true labels of *unlabelled* volumes too: here, whatever the variant, with labelled ones alone. The
other two are ``variant="released"``:

=====================  ===========================  ==============================================
what                   ``fixed``                    ``released``
=====================  ===========================  ==============================================
students               two, equal at the start      one network under two names
contrast               as above                     distances d = 1 - s for s, and in place of the
                                                    sum over N that of d over N and all anchors,
                                                    so that it falls as P goes away
=====================  ===========================  ==============================================

Memories begin after 1,000 of the authors' 6,000 steps, contrast after 2,000. The release keeps the
checkpoint that is best on the test cases (every 100 steps), but its test script loads the last; the
TCSeg paper lists the published numbers as those of the last. Deviations: see `CDS.deviations`.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) it stays below the
supervised network: Dice 48.2 in the mean of all checkpoints, 65.6. Contrast is not the cause:
without it (``contrast_starts=1``, seed 0, on another processor) the mean is 48.9, students swing
between 12 and 76, and the teacher rises from 33 to 62.9. Nor are two students, each with half of
the gradient that the release's one network has, and their averaged teacher: ``variant=released``
without contrast has 50.8 in the mean (46.2 by default, seed 0). What is left is cross-entropy
without Dice, beside hard pseudo-labels at full weight from the first step. On the hippocampus (18
labels) no seed finds any foreground before step 800, and contrast is 0 at every step of seed 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_choice,
    check_range,
    cross_entropy,
    frozen,
    hard_label,
    noisy,
    predictor,
)

Variant = Literal["fixed", "released"]

CLASSES = (0, 1)
MEMORY = 256
"""Vectors that a memory keeps of each class."""
REMEMBERED = 16
"""Vectors a class that a memory takes at most, times the labelled volumes of the batch."""
TEMPERATURE = 0.5
SURE, UNSURE = 0.85, 0.53
"""Probability above which the teacher is sure of a class, and below which it is not."""
RELIABLE = 0.7
"""Probability above which a student can be reliable."""
HARDEST = 0.2
"""Part of the voxels, those of highest entropy, that can be reliable at the start of the run."""


@final
@dataclass(frozen=True)
class CDS(Method):
    """See the module docstring.

    variant:         "fixed" or "released".
    decay:           of the teacher's moving average.
    noise_std, noise_limit: of the students' input noise and where it is clipped, in units of the
                     normalised intensity.
    memory_starts:   fraction of the run before the memories are filled.
    contrast_starts: fraction of the run before the two contrastive terms.
    low:             weight of the low-level term.
    high:            weight of the high-level term.
    """

    name: ClassVar[str] = "cds"
    title: ClassVar[str] = "CDS"
    paper: ClassVar[str] = "10.1016/j.engappai.2025.110082"
    bibtex: ClassVar[str] = """@article{hu2025cds,
  author  = {Hu, Gang and Zhao, Feng and Houssein, Essam H.},
  title   = {Competitive dual-students using bi-level contrastive learning for semi-supervised
             medical image segmentation},
  journal = {Engineering Applications of Artificial Intelligence},
  volume  = {144},
  pages   = {110082},
  year    = {2025},
  doi     = {10.1016/j.engappai.2025.110082}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "Labels of unlabelled volumes, which the release puts into its memories, are not used.",
        "The students are two, and contrast has the sign that its name promises "
        "(`variant=released`: neither).",
        "Which vectors a memory takes where there are too many is drawn at random; the release "
        "ranks them by small networks that never learn.",
        "Heads see all cells of a volume, and a single vector is enough for contrast; in the "
        "release they see the vectors that contrast needs, of which there must be two.",
        "Each student has noise of its own, so that they part even without dropout.",
        "The teacher sees all volumes in one pass from the start.",
        "The part of the voxels that can be reliable falls every step; the release's falls every "
        "epoch.",
        "Where a student is not the surer one, the competition term is 0, not log 2; its gradient "
        "is the same.",
        "Dropout is that of the run's profile; the release's is 0.3.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", schedule="step", milestones=(2500 / 6000, 5000 / 6000), steps=6_000
    )
    sizes: ClassVar[Mapping[str, int]] = {
        "student1": 9_713_058,
        "student2": 9_713_058,
        "teacher": 9_713_058,
    }

    variant: Variant = "fixed"
    decay: float = 0.99
    noise_std: float = 0.1
    noise_limit: float = 0.2
    memory_starts: float = 1 / 6
    contrast_starts: float = 1 / 3
    low: float = 0.01
    high: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("decay", self.decay, 0, 1)
        check_range("noise_std", self.noise_std, 0)
        check_range("noise_limit", self.noise_limit, 0)
        check_range("memory_starts", self.memory_starts, 0, 1)
        check_range("contrast_starts", self.contrast_starts, 0, 1)
        check_range("low", self.low, 0)
        check_range("high", self.high, 0)

    @property
    def students(self) -> tuple[str, str]:
        """Names of the two students' networks."""
        return ("student1", "student1" if self.variant == "released" else "student2")

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """Students and their teacher, equal at the start, and two empty memories."""
        width = build.width * 2 ** (build.levels - 1)
        student = Headed(build(), width)
        nets = {name: deepcopy(student) for name in self.students}
        memories = {"right": Memory(width), "wrong": Memory(width)}
        return nn.ModuleDict(nets | {"teacher": frozen(student)} | memories)

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms; memories take the teacher's vectors of the labelled volumes first."""
        n = len(batch.image)
        images = torch.cat([batch.image, batch.unlabelled])
        one, two = (
            nets[name](noisy(images, self.noise_std, self.noise_limit, rng))
            for name in self.students
        )
        with torch.no_grad():
            teacher = nets["teacher"](images)
        said = hard_label(teacher.logits[n:])
        entropies = [cross_entropy(x.logits[:n], batch.label).mean() for x in (one, two)]
        terms = {
            "supervised": Term(torch.stack(entropies).sum()),
            "competition": Term(competition(one.logits[n:], two.logits[n:], said)),
        }
        if step.fraction >= self.memory_starts:
            self._remember(nets, teacher, batch.label, rng)
        if step.fraction >= self.contrast_starts:
            a, b, t = (Cells.of(x, n) for x in (one, two, teacher))
            means = prototypes(t.vector, t.said, t.sure > SURE)
            everywhere = torch.ones_like(t.said, dtype=torch.bool)
            low = [
                self._remembered(nets, x.vector, nearest(x.vector, means), everywhere)
                for x in (a, b)
            ]
            terms["low_level"] = Term(torch.stack(low).sum(), self.low)
            good = [reliable(x.logits[n:], said, step) for x in (one, two)]
            high = self._high_level(nets, a, b, [at_cells(x, a.shape).flatten() for x in good])
            terms["high_level"] = Term(high, self.high)
        return terms

    def _remember(
        self, nets: nn.ModuleDict, teacher: Seen, label: Tensor, rng: torch.Generator
    ) -> None:
        """Store the teacher's projections of labelled cells in which it is right, or wrong."""
        n = len(label)
        vectors = flat(teacher.projection[:n])
        shape = teacher.projection.shape[2:]
        logits = at_cells(teacher.logits[:n], shape)
        truth = at_cells(label, shape).flatten()
        said, sure = hard_label(logits).flatten(), logits.softmax(1).amax(1).flatten()
        right, wrong = (said == truth) & (sure > SURE), (said != truth) & (sure < UNSURE)
        for name, wanted in (("right", right), ("wrong", wrong)):
            for c in CLASSES:
                memory(nets, name).take(
                    c, vectors, some(wanted & (truth == c), REMEMBERED * n, rng)
                )

    def _remembered(
        self, nets: nn.ModuleDict, vectors: Tensor, kind: Tensor, where: Tensor
    ) -> Tensor:
        """Contrast of cells (N, D) of class `kind` (N,) with the memories, mean of the classes."""
        right, wrong = memory(nets, "right"), memory(nets, "wrong")
        return torch.stack(
            [
                contrast(
                    (vectors, where & (kind == c)),
                    (right.vectors[c], right.filled[c]),
                    (wrong.vectors[c], wrong.filled[c]),
                    released=self.variant == "released",
                )
                for c in CLASSES
            ]
        ).mean()

    def _high_level(self, nets: nn.ModuleDict, a: Cells, b: Cells, good: list[Tensor]) -> Tensor:
        """Cells reliable in one student against the memories, in both against each other."""
        only_a, only_b, both = good[0] & ~good[1], good[1] & ~good[0], good[0] & good[1]
        parts = [
            self._remembered(nets, a.vector, a.said, only_a),
            self._remembered(nets, b.vector, b.said, only_b),
        ]
        wrong = memory(nets, "wrong")
        for surer in (a.sure > b.sure, a.sure < b.sure):
            pairs = [
                contrast(
                    (a.vector, both & surer & (a.said == c)),
                    (b.vector, both & surer & (b.said == c)),
                    (wrong.vectors[c], wrong.filled[c]),
                    released=self.variant == "released",
                )
                for c in CLASSES
            ]
            parts.append(torch.stack(pairs).mean())
        return torch.stack(parts).sum()

    @torch.no_grad()
    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the mean of the students."""
        decay = min(1 - 1 / (10 * step.index + 1), self.decay)
        students = (nets[name].parameters() for name in self.students)
        for average, one, two in zip(nets["teacher"].parameters(), *students, strict=True):
            average.lerp_((one + two) / 2, 1 - decay)

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The first student, as in the release; the second, and the teacher."""
        names = dict.fromkeys((*self.students, "teacher"))
        found = {name: predictor(cast("Headed", nets[name]).net) for name in names}
        return {"main": found.pop("student1")} | found


class Seen(NamedTuple):
    """What a network says: logits (B, 2, X, Y, Z) and, of the cells, vectors (B, D, x, y, z)."""

    logits: Tensor
    projection: Tensor
    prediction: Tensor


class Headed(nn.Module):
    """A network with a projection and a prediction head on its deepest map of `width` channels."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net = net
        self.project, self.predict = (
            nn.Sequential(
                nn.Conv3d(width, width, 1),
                nn.BatchNorm3d(width),
                nn.ReLU(inplace=True),
                nn.Conv3d(width, width, 1),
            )
            for _ in range(2)
        )

    def forward(self, image: Tensor) -> Seen:
        """Images (B, C, X, Y, Z) to what the network says."""
        output = self.net(image)
        projection = self.project(output.deepest)
        return Seen(output.logits, projection, self.predict(projection))


class Memory(nn.Module):
    """The last `MEMORY` vectors of each class, newest first, and which places are filled."""

    vectors: Tensor
    filled: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(len(CLASSES), MEMORY, width))
        self.register_buffer("filled", torch.zeros(len(CLASSES), MEMORY, dtype=torch.bool))

    @torch.no_grad()
    def take(self, c: int, vectors: Tensor, chosen: Tensor) -> None:
        """Put the chosen (N,) of the vectors (N, D) of class c before those already there."""
        rows = torch.cat([vectors, self.vectors[c]])
        present = torch.cat([chosen, self.filled[c]])
        kept = present.logical_not().byte().sort(stable=True).indices[:MEMORY]
        self.vectors[c] = rows[kept]
        self.filled[c] = present[kept]


def memory(nets: nn.ModuleDict, name: str) -> Memory:
    """The memory of that name."""
    return cast("Memory", nets[name])


class Cells(NamedTuple):
    """The unlabelled cells of a network, as rows: prediction vector, class, its probability."""

    vector: Tensor
    said: Tensor
    sure: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, seen: Seen, labelled: int) -> Cells:
        """What is seen of the volumes behind the labelled ones."""
        shape = seen.prediction.shape[2:]
        logits = at_cells(seen.logits[labelled:], shape)
        sure = logits.softmax(1).amax(1)
        return cls(
            flat(seen.prediction[labelled:]), hard_label(logits).flatten(), sure.flatten(), shape
        )


def at_cells(x: Tensor, shape: torch.Size) -> Tensor:
    """The first voxel of each cell: (..., X, Y, Z) to (..., x, y, z); nearest-neighbour."""
    i, j, k = (a // b for a, b in zip(x.shape[-3:], shape, strict=True))
    return x[..., ::i, ::j, ::k]


def flat(x: Tensor) -> Tensor:
    """Vectors (B, D, x, y, z) as rows (B * x * y * z, D)."""
    return x.movedim(1, -1).flatten(0, -2)


def some(wanted: Tensor, limit: int, rng: torch.Generator) -> Tensor:
    """At most `limit` of the wanted (N,), drawn at random."""
    draw = torch.rand(wanted.shape, generator=rng, device=wanted.device)
    rank = torch.where(wanted, draw, 2.0).argsort().argsort()
    return wanted & (rank < limit)


def competition(one: Tensor, two: Tensor, said: Tensor) -> Tensor:
    """Cross-entropy against the teacher's class of whichever student is the surer, of both.

    Args:
        one: (U, 2, X, Y, Z) scores of a student.
        two: of the other.
        said: (U, X, Y, Z) class of the teacher.
    """
    with torch.no_grad():
        sure, other = one.softmax(1).amax(1), two.softmax(1).amax(1)
    first = (sure > other) * cross_entropy(one, said)
    second = (other > sure) * cross_entropy(two, said)
    return first.mean() + second.mean()


@torch.no_grad()
def reliable(logits: Tensor, said: Tensor, step: Step) -> Tensor:
    """Where a student agrees with the teacher, surely, and is among its least sure all the same.

    The last condition: entropy within the highest fifth, of which ever less is taken along the run.

    Args:
        logits: (U, 2, X, Y, Z).
        said: (U, X, Y, Z) class of the teacher.
        step: of the run.
    """
    p = logits.softmax(1)
    entropy = -(p * (p + 1e-10).log()).sum(1)
    hardest = HARDEST * (1 - step.fraction)
    hard = entropy >= entropy.flatten().quantile(1 - hardest)
    return (hard_label(logits) == said) & (p.amax(1) > RELIABLE) & hard


def prototypes(vectors: Tensor, said: Tensor, sure: Tensor) -> Tensor:
    """Mean of the normalised vectors (N, D) of each class, where sure (N,); zero if there are none.

    Returns:
        (2, D).
    """
    rows = F.normalize(vectors, dim=1)
    weights = torch.stack([(sure & (said == c)).to(rows.dtype) for c in CLASSES])
    return weights @ rows / weights.sum(1, keepdim=True).clamp_min(1)


def nearest(vectors: Tensor, means: Tensor) -> Tensor:
    """Class (N,) of the prototype (2, D) with the larger cosine to each vector (N, D)."""
    cosine = F.normalize(vectors.detach(), dim=1) @ F.normalize(means, dim=1).T
    return (cosine[:, 1] > cosine[:, 0]).long()


def contrast(
    anchors: tuple[Tensor, Tensor],
    positives: tuple[Tensor, Tensor],
    negatives: tuple[Tensor, Tensor],
    *,
    released: bool = False,
) -> Tensor:
    """The contrastive loss, mean over anchors and positives; 0 if one of the three is empty.

    Args:
        anchors: vectors (N, D), and which of them (N,) count.
        positives: the same, those to come near to.
        negatives: the same, those to keep away from.
        released: distances for similarities, negatives summed over the anchors too.
    """
    a, p, n = (F.normalize(vectors, dim=1) for vectors, _ in (anchors, positives, negatives))
    counts, wanted, unwanted = (which.to(a.dtype) for _, which in (anchors, positives, negatives))
    attraction, repulsion = a @ p.T, a @ n.T
    if released:
        attraction, repulsion = 1 - attraction, 1 - repulsion
        against = (counts @ repulsion @ unwanted).expand(len(a))
    else:
        against = (repulsion / TEMPERATURE).exp() @ unwanted
    loss = (against.unsqueeze(1) * (-attraction / TEMPERATURE).exp()).log1p()
    return (counts @ loss @ wanted) / (counts.sum() * wanted.sum()).clamp_min(1)
