"""BN-5: batch norm is weaker on sequences."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error


def recurrent(batch: int) -> Experiment:
    """Batch norm compared with layer norm in a recurrent network."""
    cells = ((f"sequence-{batch}", "batch_norm", batch), (f"sequence-{batch}", "layer_norm", batch))
    return Experiment(
        claim="BN-5",
        name=f"recurrent net, batch {batch}",
        question=Text(
            f"Does batch norm make more errors than layer norm in a recurrent classifier, batches of {batch}?",
            f"在循环分类器中（批量 {batch}），批归一化的错误率是否高于层归一化？",
        ),
        design=Text(
            "The eight rows of a noisy digit, one after another, through a tanh network of 48 units; batch norm keeps "
            "one set of statistics for all steps, because one layer is used in the loop.",
            "把带噪声数字的八行逐行送入 48 单元的 tanh 循环网络；批归一化在所有时间步共用一组统计量，"
            "循环中的同一层正是如此。",
        ),
        measure=Text(
            "Test error of batch norm minus that of layer norm.", "批归一化的测试错误率减去层归一化的测试错误率。"
        ),
        unit="points",
        effect=difference(*cells),
        cells=cells,
        show=test_error,
    )


def characters(name: str, workload: str, question: Text, design: Text, extended: bool = False) -> Experiment:
    """Batch norm compared with layer norm in a character model."""
    cells = ((workload, "batch_norm", 8), (workload, "layer_norm", 8))
    return Experiment(
        claim="BN-5",
        name=name,
        question=question,
        design=design,
        measure=Text("Test loss per character, batch norm minus layer norm.", "每字符的测试损失：批归一化减层归一化。"),
        unit="nats",
        effect=difference(*cells),
        cells=cells,
        show=test_error,
        extended=extended,
    )


EXPERIMENTS = (
    recurrent(4),
    recurrent(32),
    characters(
        "recurrent character model",
        "text",
        Text(
            "Does a recurrent network predict the next character of a program less accurately with batch norm?",
            "循环网络预测程序文本的下一个字符时，批归一化是否更差？",
        ),
        Text(
            "Source text of Python's standard library in pieces of 24 characters, a tanh network of 64 units, batches "
            "of 8, 250 steps.",
            "Python 标准库源代码，每段 24 个字符，64 单元的 tanh 循环网络，批量 8，训练 250 步。",
        ),
    ),
    characters(
        "character Transformer",
        "attention",
        Text("And a Transformer, whose statistics cover all positions?", "统计量覆盖所有位置的 Transformer 又如何？"),
        Text(
            "The same text, three blocks of width 64 with four heads, norms before attention and perceptron, 600 steps.",
            "同样的文本，三个宽度 64、四头的模块，归一化在注意力与感知机之前，训练 600 步。",
        ),
        extended=True,
    ),
)
