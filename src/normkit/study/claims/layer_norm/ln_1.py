"""LN-1: layer norm does not depend on the batch."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, level, probed, test_error

LAYER, BATCH = ("digits", "layer_norm", 32), ("digits", "batch_norm", 32)
LARGE, SMALL = ("mlp-32", "layer_norm", 32), ("mlp-2", "layer_norm", 2)

EXPERIMENTS = (
    Experiment(
        claim="LN-1",
        name="batch dependence",
        question=Text(
            "Does the output for an image change with the other images of its batch?",
            "一张图像的输出是否随同批其他图像而变？",
        ),
        design=Text(
            "Trained networks of the comparison in training mode; one image in 18 batches of 8 whose other images differ.",
            "比较实验中训练好的网络，置于训练模式；把同一张图像放入 18 个批量为 8 的批次，同批的其他图像各不相同。",
        ),
        measure=Text(
            "Largest change of the outputs, in units of their standard deviation; the claim is that there is none.",
            "输出的最大变化，以其标准差为单位；论断是没有变化。",
        ),
        unit="share",
        effect=level(LAYER, probed("batch_dependence")),
        cells=(LAYER, BATCH),
        show=probed("batch_dependence"),
        smallest=1e-3,
        equivalence=True,
    ),
    Experiment(
        claim="LN-1",
        name="flat over batch sizes",
        question=Text(
            "Is the error the same at batch 2 and at batch 32 if the same number of images is processed?",
            "训练图像总数相同时，批量 2 与批量 32 的错误率是否相同？",
        ),
        design=Text(
            "Perceptron on noisy digits, 3200 images processed, the learning rate chosen at each batch size.",
            "带噪声数字上的感知机，共训练 3200 张图像，各批量分别选择学习率。",
        ),
        measure=Text(
            "Test error at batch 2 minus that at batch 32, both with layer norm; the claim is that there is no "
            "difference.",
            "层归一化在批量 2 与批量 32 的测试错误率之差；论断是没有差别。",
        ),
        unit="points",
        effect=difference(SMALL, LARGE),
        cells=(SMALL, LARGE),
        show=test_error,
        smallest=0.02,
        equivalence=True,
    ),
)
