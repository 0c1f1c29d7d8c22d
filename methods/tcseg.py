r"""TCSeg: tri-space calibrated segmentation (Li & Qin, ICML 2026, PMLR 306).

One encoder with two unlike decoders (branches b = 1, 2) and their EMA teacher give four views of
an unlabelled voxel. Confidence (what the views say on average) and uncertainty (how far they are
apart, in probabilities and in similarity to class prototypes) are judged apart, and act in three
spaces. Overall loss, eq. 23: :math:`L = L_{sup} + L_{pse} + L_{cal} + L_{mix}`.

================  =================================================================  ============
term              here                                                               paper
================  =================================================================  ============
``supervised``    `supervised`: Dice + CE, both decoders                             eq. 20
``pseudo``        `pseudo_label_loss`: reliable labels of the peer decoder           eqs. 14, 21
``calibration``   `calibration_loss`: p1 = p2, q1 = q2, p = q                        eq. 15
``mixed``         `mixed_loss`: unreliable region pasted into a labelled volume      eqs. 17-19, 22
C(v)              `confidence`, of student and teacher decoders                      eq. 6
U_pro, U_fea      `disagreement`, of probabilities p and of similarities q           eqs. 7, 8
q, prototypes     `similarity` (raw cosine in [-1, 1]), `prototypes`                 eqs. 9, 10
M_U-              `reliable`                                                         eq. 11
M_pos, M_neg      `band`                                                             eqs. 12, 13
M_per             `perturbation_mask`                                                eq. 16
teacher           ``after_step``                                                     Sec. 3.2.1
================  =================================================================  ============

Ablations: Table 2 is ``use_uncertainty`` (off: every voxel counts as certain) and
``use_confidence`` (off: the band shrinks to 1/2, every voxel counts as confident); Table 3 is
``use_probability``, ``use_feature``, ``use_image`` (off: without ``pseudo``, ``calibration``,
``mixed``; without the feature space there are no prototypes, so U_fea leaves eqs. 11 and 16 too).
With all three off, "only sup", neither the teacher nor unlabelled volumes take part.

Paper and released code part as follows; ``variant`` chooses the column.

==================  =====================================  =======================================
what                ``paper``                              ``released``
==================  =====================================  =======================================
eqs. 7, 8, 11       L1 norms over both classes, each at    foreground only; tau for p, 2 tau for q;
                    most tau                               the teacher's U_pro does not count, but
                                                           the peer's \|q - p\| <= 2 tau does
eq. 10              a voxel counts by C(v)                 by the decoder's own probability
eqs. 12, 13, 21     C(v): mean foreground probability,     the peer's larger class probability
                    >= tau_max foreground,                 w >= tau_max, CE weighted by w, and
                    <= tau_min background                  1 - w <= tau_min, CE weighted by 1 - w
eq. 15              squared norms, weights 1               weights 1, 1/4, 1/4, 1/8 of `p1 p2`,
                                                           `q1 q2`, `p1 q1`, `p2 q2`
eq. 16              dilation, largest component            closing, dilation, largest component,
                                                           nothing below 100 voxels
eqs. 17, 18         the mask itself, into labelled         odd iterations: a box at its centroid;
                                                           even ones, or if a mask is empty: random
                                                           CutMix; every second pair swaps roles
eqs. 20, 23         weights 1                              supervised 1/4, mixed 1/2
==================  =====================================  =======================================

Where the paper is silent both follow the released code: ``pseudo`` and ``calibration`` ramp up to
the weights of eq. 23 over 0.3 of the run (``rampup=0`` is eq. 23 to the letter), mixing begins
after 0.005 of it without ramp; the teacher has initial weights and batch-norm statistics of its
own; prototypes are per volume and carry gradient; the dilation element is random (1 to 7 voxels
wide, density 1/2, redrawn for each volume), so that a volume whose element is empty stays unmixed;
decoder 1 is the prediction. The release lacks its Dice, whose name there is that of MC-Net's with
linear denominators; its moving average, for which a warmed-up decay of 0.99 is the field's; and its
networks, which are of the size of MRPL's.

Deviations: see `TCSeg.deviations`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Fidelity, Method, NetOutput, NetworkFactory, Predictor, Step, Term
from methods.common import (
    check_choice,
    check_range,
    class_means,
    cross_entropy,
    decoder_predictor,
    ema_,
    frozen,
    hard_label,
    linear_dice_loss,
    sigmoid_rampup,
    similarity,
    warm_decay,
)
from methods.components import largest_component

Variant = Literal["paper", "released"]
Pair = Sequence[Tensor]
"""The same quantity of decoder 1 and decoder 2."""

EPSILON = 1e-6
ELEMENT = 7
"""Width of the largest dilation element in voxels."""
MINIMUM = 100
"""Voxels below which the released code drops a perturbation mask."""


def confidence(views: Sequence[Tensor]) -> Tensor:
    """Mean foreground probability w (B, X, Y, Z) of views (B, 2, X, Y, Z).

    Eq. 6 before its maximum: for two classes C = max(w, 1 - w), and w keeps which class is meant.
    """
    return torch.stack([view[:, 1] for view in views]).mean(0)


def band(w: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Confident foreground w >= high and confident background w <= low: C of eqs. 12 and 13."""
    return w >= high, w <= low


