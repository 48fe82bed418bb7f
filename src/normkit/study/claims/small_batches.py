"""Experiments on independence of the batch, for methods of convolutional networks."""

from __future__ import annotations

from normkit import catalog
from normkit.catalog import Text
from normkit.study.claims.experiment import CellName, Experiment
from normkit.study.claims.measures import Effect, difference, interaction, level, probed, test_error

DESIGN = Text(
    "Three convolutions with 16 channels on noisy digits, the last two at 2x2 positions; 1000 images are processed at "
    "every batch size, and the learning rate is chosen at each.",
    "带噪声数字上的三个 16 通道卷积层，后两层只剩 2×2 个位置；各批量均训练 1000 张图像，并分别选择学习率。",
)


def rise(first: str, second: str) -> Effect:
    """The rise of the test error from batch 16 to batch 2: that of `first` minus that of `second`, seed by seed."""
    one, other = ((("small-2", method, 2), ("small-16", method, 16)) for method in (first, second))
    return interaction(one, other)


def independence(claim: str, method: str, errors_extended: bool = False) -> tuple[Experiment, ...]:
    """The outputs for one image in different batches; the error at two batch sizes, alone and against batch norm.

    With `errors_extended` the errors, which cost more time, belong to the full suite only.
    """
    small, large = ("small-2", method, 2), ("small-16", method, 16)
    title = catalog.find(method).title
    return (
        Experiment(
            claim=claim,
            name="batch dependence",
            question=Text(
                "Does the output for an image change with the other images of its batch?",
                "一张图像的输出是否随同批其他图像而变？",
            ),
            design=Text(
                "Trained convolutional networks in training mode; one image in 18 batches of 8 whose other images "
                "differ.",
                "训练好的卷积网络，置于训练模式；把同一张图像放入 18 个批量为 8 的批次，同批的其他图像各不相同。",
            ),
            measure=Text(
                "Largest change of the outputs, in units of their standard deviation; the claim is that there is none.",
                "输出的最大变化，以其标准差为单位；论断是没有变化。",
            ),
            unit="share",
            effect=level(large, probed("batch_dependence")),
            cells=(large, ("small-16", "batch_norm", 16)),
            show=probed("batch_dependence"),
            smallest=1e-3,
            equivalence=True,
        ),
        _of_errors(
            claim,
            "no worse than at a large batch",
            Text("Is the error at batch 2 no larger than at batch 16?", "批量 2 的错误率是否不高于批量 16？"),
            Text(
                "Test error at batch 2 minus that at batch 16; the claim is that it is not larger.",
                "批量 2 的测试错误率减去批量 16 的测试错误率；论断是前者不高于后者。",
            ),
            difference(small, large),
            (small, large),
            upper=True,
            extended=errors_extended,
        ),
        _of_errors(
            claim,
            "rises less than batch norm's",
            Text(
                "Does the error rise less from batch 16 to batch 2 than that of batch norm?",
                "从批量 16 降到批量 2，错误率的上升是否小于批归一化？",
            ),
            Text(f"Rise of the test error: batch norm minus {title}.", f"测试错误率的上升：批归一化减{title.zh}。"),
            rise("batch_norm", method),
            (("small-2", "batch_norm", 2), ("small-16", "batch_norm", 16), small, large),
            extended=errors_extended,
        ),
    )


def _of_errors(
    claim: str,
    name: str,
    question: Text,
    measure: Text,
    effect: Effect,
    cells: tuple[CellName, ...],
    upper: bool = False,
    extended: bool = False,
) -> Experiment:
    return Experiment(
        claim=claim,
        name=name,
        question=question,
        design=DESIGN,
        measure=measure,
        unit="points",
        effect=effect,
        cells=cells,
        show=test_error,
        smallest=0.02 if upper else None,
        equivalence="upper" if upper else False,
        extended=extended,
    )
