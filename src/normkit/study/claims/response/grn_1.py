"""GRN-1: global response norm makes the channels of a network less alike."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, probed, test_error

WITH, WITHOUT = ("responses", "global_response_norm", 16), ("responses", "layer_norm2d", 16)
DESIGN = Text(
    "Four convolutions with 16 channels on noisy digits, layer norm of each pixel before every ReLU; with or without "
    "global response norm after the ReLU; batch 16, 120 steps, each at its own best learning rate.",
    "带噪声数字上的四个 16 通道卷积层，每个 ReLU 之前是逐像素层归一化；ReLU 之后加或不加全局响应归一化；"
    "批量 16，训练 120 步，各自使用最佳学习率。",
)

EXPERIMENTS = (
    Experiment(
        claim="GRN-1",
        name="cosine distance",
        question=Text(
            "Are the channels of an image less alike in a network with global response norm?",
            "使用全局响应归一化的网络，同一图像各通道的特征是否更不相似？",
        ),
        design=DESIGN,
        measure=Text(
            "Mean of (1 - cosine) / 2 over pairs of channels after each ReLU, on test images: with it minus without it.",
            "测试图像上每个 ReLU 之后各对通道 (1 - 余弦) / 2 的平均值：加减不加之差。",
        ),
        unit="share",
        effect=difference(WITH, WITHOUT, probed("channel_distance")),
        cells=(WITH, WITHOUT),
        show=probed("channel_distance"),
    ),
    Experiment(
        claim="GRN-1",
        name="errors",
        question=Text("And does it make fewer errors?", "加上它之后错误率是否也更低？"),
        design=DESIGN,
        measure=Text("Test error without it minus that with it.", "不加时的测试错误率减去加时的测试错误率。"),
        unit="points",
        effect=difference(WITHOUT, WITH),
        cells=(WITH, WITHOUT),
        show=test_error,
    ),
)