def disagreement(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance over classes of two (B, K, X, Y, Z): (B, X, Y, Z). Eqs. 7 and 8."""
    return (a - b).abs().sum(1)


def prototypes(features: Tensor, probability: Tensor, confident: Tensor) -> Tensor:
    """Mean embedding of each predicted class over its confident voxels, eq. 10.

    Args:
        features: z (B, F, X, Y, Z).
        probability: p (B, 2, X, Y, Z); its argmax is V_k.
        confident: (B, X, Y, Z) bool.

    Returns:
        (B, 2, F), zero for a class without such voxels.
    """
    foreground = hard_label(probability).bool()
    chosen = torch.stack([~foreground, foreground], 1) & confident.unsqueeze(1)
    return class_means(features, chosen, EPSILON)


def reliable(disagreements: Sequence[Tensor], tolerance: float) -> Tensor:
    """Where no two views differ by more than the tolerance, M_U- of eq. 11: bool."""
    return torch.stack([d <= tolerance for d in disagreements]).all(0)


def pseudo_label_loss(
    logits: Tensor,
    label: Tensor,
    masks: tuple[Tensor, Tensor],
    weights: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
) -> Tensor:
    """Cross-entropy averaged over positive voxels plus that over negative ones, eqs. 14 and 21.

    The negative term's CE(1 - p, 1 - y) is -log(1 - p[1 - y]), for two classes CE(p, y) itself. A
    mask without voxels contributes 0.

    Args:
        logits: of the learning decoder (B, 2, X, Y, Z).
        label: pseudo-label of its peer (B, X, Y, Z) int64.
        masks: positive and negative, (B, X, Y, Z) bool.
        weights: of each voxel in the two averages.
    """
    loss = cross_entropy(logits, label)
    positive, negative = (
        (loss * weight * mask).sum() / mask.sum().clamp_min(1)
        for mask, weight in zip(masks, weights, strict=True)
    )
    return positive + negative


def calibration_loss(p: Pair, q: Pair, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Mean squared distances |p1-p2|^2, |q1-q2|^2, |p1-q1|^2, |p2-q2|^2, weighted: eq. 15."""
    pairs = ((p[0], p[1]), (q[0], q[1]), (p[0], q[0]), (p[1], q[1]))
    return torch.stack(
        [w * (a - b).square().sum(1).mean() for w, (a, b) in zip(weights, pairs, strict=True)]
    ).sum()


def perturbation_mask(unreliable: Tensor, element: Tensor, *, released: bool = False) -> Tensor:
    """Largest connected component (faces) of the dilated unreliable region, eq. 16.

    Args:
        unreliable: (B, X, Y, Z) bool.
        element: dilation element of each volume, (B, S, S, S) bool, S odd.
        released: close by a 3^3 cube before, and drop masks of fewer than `MINIMUM` voxels.

    Returns:
        (B, X, Y, Z) bool. The component is found on the CPU, everything else on the device.
    """
    mask = unreliable.float()
    if released:
        mask = -F.max_pool3d(-F.max_pool3d(mask, 3, 1, 1), 3, 1, 1)
    count = F.conv3d(
        mask.unsqueeze(0),
        element.flip(1, 2, 3).unsqueeze(1).float(),
        padding=element.shape[-1] // 2,
        groups=len(mask),
    )
    dilated = (count.squeeze(0) > 0.5).cpu().numpy()
    if released:
        dilated[dilated.sum((1, 2, 3)) < MINIMUM] = False
    largest = [largest_component(volume, corners=False) for volume in dilated]
    return torch.from_numpy(np.stack(largest)).to(unreliable.device)


def random_elements(number: int, draw: np.random.Generator) -> np.ndarray:
    """Dilation elements (number, 7, 7, 7) bool: cubes 1 to 7 wide, half of their voxels set."""
    width = draw.integers(1, ELEMENT, number, endpoint=True)[:, None]
    start = (ELEMENT - width) // 2
    index = np.arange(ELEMENT)
    side = (index >= start) & (index < start + width)
    cube = side[:, :, None, None] & side[:, None, :, None] & side[:, None, None, :]
    return cube & (draw.random(cube.shape) < 0.5)


def cutmix_boxes(mask: Tensor, draw: np.random.Generator, *, targeted: bool) -> Tensor:
    """CutMix boxes of full depth Z, one for each volume of `mask` (B, X, Y, Z) bool.

    Targeted: centred on the mask's centroid, sides (X, Y) times Beta(4, 4). Otherwise, and if any
    mask is empty: sides (X, Y) times sqrt(1 - Beta(4, 4)), centre uniform in [side / 8, side).
    """
    size = np.array(mask.shape[1:3])
    voxels = [np.argwhere(volume) for volume in mask.cpu().numpy()] if targeted else []
    if voxels and all(map(len, voxels)):
        centre = np.array([v.mean(0)[:2] for v in voxels]).astype(int)
        side = draw.beta(4, 4, (len(mask), 1)) * size
    else:
        centre = draw.integers(size // 8, size, (len(mask), 2))
        side = np.sqrt(1 - draw.beta(4, 4)) * np.tile(size, (len(mask), 1))
    half = (side.astype(int) // 2)[:, :, None]
    x, y = (np.abs(np.arange(size[a]) - centre[:, a, None] + 0.5) < half[:, a] for a in range(2))
    box = torch.from_numpy(x[:, :, None] & y[:, None, :]).to(mask.device)
    return box.unsqueeze(3).expand(mask.shape).clone()


def mix(mask: Tensor, labelled: Tensor, unlabelled: Tensor) -> Tensor:
    """Unlabelled inside the mask, labelled outside, for images and labels: eqs. 17 and 18."""
    return torch.where(mask, unlabelled, labelled)


def mixed_loss(logits: Pair, labels: Pair) -> Tensor:
    """Cross-entropy of each decoder against the other's mixed label, summed: eqs. 19 and 22."""
    return cross_entropy(logits[0], labels[1]).mean() + cross_entropy(logits[1], labels[0]).mean()


def supervised(logits: Pair, label: Tensor) -> Tensor:
    """Foreground Dice with linear denominators plus cross-entropy, of both decoders: eq. 20."""
    first, second = (
        linear_dice_loss(x.softmax(1)[:, 1], label == 1) + cross_entropy(x, label).mean()
        for x in logits
    )
    return first + second


class Views(NamedTuple):
    """What the four views say of the unlabelled voxels, without gradient.

    w: mean foreground probability (U, X, Y, Z).
    p: probabilities of the student's decoders (U, 2, X, Y, Z).
    q: similarities of the student's decoders, the same; empty without the feature space.
    u: disagreements (U, X, Y, Z): U_pro of student, of teacher, then U_fea of both if q is there.
    """

    w: Tensor
    p: Pair
    q: Pair
    u: list[Tensor]


@final
@dataclass(frozen=True)
class TCSeg(Method):
    """See the module docstring. With fewer labelled than unlabelled volumes, pairs reuse them.

    variant:         "paper" or "released".
    tau:             consistency tolerance of eq. 11.
    tau_min:         confident background lies at or below it (eq. 13).
    tau_max:         confident foreground lies at or above it (eq. 12).
    ema_decay:       of the teacher.
    rampup:          fraction of the run until `pseudo` and `calibration` have full weight.
    mixing_starts:   fraction of the run before `mixed`.
    use_uncertainty, use_confidence:            axes of the reliability (Table 2).
    use_probability, use_feature, use_image:    spaces of the calibration (Table 3).
    """

    name: ClassVar[str] = "tcseg"
    title: ClassVar[str] = "TCSeg"
    paper: ClassVar[str] = "ICML 2026, PMLR 306"
    bibtex: ClassVar[str] = """@inproceedings{li2026tcseg,
  title     = {Are We Overconfident in Models and Results for Semi-Supervised {3D} Medical Image
               Segmentation?},
  author    = {Li, Jun and Qin, Ziwei},
  booktitle = {Proceedings of the 43rd International Conference on Machine Learning},
  series    = {PMLR},
  volume    = {306},
  year      = {2026}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.PAPER
    deviations: ClassVar[tuple[str, ...]] = (
        "Eq. 13 asks C <= tau_min, but C of eq. 6 is at least 1/2 for two classes; confidence is "
        "read as the mean foreground probability, so (12) is confident foreground and (13) "
        "confident background.",
        "Eq. 10 filters by C >= tau, which is always true at tau = 0.05; the bounds of (12) and "
        "(13) are used.",
        "Eq. 9 divides by lengths however small; here by at least 0.1. Where dropout leaves a "
        "volume only channels that its foreground does not use, its prototype can be 1e-5 long "
        "(usual: 4): the gradient was then a thousand times the usual one, and the run collapsed.",
        "The teacher does not see labelled volumes; there C averages the student's views.",
        "Eq. 23 has no ramp-up; `pseudo` and `calibration` are ramped to its unit weights as in "
        "the released code, continuously instead of every 150 steps.",
        "Released variant: random CutMix takes the limits of a box from the axes it is applied to "
        "(released: Y and Z limits on X and Y), closing does not erode at the volume's border, and "
        "the negative term of eq. 21 is not clamped at 13.8 nats.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    version: ClassVar[int] = 2
    sizes: ClassVar[Mapping[str, int]] = {"student": 12_347_716, "teacher": 12_347_716}

    variant: Variant = "paper"
    tau: float = 0.05
    tau_min: float = 0.1
    tau_max: float = 0.85
    ema_decay: float = 0.99
    rampup: float = 0.3
    mixing_starts: float = 0.005
    use_uncertainty: bool = True
    use_confidence: bool = True
    use_probability: bool = True
    use_feature: bool = True
    use_image: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("tau", self.tau, 0, 2)
        check_range("tau_min", self.tau_min, 0, 0.5)
        check_range("tau_max", self.tau_max, 0.5, 1)
        check_range("ema_decay", self.ema_decay, 0, 1)
        check_range("rampup", self.rampup, 0, 1)
        check_range("mixing_starts", self.mixing_starts, 0, 1)

    @property
    def released(self) -> bool:
        """Whether the released code is followed where it differs from the paper."""
        return self.variant == "released"

    @property
    def calibrated(self) -> bool:
        """Whether any of the three spaces is on."""
        return self.use_probability or self.use_feature or self.use_image

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student, and, where a space is on, a teacher with weights of its own."""
        roles = ("student", "teacher") if self.calibrated else ("student",)
        nets = nn.ModuleDict({role: build("vnet-two-decoders") for role in roles})
        if self.calibrated:
            frozen(nets["teacher"])
        return nets

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms; one pass for all volumes, one of the teacher, one for the mixed volumes."""
        n = len(batch.image)
        images = torch.cat([batch.image, batch.unlabelled]) if self.calibrated else batch.image
        student = nets["student"](images)
        value = supervised([output.logits[:n] for output in student], batch.label)
        terms = {"supervised": Term(value, 0.25 if self.released else 1.0)}
        if not self.calibrated:
            return terms

        with torch.no_grad():
            teacher = nets["teacher"](batch.unlabelled)
        p, p_t = ([output.logits.softmax(1) for output in role] for role in (student, teacher))
        p_u = [x[n:].detach() for x in p]
        w = confidence([*p_u, *p_t])
        u = [self._distance(*p_u), self._distance(*p_t)]
        q_u: list[Tensor] = []
        ramp = sigmoid_rampup(step.fraction, self.rampup)
        if self.use_feature:
            q = self._similarities(student, p, torch.cat([confidence([x[:n] for x in p]), w]))
            q_u, q_t = [x[n:].detach() for x in q], self._similarities(teacher, p_t, w)
            u += [self._distance(*q_u) * self._scale, self._distance(*q_t) * self._scale]
            weights = (1, 1 / 4, 1 / 4, 1 / 8) if self.released else (1, 1, 1, 1)
            terms["calibration"] = Term(calibration_loss(p, q, weights), ramp)
        views = Views(w, p_u, q_u, u)
        if self.use_probability:
            first = self._pseudo(student[0].logits[n:], views, peer=1)
            second = self._pseudo(student[1].logits[n:], views, peer=0)
            terms["pseudo"] = Term(first + second, ramp)
        if self.use_image and step.fraction >= self.mixing_starts:
            mask = self._mixing_mask(views, step, rng)
            pair = torch.arange(len(mask), device=mask.device) % n
            mixed = nets["student"](mix(mask.unsqueeze(1), batch.image[pair], batch.unlabelled))
            labels = [mix(mask, batch.label[pair], hard_label(x)) for x in p_t]
            value = mixed_loss([output.logits for output in mixed], labels)
            terms["mixed"] = Term(value, 0.5 if self.released else 1.0)
        return terms

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student."""
        if self.calibrated:
            ema_(nets["teacher"], nets["student"], warm_decay(step.index, self.ema_decay))

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Student decoder 1, decoder 2, their mean; decoder 1 of the teacher."""
        student = nets["student"]
        found = {
            "main": decoder_predictor(student, 0),
            "decoder2": decoder_predictor(student, 1),
            "mean": decoder_predictor(student),
        }
        if self.calibrated:
            found["teacher"] = decoder_predictor(nets["teacher"], 0)
        return found

    def _band(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return band(w, *((self.tau_min, self.tau_max) if self.use_confidence else (0.5, 0.5)))

    def _confident(self, w: Tensor) -> Tensor:
        return torch.logical_or(*self._band(w))

    def _reliable(self, u: Sequence[Tensor]) -> Tensor:
        return reliable(u, self.tau if self.use_uncertainty else math.inf)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return disagreement(a[:, 1:], b[:, 1:]) if self.released else disagreement(a, b)

    @property
    def _scale(self) -> float:
        """Of similarities against tau: the released code allows them 2 tau."""
        return 0.5 if self.released else 1.0

    def _similarities(self, outputs: Sequence[NetOutput], p: Pair, w: Tensor) -> list[Tensor]:
        """Similarities q of both decoders, with prototypes from where w is confident."""
        confident = [self._confident(x[:, 1] if self.released else w) for x in p]
        return [
            similarity(output.features, prototypes(output.features, x, where))
            for output, x, where in zip(outputs, p, confident, strict=True)
        ]

    def _pseudo(self, logits: Tensor, views: Views, peer: int) -> Tensor:
        """What the decoder with these logits learns from decoder `peer`."""
        p = views.p[peer]
        if not self.released:
            certain = self._reliable(views.u)
            positive, negative = (side & certain for side in self._band(views.w))
            return pseudo_label_loss(logits, hard_label(p), (positive, negative))
        own = [self._distance(q, p) * self._scale for q in views.q[peer : peer + 1]]
        certain = self._reliable([views.u[0], *views.u[2:], *own])
        larger = torch.maximum(p[:, 0], p[:, 1])
        positive, negative = self._band(larger)[0], self._band(1 - larger)[1]
        masks = (positive & certain, negative & certain)
        return pseudo_label_loss(logits, hard_label(p), masks, (larger, 1 - larger))

    def _mixing_mask(self, views: Views, step: Step, rng: torch.Generator) -> Tensor:
        """Where a mixed volume shows the unlabelled one, (U, X, Y, Z) bool."""
        key = int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device))
        draw = np.random.Generator(np.random.Philox(key))
        mask = ~(self._confident(views.w) & self._reliable(views.u))
        targeted = not self.released or step.index % 2 == 0
        if targeted:
            elements = torch.from_numpy(random_elements(len(mask), draw)).to(mask.device)
            mask = perturbation_mask(mask, elements, released=self.released)
        if self.released:
            mask = cutmix_boxes(mask, draw, targeted=targeted)
            mask[1::2] = ~mask[1::2]
        return mask
