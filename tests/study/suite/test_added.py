"""Methods that are added to a user's model, whose own norms stay: global response norm and reversible instance norm."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from made_up import prepared
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError
from normkit.study.task import Task, embedded, variants
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial


def block(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def test_global_response_norm_is_added_after_each_activation() -> None:
    images, tokens = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 8)
    of_images = block(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten())
    of_tokens = block(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8))
    for model, x, sizes in ((of_images, images, [(8, False), (4, False)]), (of_tokens, tokens, [(16, True)])):
        before = model.eval()(x)
        made = variants.applied(model, "global_response_norm", x)
        added = [m for m in made.modules() if isinstance(m, normkit.GlobalResponseNorm)]
        assert [(m.num_features, m.channels_last) for m in added] == sizes
        assert any(isinstance(m, nn.BatchNorm2d | nn.LayerNorm) for m in made.modules())
        # New ones return their input, up to the rounding of x + 0.
        torch.testing.assert_close(made(x), before)


def shared() -> nn.Module:
    relu = nn.ReLU()
    return block(nn.Conv2d(3, 8, 3), relu, nn.Conv2d(8, 4, 1), relu)


@pytest.mark.parametrize(
    ("build", "shape", "found"),
    [
        (lambda: block(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (2, 6), r"here are ReLU \(2, 8\)"),
        (lambda: block(nn.Conv2d(3, 8, 3), nn.Flatten()), (2, 3, 6, 6), "here are none"),
        # One module after layers of different sizes.
        (shared, (2, 3, 6, 6), r"here are ReLU \(2, 8, 4, 4\), ReLU \(2, 4, 4, 4\)"),
    ],
)
def test_where_there_is_no_place_for_it_is_said(build: Callable[[], nn.Module], shape: tuple[int, ...], found: str):
    with pytest.raises(ArgumentError, match=f"global_response_norm must fit somewhere in the model.*{found}"):
        variants.applied(build(), "global_response_norm", torch.randn(shape))


class Mean(nn.Module):
    """Forecasts the mean of a window, whatever its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(24)

    def forward(self, window: Tensor) -> Tensor:
        return self.norm(window).mean(1, keepdim=True).expand(-1, 4, -1)


def test_reversible_instance_norm_surrounds_a_forecast() -> None:
    window = torch.randn(8, 24, 3) * 5 + 100
    inside = Mean()
    made = variants.applied(inside, "revin", window)
    assert isinstance(made.norm, normkit.RevIN)
    assert made.model is inside
    # The trial call that finds the shapes leaves the statistics of the model's own norms alone.
    assert inside.norm.num_batches_tracked == 0
    torch.testing.assert_close(made.eval()(window).mean(1), window.mean(1), rtol=1e-3, atol=0.05)


@pytest.mark.parametrize(
    ("model", "example", "found"),
    [
        (nn.Linear(6, 3), torch.randn(2, 6), r"are \(2, 6\) and \(2, 3\)"),
        (nn.Linear(6, 3), torch.randn(2, 5, 6), r"are \(2, 5, 6\) and \(2, 5, 3\)"),
        (nn.Embedding(9, 3), torch.zeros(2, 5, dtype=torch.long), r"are \(2, 5\) and \(2, 5, 3\)"),
    ],
)
def test_what_is_no_forecast_is_refused(model: nn.Module, example: Tensor, found: str) -> None:
    with pytest.raises(ArgumentError, match=f"revin must surround a forecast.*{found}"):
        variants.applied(model, "revin", example)


@pytest.mark.parametrize(
    ("task", "methods"),
    [
        ("characters", ["scale_norm", "dynamic_tanh", "power_norm"]),
        ("forecast", ["revin", "scale_norm"]),
        ("digits", ["global_response_norm", "weight_standardization"]),
    ],
)
def test_the_built_in_tasks_train_what_fits(task: str, methods: list[str]) -> None:
    work = replace(embedded.TASKS[task](), probe=None)
    for method in methods:
        plan = Design((method,), (4,), 2, 3, 6)
        runs = Trainer().execute(work, plan, [Trial("tune", method, 4, 0.01, seed) for seed in (0, 1)])
        assert all(run.validation_loss is not None and len(run.losses) == 6 for run in runs), runs[0].message


@pytest.mark.parametrize(
    ("task", "method", "why"),
    [
        ("characters", "RevIN", "normalizes the series of a window"),
        ("characters", "GRN", "its statistics cover positions"),
        ("forecast", "FRN", "its statistics cover positions"),
        (None, "RevIN", "series of a window.*give normkit compare forecast --methods revin"),
        (None, "ScaleNorm", "features of a token.*give normkit compare characters --methods scale_norm"),
        (None, "unchanged", "these networks have no norms of their own.*give your own task"),
    ],
)
def test_a_method_that_a_task_has_no_place_for_is_refused(task: str | None, method: str, why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        prepared(embedded.TASKS[task]() if task else None, methods=[method], batch_sizes=[4])


def test_a_forecast_of_a_user_is_trained_with_it(tmp_path: object) -> None:
    window, target = torch.randn(40, 12, 2), torch.randn(40, 3, 2)
    model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.Unflatten(1, (3, 2)))  # noqa: E731
    task = Task(model, (window, target), (window, target), loss=nn.functional.mse_loss)
    found = normkit.compare(
        task, methods=["RevIN"], batch_sizes=[8], seeds=2, trials=3, steps=40, workers=1, out=str(tmp_path),
        progress=False,
    )  # fmt: skip
    assert {cell.method for cell in found.cells if cell.error} == {"none", "revin"}
