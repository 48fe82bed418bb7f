"""What outputs predict, found from outputs, targets and the values of the loss, in whichever form the loss is given."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.task import Task
from normkit.study.task.metric import ERROR, LOSS
from normkit.study.task.scoring.prediction import Loss, recognised

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
LABELS = torch.randint(0, 3, (60,), generator=GENERATOR)
WITH_255 = torch.where(torch.arange(60) % 3 == 0, 255, LABELS)
BINARY = torch.randint(0, 2, (60, 1), generator=GENERATOR)


def without_256(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=255)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, LABELS),
        (nn.CrossEntropyLoss(), LABELS),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1), LABELS),
        (partial(F.cross_entropy, label_smoothing=0.1), LABELS),
        (lambda outputs, targets: F.cross_entropy(outputs, targets), LABELS),
        (lambda outputs, targets: F.cross_entropy(outputs, targets.squeeze(1)), LABELS.unsqueeze(1)),
        (nn.CrossEntropyLoss(ignore_index=255), WITH_255),
        (without_256, WITH_255),
        (nn.MultiMarginLoss(), LABELS),
    ],
)
def test_whole_numbers_and_outputs_with_classes_are_reported_as_errors(loss: Loss, targets: Tensor) -> None:
    task = Task(lambda: nn.Linear(4, 3), (X, targets), (X, targets), loss=loss)
    assert task.reported == ERROR
    outputs = nn.functional.one_hot(LABELS, 3).float()
    outputs[:20] = outputs[:20].roll(1, 1)
    counted = targets.flatten() != 255
    score = task.scheme.score()
    for at in torch.arange(60).split(25):
        score.update(outputs[at], targets[at])
    assert score.compute() == pytest.approx((torch.arange(60) < 20)[counted].double().mean().item())


@pytest.mark.parametrize(
    ("loss", "outputs", "kind"),
    [
        (nn.BCEWithLogitsLoss(), 1, "logits"),
        (lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.float()), 1, "logits"),
        (lambda outputs, targets: F.binary_cross_entropy(outputs.sigmoid(), targets), 1, "logits"),
        (lambda outputs, targets: F.binary_cross_entropy(outputs.clamp(0, 1), targets), 1, "probabilities"),
        (F.mse_loss, 1, "values"),
    ],
)
def test_two_classes_are_known_by_their_loss(loss: Loss, outputs: int, kind: str) -> None:
    targets = BINARY.float()
    assert recognised(torch.randn(60, outputs, generator=GENERATOR), targets, loss).kind == kind
    task = Task(lambda: nn.Linear(4, outputs), (X, targets), (X, targets), loss=loss)
    assert task.reported == (LOSS if kind == "values" else ERROR) or task.reported.nonnegative
    if kind != "values":
        share = float(targets.mean())
        assert task.chance == pytest.approx(min(share, 1 - share))


def sequence_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=0)


@pytest.mark.parametrize(
    ("shape", "loss", "dim", "ignored"),
    [
        ((6, 5, 4, 4), F.cross_entropy, 1, ()),
        ((6, 5, 7), F.cross_entropy, 1, ()),
        ((6, 7, 5), sequence_loss, -1, (0,)),
        # As many positions as classes: only the loss knows which is which.
        ((6, 5, 5), F.cross_entropy, 1, ()),
        ((6, 5, 5), sequence_loss, -1, (0,)),
    ],
)
def test_classes_of_positions(shape: tuple[int, ...], loss: Loss, dim: int, ignored: tuple[int, ...]) -> None:
    positions = shape[2:] if dim == 1 else shape[1:-1]
    targets = torch.randint(0, 5, (6, *positions), generator=GENERATOR)
    made = recognised(torch.randn(shape, generator=GENERATOR), targets, loss)
    assert (made.kind, made.dim, made.classes, made.ignored) == ("classes", dim, 5, ignored)
    right = made.perfect(targets)
    assert right.shape == shape
    assert made.errors(right, targets) == (0, float((targets != 0).sum() if ignored else targets.numel()))


@pytest.mark.parametrize(
    ("outputs", "targets", "loss"),
    [
        (torch.randn(60, 2), torch.randint(0, 9, (60,)), lambda a, b: F.gaussian_nll_loss(a[:, 0], b, a[:, 1].exp())),
        (torch.randn(60, 1), torch.randint(0, 9, (60, 1)), lambda a, b: F.poisson_nll_loss(a, b.float())),
        (torch.randn(60, 3), F.one_hot(LABELS, 3).float(), nn.CrossEntropyLoss()),
        ((torch.randn(60, 3), torch.randn(60, 2)), torch.randn(60, 3), lambda a, b: F.mse_loss(a[0], b)),
    ],
    ids=["distribution of counts", "counts", "probabilities of classes", "several outputs"],
)
def test_what_has_no_right_and_wrong_is_reported_as_its_loss(outputs: object, targets: Tensor, loss: Loss) -> None:
    assert not recognised(outputs, targets, loss).has_errors


def test_named_outputs_are_known() -> None:
    outputs = {"logits": torch.eye(3)[LABELS], "hidden": torch.zeros(60, 9)}
    made = recognised(outputs, LABELS, lambda a, b: F.cross_entropy(a["logits"], b))
    assert made.errors(outputs, LABELS) == (0, 60)
