"""IN-2: instance norm is unsuitable for classification."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import CellName, Experiment
from normkit.study.claims.measures import difference, test_error


def experiment(name: str, cells: tuple[CellName, CellName], question: Text, design: Text, against: Text) -> Experiment:
    """Errors of instance norm compared with those of another method."""
    return Experiment(
        claim="IN-2",
        name=name,
        question=question,
        design=design,
        measure=Text(
            f"Test error of instance norm minus that of {against}.",
            f"实例归一化的测试错误率减去{against.zh}的测试错误率。",
        ),
        unit="points",
        effect=difference(*cells),
        cells=cells,
        show=test_error,
    )


CONTRAST = Text(
    "Digits whose class is the contrast: six contrasts, half an octave apart; three convolutions without zero padding.",
    "类别即对比度的数字图像，共六级，相邻两级相差 √2 倍；三个卷积层，不使用零填充。",
)
EXPERIMENTS = (
    experiment(
        "classes by contrast",
        (("contrast", "instance_norm", 16), ("contrast", "batch_norm", 16)),
        Text(
            "Does instance norm make more errors than batch norm if classes differ only in contrast?",
            "类别只在对比度上不同时，实例归一化的错误率是否高于批归一化？",
        ),
        CONTRAST,
        Text("batch norm", "批归一化"),
    ),
    experiment(
        "classes by contrast, against layer norm",
        (("contrast", "instance_norm", 16), ("contrast", "layer_norm", 16)),
        Text(
            "Is this true of instance norm only: does it make more errors than layer norm?",
            "这是实例归一化独有的吗：它的错误率是否也高于层归一化？",
        ),
        CONTRAST,
        Text("layer norm", "层归一化"),
    ),
    experiment(
        "ordinary classes",
        (("digits", "instance_norm", 32), ("digits", "batch_norm", 32)),
        Text(
            "Does instance norm make more errors than batch norm on ordinary digits?",
            "在普通数字分类上，实例归一化的错误率是否高于批归一化？",
        ),
        Text("The network of the comparison, 32 images per step.", "比较实验所用的网络，每步 32 张图像。"),
        Text("batch norm", "批归一化"),
    ),
)
