"""The name of a metric."""

from __future__ import annotations

import made_up
import torch
from torch import nn

from normkit import catalog
from normkit.study.task import metric


def test_the_name_of_a_metric() -> None:
    x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))

    def reported(targets: torch.Tensor = y, **given: object) -> metric.Metric:
        return made_up.Task(lambda: nn.Linear(3, 2), (x, targets), (x, targets), **given).reported  # type: ignore[arg-type]

    assert reported() == metric.ERROR
    assert reported(y.double(), loss=made_up.mean_squared) == metric.LOSS
    assert reported(metric=lambda a, b: a.mean()).name == "metric"
    assert reported(metric=made_up.mean_squared) == metric.Metric(
        catalog.Text("mean squared", "mean squared"), False, nonnegative=True
    )
    given = reported(metric=made_up.mean_squared, metric_name="1 - dice", share=True)
    assert (given.name, given.value(0.25)) == ("1 - dice", "25.0\xa0%")
    assert given.label("test").to("zh") == "测试 1 - dice"


# Memory
