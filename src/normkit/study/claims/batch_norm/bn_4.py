"""BN-4: batch norm is poor on small batches."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error

DESIGN = Text(
    "Perceptron of four layers with 96 units on noisy digits; 3200 images are processed at any batch size. There are no "
    "positions, so N, the number of values in a statistic of batch norm, is the batch size.",
    "带噪声数字上的四层感知机，每层 96 个单元；无论批量大小都共训练 3200 张图像。没有空间位置，"
    "因此批归一化每个统计量所依据的数值个数 N 就等于批量。",
)


def perceptron(batch: int) -> Experiment:
    """Batch norm compared with group norm at one batch size."""
    cells = ((f"mlp-{batch}", "batch_norm", batch), (f"mlp-{batch}", "group_norm", batch))
    return Experiment(
        claim="BN-4",
        name=f"perceptron, N = {batch}",
        question=Text(
            f"Does batch norm make more errors than group norm with {batch} values in each statistic?",
            f"每个统计量只依据 {batch} 个数值时，批归一化的错误率是否高于组归一化？",
        ),
        design=DESIGN,
        measure=Text(
            "Test error of batch norm minus that of group norm.", "批归一化的测试错误率减去组归一化的测试错误率。"
        ),
        unit="points",
        effect=difference(*cells),
        cells=cells,
        show=test_error,
    )


CNN = (("digits", "batch_norm", 2), ("digits", "group_norm", 2))
EXPERIMENTS = (
    perceptron(2),
    perceptron(4),
    Experiment(
        claim="BN-4",
        name="convolutions, batch of 2",
        question=Text(
            "And in a convolutional network, in which two images still give 8 to 128 values with their positions?",
            "在卷积网络中又如何？算上空间位置，两张图像仍有 8 到 128 个数值。",
        ),
        design=Text(
            "The network of the comparison, batches of 2: N is 128 after the first convolution and 8 after the last.",
            "比较实验所用的网络，批量 2：第一个卷积后 N 为 128，最后一个卷积后为 8。",
        ),
        measure=Text(
            "Test error of batch norm minus that of group norm.", "批归一化的测试错误率减去组归一化的测试错误率。"
        ),
        unit="points",
        effect=difference(*CNN),
        cells=CNN,
        show=test_error,
    ),
)
