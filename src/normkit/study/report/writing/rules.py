"""The rules of a design as text, in both languages."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.catalog import Text
from normkit.study.report.writing import formatting
from normkit.study.task import Task
from normkit.study.training.design import GROWTH, Design


def rules(design: Design, task: Task) -> tuple[tuple[Text, Text], ...]:
    """The rules as (heading, text), each in both languages."""
    return tuple(
        (heading, formatting.both(text)) for heading, text in (*_training(design, task), *_judgement(design, task))
    )


def _training(design: Design, task: Task) -> Iterator[tuple[Text, Text]]:
    metric = task.reported
    test, validation = metric.label("test"), metric.label("validation")
    count = len(design.options)
    more = (
        f" At the best rate, {count} settings of the optimizer are tried in addition to its defaults." if count else ""
    )
    more_zh = f"在最佳学习率下，除默认设置外再试 {count} 组优化器设置。" if count else ""
    lowest, lowest_zh = ("highest", "最高") if metric.higher_is_better else ("lowest", "最低")
    if task.description:
        zh = task.description.zh if isinstance(task.description, Text) else task.description
        yield Text("Task", "任务"), Text(task.description, zh)
    yield (
        Text("Pairing", "配对"),
        Text(
            "With one seed all methods start from the same weights of their convolution and linear layers and use the "
            "same batches in the same order. So two methods are compared seed by seed.",
            "同一随机种子下，所有方法的卷积层与线性层初始权重相同，批次及其顺序也相同，因此两种方法逐个种子配对比较。",
        ),
    )
    yield (
        Text("Tuning", "调参"),
        Text(
            f"A run takes {design.steps} steps, in which the learning rate falls to 0 along a half cosine. Every "
            f"method at every batch size tries {design.trials} learning rates from {design.rates[0]:g} to "
            f"{design.rates[-1]:g}, each on {design.tuning_runs} seeds. The rate with the {lowest} mean {validation} "
            f"is chosen; the validation loss decides between equal ones. If the best rate is at an end of the range, "
            f"{GROWTH} more are tried beyond it.{more} The results come from other seeds.",
            f"每次运行训练 {design.steps} 步，学习率按半个余弦周期降到 0。每种方法在每个批量下都尝试从 "
            f"{design.rates[0]:g} 到 {design.rates[-1]:g} 的 {design.trials} 个学习率，每个用 {design.tuning_runs} "
            f"个随机种子；选取平均{validation.zh}{lowest_zh}者，相同时比较验证损失。最佳学习率若在范围端点，"
            f"则向外再试 {GROWTH} 个。{more_zh}最终结果使用另外的随机种子。",
        ),
    )
    yield (
        Text("Measurement", "测量"),
        Text(
            f"Each method is trained on {design.seeds} further seeds at the chosen rate. The {test} is computed only "
            "once, at the end of these runs. All batch sizes take the same number of steps, so a small batch sees "
            "fewer samples in all: compare methods at one batch size, not one method at several batch sizes.",
            f"在选定的学习率下，每种方法用另外 {design.seeds} 个随机种子训练；{test.zh}只在训练结束时计算一次。"
            "所有批量的训练步数相同，小批量见到的样本总数更少：请在同一批量下比较不同方法，不要比较同一方法的不同批量。",
        ),
    )
    at_chance = task.reported.value(task.chance)
    yield (
        Text("Runs that do not train", "未训练成功的运行"),
        Text(
            "A run did not train if its loss is no longer finite, or no better than guessing at the end. It is still "
            f"counted in every mean. A run that breaks off gets the {task.reported.name} of guessing, {at_chance}.",
            "损失不再是有限值、或结束时不优于随机猜测的运行视为未训练成功，仍计入所有均值。"
            f"中途发散的运行按随机猜测的{task.reported.name.zh}（{at_chance}）计。",
        ),
    )


def _judgement(design: Design, task: Task) -> Iterator[tuple[Text, Text]]:
    metric = task.reported
    test, least = metric.label("test"), metric.amount(design.smallest)
    least_zh = metric.amount(design.smallest, "zh")
    lowest, lowest_zh = ("highest", "最高") if metric.higher_is_better else ("lowest", "最低")
    yield (
        Text("Steps to target", "达到目标所需步数"),
        Text(
            f"The first step at which the training loss, averaged over {design.window} steps, is at most "
            f"{design.target_loss:g}. A run that does not reach it gives a lower bound, not a number.",
            f"训练损失的 {design.window} 步滑动平均首次不超过 {design.target_loss:g} 时的步数。"
            "未达到的运行只给出下界，不给出数值。",
        ),
    )
    yield (
        Text("Train/eval gap", "训练/推理差距"),
        Text(
            f"Loss in evaluation mode minus loss in training mode, for the same weights and the same "
            f"{design.gap_images} training samples in batches of the training size. The same samples recalibrate the "
            f"running statistics for the recalibrated {metric.name}.",
            f"推理模式的损失减训练模式的损失，权重相同，训练样本相同（{design.gap_images} 个），批量与训练时一致。"
            f"同一批样本也用来重新校准滑动统计量，由此得到重新校准后的{metric.name.zh}。",
        ),
    )
    yield (
        Text("Time and memory of a step", "每步的时间与内存"),
        Text(
            f"Time of forward pass, backward pass and update on one thread. {design.time_rounds} rounds run in one "
            "process, and each round times every method once; the result is the median of the ratios to no norm. "
            "Memory is the size of the tensors that one training step saves for its backward pass, each counted once, "
            "without parameters.",
            f"时间为前向、反向与参数更新之和，单线程，在同一进程内测 {design.time_rounds} 轮，每轮各方法计时一次，"
            "取与无归一化之比的中位数。内存为一个训练步为反向传播保存的张量字节数，每个张量只计一次，不含参数。",
        ),
    )
    yield (
        Text("Intervals", "置信区间"),
        Text(
            "95 % t intervals over the seeds; for times, intervals of order statistics. They cover initial weights and "
            "the order of batches. All runs use the same data, so the uncertainty over other data is larger.",
            "对随机种子取 95 % t 置信区间，时间用次序统计量。它们涵盖初始权重与批次顺序的随机性；"
            "所有运行使用同一份数据，换用其他数据时不确定性会更大。",
        ),
    )
    yield (
        Text("The answer", "结论"),
        Text(
            f"At each batch size the method with the {lowest} mean {test} *leads*. A method is *better* than another "
            f"if their mean difference is at least {least} and a paired t test gives p < {design.alpha:g}, with Holm's "
            "correction over all pairs at all batch sizes. A method is *behind* if any other is better than it, or if "
            "none of its runs trained. It is *equal* to the leader if the corrected interval of their difference is "
            f"within ±{least}. Every other method is *not resolved*: its difference to the leader is within what "
            "these seeds can resolve.",
            f"在每个批量下，平均{test.zh}{lowest_zh}的方法*领先*。若两种方法的平均差不小于{least_zh}，且配对 t 检验得 "
            f"p < {design.alpha:g}（对所有批量的所有两两比较做 Holm 校正），则一种方法*优于*另一种。有其他方法优于它、"
            f"或没有一次运行训练成功的方法*落后*。与领先者之差的校正后置信区间落在 ±{least_zh}以内的方法与其*相当*。"
            "其余方法*未能分辨*：它与领先者的差异用现有的随机种子还无法分辨。",
        ),
    )
