"""IN-1: instance norm removes the style of an image and suits style transfer."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, probed, test_error


def invariance(other: str, name: str, question: Text) -> Experiment:
    """The errors that a change of contrast and brightness adds."""
    cells = (("digits", other, 32), ("digits", "instance_norm", 32))
    return Experiment(
        claim="IN-1",
        name=name,
        question=question,
        design=Text(
            "Trained networks of the comparison; each test image gets its own contrast between e^-1.1 and e^1.1 and "
            "its own brightness between -1 and 1.",
            "比较实验中训练好的网络；每张测试图像各取 e^-1.1 到 e^1.1 之间的对比度与 -1 到 1 之间的亮度。",
        ),
        measure=Text(
            "Increase of the test error: the other method minus instance norm.",
            "测试错误率的上升幅度：另一方法减实例归一化。",
        ),
        unit="points",
        effect=difference(*cells, probed("style_rise")),
        cells=cells,
        show=probed("style_rise"),
    )


def stylizer(workload: str, style: Text, extended: bool = False) -> Experiment:
    """The difference in loss."""
    cells = ((workload, "batch_norm", 8), (workload, "instance_norm", 8))
    return Experiment(
        claim="IN-1",
        name=f"stylizer, {style}",
        question=Text(
            f"Does a network that paints in the style of {style} reach a lower loss with instance norm than with "
            "batch norm?",
            f"以{style.zh}为风格作画的网络使用实例归一化是否比批归一化达到更低的损失？",
        ),
        design=Text(
            f"Four convolutions from image to image, pieces of a photograph in the style of {style}: Gram matrices "
            "of random filters and the pooled content; batch 8, 150 steps.",
            f"从图像到图像的四个卷积层，把一张照片的小块画成{style.zh}的风格：随机滤波器的 Gram 矩阵加池化后的内容；"
            "批量 8，训练 150 步。",
        ),
        measure=Text(
            "Loss on new pieces, evaluation mode: batch norm minus instance norm.",
            "新图块上推理模式的损失：批归一化减实例归一化。",
        ),
        unit="loss",
        effect=difference(*cells),
        cells=cells,
        show=test_error,
        extended=extended,
    )


EXPERIMENTS = (
    invariance(
        "batch_norm",
        "contrast and brightness, against batch norm",
        Text(
            "Do contrast and brightness affect a network with instance norm less than one with batch norm?",
            "与批归一化相比，使用实例归一化的网络是否更少受对比度与亮度影响？",
        ),
    ),
    invariance(
        "group_norm",
        "contrast and brightness, against group norm",
        Text("And less than a network with group norm?", "与组归一化相比呢？"),
    ),
    stylizer("stylizer-flower", Text("another photograph", "另一张照片")),
    stylizer("stylizer-brick", Text("a brick wall", "砖墙"), extended=True),
    stylizer("stylizer-gravel", Text("gravel", "碎石"), extended=True),
)
