"""BN-5: batch norm is weaker on sequences."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error


def recurrent(batch: int) -> Experiment:
    """Batch norm beside layer norm in a recurrent net."""
    arms = ((f"sequence-{batch}", "batch_norm", batch), (f"sequence-{batch}", "layer_norm", batch))
    return Experiment(
        claim="BN-5",
        name=f"recurrent net, batch {batch}",
        question=Text(
            f"Does batch norm make more errors than layer norm in a recurrent classifier, batches of {batch}?",
            f"在循环分类器中（批量 {batch}），批归一化的错误是否多于层归一化？",
        ),
        design=Text(
            "The eight rows of a noisy digit, one after another, through a tanh network of 48 units; batch norm keeps "
            "one set of statistics for all steps, as a layer in a loop does.",
            "把带噪声数字的八行逐行送入 48 单元的 tanh 循环网络；批归一化在所有时间步共用一组统计量，"
            "循环中的同一层正是如此。",
        ),
        measure=Text(
            "Test error of batch norm minus that of layer norm.", "批归一化的测试误差减去层归一化的测试误差。"
        ),
        unit="points",
        effect=difference(*arms),
        arms=arms,
        show=test_error,
    )


EXPERIMENTS = (recurrent(4), recurrent(32))
