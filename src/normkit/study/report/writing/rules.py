"""The rules of a design as text, in both languages."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.catalog import Text
from normkit.study.task import Task
from normkit.study.training.design import GROWTH, Design


def rules(design: Design, task: Task) -> tuple[tuple[Text, Text], ...]:
    """The rules as (heading, text), each in both languages."""
    return (*_training(design, task), *_judgement(design, task))


def _training(design: Design, task: Task) -> Iterator[tuple[Text, Text]]:
    test, validation = task.reported.label("test"), task.reported.label("validation")
    best, best_zh = ("highest", "高") if design.higher_is_better else ("lowest", "低")
    count = len(design.options)
    more = f" At the best rate, {count} settings of the optimizer are tried besides its defaults." if count else ""
    more_zh = f"在最佳学习率下，除默认值外还尝试 {count} 组优化器设置。" if count else ""
    if task.description:
        zh = task.description.zh if isinstance(task.description, Text) else task.description
        yield Text("Task", "任务"), Text(task.description, zh)
    yield (
        Text("Pairing", "配对"),
        Text(
            "For each seed all methods start from the same convolution and linear weights and use the same "
            "batches in the same order; so differences are computed seed by seed.",
            "同一种子下，所有方法从相同的卷积与线性权重出发，以相同的顺序看到相同的批次；因此差值逐种子计算。",
        ),
    )
    yield (
        Text("Tuning", "调参"),
        Text(
            f"{_length(design, task)}, {_schedule(task)}. "
            f"{design.trials} learning rates from {design.rates[0]:g} to {design.rates[-1]:g} for every method at "
            f"every batch size, each on {design.tuning_runs} seeds; the {best} mean {validation} wins "
            f"(validation loss breaks ties). If the best rate is the first or last, {GROWTH} more are "
            f"tried beyond it.{more} Results use other seeds.",
            f"每次训练{_length(design, task).zh}，{_schedule(task).zh}。每种方法在每个批量下都尝试从 {design.rates[0]:g} 到 "
            f"{design.rates[-1]:g} 的 {design.trials} 个学习率，每个用 {design.tuning_runs} 个种子；平均{validation.zh}"
            f"最{best_zh}者胜出（持平时看验证损失）。若最佳学习率位于两端，则向外再试 {GROWTH} 个。"
            f"{more_zh}结果使用另外的种子。",
        ),
    )
    yield (
        Text("Measurement", "测量"),
        Text(
            f"{design.seeds} further seeds at the chosen rate; the {test} is computed only at the end of "
            f"these runs. {_samples(task)}: compare methods at one batch size, not batch sizes of one method.",
            f"在选定的学习率下用另外 {design.seeds} 个种子训练；{test.zh}只在训练结束时查看一次。{_samples(task).zh}："
            "请在同一批量下比较方法，而不要比较同一方法的不同批量。",
        ),
    )
    at_chance = task.reported.value(task.chance)
    yield (
        Text("Runs that do not train", "未能训练的运行"),
        Text(
            "Guessing gives the same outputs for every sample, the best ones for these data; where such outputs are "
            "not known, it is an untrained model. A run whose loss is not finite, or whose "
            f"{task.reported.name} at the end is not better than that of guessing by its 95 % interval, counts as not "
            "trained; it is included in every mean. One that breaks off is scored with the "
            f"{task.reported.name} of guessing, {at_chance}.",
            "猜测指对所有样本给出同一输出，且取对这些数据最有利的一个；无法确定这样的输出时，则指未经训练的模型。"
            f"损失不是有限数、或结束时{task.reported.name.zh}按其 95 % 区间不优于猜测的运行视为未训练成功；"
            f"它仍计入所有平均值。中断的运行按猜测的{task.reported.name.zh} {at_chance} 计。",
        ),
    )


def _length(design: Design, task: Task) -> Text:
    """How long a run is."""
    if task.max_epochs is None:
        return Text(f"{design.steps} steps", f" {design.steps} 步")
    return Text(f"{task.max_epochs:g} epochs", f" {task.max_epochs:g} 轮")


def _schedule(task: Task) -> Text:
    """How the learning rate changes during a run."""
    known = {
        "cosine": Text("rate falling to 0 along a half cosine", "学习率沿半个余弦降到 0"),
        "linear": Text("rate falling linearly to 0", "学习率线性降到 0"),
        "constant": Text("constant rate", "学习率保持不变"),
    }
    own = Text("rate as the task's own schedule says", "学习率按任务自己的调度变化")
    found = known[task.schedule or "cosine"] if not callable(task.schedule) else own
    if not task.warmup:
        return found
    length = f"{100 * task.warmup:g} %" if task.warmup < 1 else f"{task.warmup:g}"
    steps = Text("of the steps", "的步数") if task.warmup < 1 else Text("steps", "步")
    return Text(f"warm-up of {length} {steps}, then {found}", f"先用 {length} {steps.zh}预热，之后{found.zh}")


def _samples(task: Task) -> Text:
    """What the batch sizes have in common, and what they do not."""
    if task.max_epochs is None:
        return Text(
            "Every batch size takes the same number of steps, so small batches use fewer samples",
            "各批量的步数相同，因此小批量看到的样本更少",
        )
    return Text(
        "Every batch size passes over the data equally often, so large batches take fewer steps",
        "各批量遍历数据的次数相同，因此大批量的步数更少",
    )


def _judgement(design: Design, task: Task) -> Iterator[tuple[Text, Text]]:
    metric = task.reported
    test, least = metric.label("test"), metric.amount(design.smallest)
    least_zh = metric.amount(design.smallest, "zh")
    best, best_zh = ("highest", "高") if metric.higher_is_better else ("lowest", "低")
    yield (
        Text("Steps to target", "达到目标所需步数"),
        Text(
            f"First step at which the training loss, averaged over {design.window} steps, is at most "
            f"{design.target_loss:g}. A run that does not reach it gives a bound, never a number.",
            f"训练损失在 {design.window} 步上的平均值首次不大于 {design.target_loss:g} 的步数。"
            "未达到的运行只给出下界，不给出数值。",
        ),
    )
    yield (
        Text("Train/eval gap", "训练/推理差距"),
        Text(
            f"Loss in evaluation mode minus loss in training mode: same weights, same {design.gap_images} training "
            f"samples, batches of the training size. The same pass computes the running statistics for the "
            f"recalibrated {metric.name}.",
            f"推理模式的损失减去训练模式的损失：相同的权重、相同的 {design.gap_images} 个训练样本、训练时的批量。"
            f"同一遍数据还用来重新计算滑动统计量，得到重新校准后的{metric.name.zh}。",
        ),
    )
    yield (
        Text("Time and memory of a step", "每步的时间与内存"),
        Text(
            f"Time: forward, backward and update, one thread, {design.time_rounds} rounds in one process; each round "
            "times every method once. Median of the ratios to no norm. Memory: bytes of the tensors that one "
            "training step saves for its backward pass, each counted once, without parameters.",
            f"时间：前向、反向与更新，单线程，在一个进程内进行 {design.time_rounds} 轮；每轮各方法计时一次。"
            "取与不归一化之比的中位数。内存：一个训练步为反向传播保存的张量字节数，每个只计一次，不含参数。",
        ),
    )
    yield (
        Text("Intervals", "置信区间"),
        Text(
            "95 % t intervals over seeds (order statistics for times). They cover weights and batch order; the "
            "data are always the same, so other data would widen them.",
            "对种子取 95 % t 区间（时间用次序统计量）。它们涵盖权重与批次顺序的随机性；数据始终相同，"
            "换用其他数据会使区间更宽。",
        ),
    )
    yield (
        Text("The answer", "结论"),
        Text(
            f"At each batch size the method with the {best} mean {test} leads, if any method is better than guessing. "
            "One method is *better* than "
            f"another if the paired t test, Holm-corrected over all pairs at all batch sizes, gives p < "
            f"{design.alpha:g} and the mean difference is at least {least}. A method is *behind* if any other is "
            "better. It is *equal* to the leader if the simultaneous interval of the difference "
            f"lies within ±{least}. Everything else is *not resolved*.",
            f"在每个批量下，只要有方法优于猜测，平均{test.zh}最{best_zh}的方法就*领先*。若配对 t 检验"
            f"（对所有批量的所有方法对做 Holm 校正）得 p < {design.alpha:g} 且平均差不小于 "
            f"{least_zh}，则一种方法*优于*"
            f"另一种；被任何方法优于的方法*落后*。若与领先者之差的联合置信区间落在 ±{least_zh}之内，则与其*相当*。"
            "其余均为*未定*。",
        ),
    )
