"""The supervised baseline against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at
from methods.base import Batch
from methods.supervised import Supervised
from tests.reference.released import given, halves, slopes, waves


def test_the_term_is_half_cross_entropy_half_dice_of_the_labelled_volumes():
    learner = small_learner(Supervised())
    learner.nets.eval()
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, RUN[0])

    logits = learner.nets["student"](batch.image).logits
    entropy = overlap = size = 0.0
    for (a, b), t in zip(
        logits.movedim(1, -1).reshape(-1, 2).tolist(), batch.label.flatten().tolist(), strict=True
    ):
        p = 1 / (1 + math.exp(a - b))
        entropy -= math.log(p if t else 1 - p)
        overlap += p * t
        size += p * p + t * t
    dice = 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    expected = 0.5 * entropy / batch.label.numel() + 0.5 * dice
    assert set(terms) == {"supervised"}
    assert terms["supervised"].value.item() == pytest.approx(expected, rel=1e-5)
    assert terms["supervised"].weight == 1.0


def test_the_term_has_the_figure_of_the_released_code():
    """yulequan/UA-MT@88ed29a, code/train_LA.py, lines 102-111, at two volumes a batch."""
    logits = waves(2, 2, 6, 5, 4).requires_grad_()
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = Supervised().losses(
        torch.nn.ModuleDict({"student": given(logits)}),
        Batch(image, halves(2, 6, 5, 4, phase=9), image[:0], {}),
        RUN[0],
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(0.6150766898, rel=1e-9)
    assert slopes(terms["supervised"].value, [logits]) == pytest.approx([0.03279980997], rel=1e-9)


def test_it_asks_for_no_unlabelled_volumes():
    assert Supervised.inputs == ("image", "label")
