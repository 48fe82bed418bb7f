"""The rules of a design as text, in both languages."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.catalog import Text
from normkit.study.analysis.verdict import FIRST_LOOK
from normkit.study.report.writing import formatting
from normkit.study.task import Task
from normkit.study.training.design import FIRST_PART, GROWTH, Design
from normkit.study.training.rates import RIVALS, TIES
from normkit.study.training.tuning import MOST_RIVALS


def rules(design: Design, task: Task) -> tuple[tuple[Text, Text], ...]:
    """The rules as (heading, text), each in both languages."""
    return tuple(
        (heading, formatting.both(text)) for heading, text in (*_training(design, task), *_judgement(design, task))
    )


def _training(design: Design, task: Task) -> Iterator[tuple[Text, Text]]:
    metric = task.reported
    test = metric.label("test")
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
    yield _tuning(design, task)
    yield (
        Text("Measurement", "测量"),
        Text(
            f"Each method is trained on {design.seeds} further seeds at the chosen rate. The {test} is computed only "
            f"once, at the end of these runs. {_samples(task)}: compare methods at one batch size, not one method at "
            "several batch sizes.",
            f"在选定的学习率下，每种方法用另外 {design.seeds} 个随机种子训练；{test.zh}只在训练结束时计算一次。"
            f"{_samples(task).zh}：请在同一批量下比较不同方法，不要比较同一方法的不同批量。",
        ),
    )
    at_chance = task.reported.value(task.chance)
    yield (
        Text("Runs that do not train", "未训练成功的运行"),
        Text(
            "Guessing gives the same outputs for every sample, the best ones for these data; where such outputs are "
            f"not known, it is an untrained model. A run did not train if its loss is not finite, or if its "
            f"{metric.name} at the end is not better than that of guessing by its 95 % interval. It is still counted "
            f"in every mean. A run that breaks off gets the {metric.name} of guessing, {at_chance}.",
            "猜测指对所有样本给出同一输出，且取对这些数据最有利的一个；无法确定这样的输出时，则指未经训练的模型。"
            f"损失不再是有限值、或结束时{metric.name.zh}按其 95 % 置信区间不优于猜测的运行视为未训练成功，"
            "仍计入所有均值。"
            f"中途发散的运行按猜测的{metric.name.zh}（{at_chance}）计。",
        ),
    )


def _tuning(design: Design, task: Task) -> tuple[Text, Text]:
    validation = task.reported.label("validation")
    count = len(design.options)
    more = (
        f" At the best rate, {count} settings of the optimizer are tried in addition to its defaults." if count else ""
    )
    more_zh = f"在最佳学习率下，除默认设置外再试 {count} 组优化器设置。" if count else ""
    lowest, lowest_zh = ("highest", "最高") if task.reported.higher_is_better else ("lowest", "最低")
    part = f"{100 * FIRST_PART:g} %"
    early = (
        f" All rates are trained for {part} of the steps at first; the one with the lowest training loss and the next "
        "higher one are trained to the end, and further ones until the best rate is between two that are worse."
        if design.discards
        else ""
    )
    early_zh = (
        f"所有学习率先训练 {part} 的步数；训练损失最低者及其上一档训练到底，再向两侧补充，直到最佳学习率两侧都更差。"
        if design.discards
        else ""
    )
    tie = (
        " A method gets the rate that is best on average over all methods instead, if that is no higher, its own best "
        f"one is better by at most {TIES:g} standard error, and not with every seed."
        if design.confirm
        else ""
    )
    tie_zh = (
        f"若各方法平均最佳的学习率不高于某方法自身的最佳学习率，且后者的优势不超过 {TIES:g} 个标准误、"
        "也不是在每个随机种子上都更优，则该方法改用前者。"
        if design.confirm
        else ""
    )
    length, schedule = _length(design, task), _schedule(task)
    return (
        Text("Tuning", "调参"),
        Text(
            f"A run takes {length}; {schedule}. Every "
            f"method at every batch size tries {design.trials} learning rates from {design.rates[0]:g} to "
            f"{design.rates[-1]:g}, each on {design.tuning_runs} seeds. The rate with the {lowest} mean {validation} "
            f"is chosen; the validation loss decides between equal ones. If the best rate is at an end of the range, "
            f"up to {GROWTH} more are tried beyond it.{early}{tie}{more} The results come from other seeds.",
            f"每次运行训练{length.zh}，{schedule.zh}。每种方法在每个批量下都尝试从 "
            f"{design.rates[0]:g} 到 {design.rates[-1]:g} 的 {design.trials} 个学习率，每个用 {design.tuning_runs} "
            f"个随机种子；选取平均{validation.zh}{lowest_zh}者，相同时比较验证损失。最佳学习率若在范围端点，"
            f"则向外再试至多 {GROWTH} 个。{early_zh}{tie_zh}{more_zh}最终结果使用另外的随机种子。",
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
        "cosine": Text("the learning rate falls to 0 along a half cosine", "学习率按半个余弦周期降到 0"),
        "linear": Text("the learning rate falls linearly to 0", "学习率线性降到 0"),
        "constant": Text("the learning rate stays the same", "学习率保持不变"),
    }
    own = Text("the learning rate follows the task's own schedule", "学习率按任务自己的调度变化")
    found = known[task.schedule or "cosine"] if not callable(task.schedule) else own
    if not task.warmup:
        return found
    length = f"{100 * task.warmup:g} %" if task.warmup < 1 else f"{task.warmup:g}"
    steps = Text("of the steps", "的步数") if task.warmup < 1 else Text("steps", "步")
    return Text(f"after a warm-up of {length} {steps}, {found}", f"先用 {length} {steps.zh}预热，之后{found.zh}")


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


# Over 80 lines, because the texts of both languages are long.
def _judgement(design: Design, task: Task) -> Iterator[tuple[Text, Text]]:
    metric = task.reported
    test, least = metric.label("test"), metric.amount(design.smallest)
    least_zh = metric.amount(design.smallest, "zh")
    lowest, lowest_zh = ("highest", "最高") if metric.higher_is_better else ("lowest", "最低")
    first = round(FIRST_LOOK * design.alpha, 6)
    at_rates = (
        f" Both must also hold on the same seeds at the rate of the better method, and at up to {MOST_RIVALS} other "
        f"rates of the worse one that tuning cannot exclude: those within {RIVALS:g} standard errors of its best one."
        if design.confirm
        else ""
    )
    at_rates_zh = (
        f"这两点还须在较优方法的学习率下成立，并在较差方法的至多 {MOST_RIVALS} 个调参无法排除的学习率"
        f"（与其最佳值相差不超过 {RIVALS:g} 个标准误）下成立，所用随机种子相同。"
        if design.confirm
        else ""
    )
    target = _target(design)
    yield (
        Text("Steps to target", "达到目标所需步数"),
        Text(
            f"The first step at which the training loss, averaged over {design.window} steps, is at most "
            f"{target}. A run that does not reach it gives a lower bound, not a number.",
            f"训练损失的 {design.window} 步滑动平均首次不超过{target.zh}时的步数。未达到的运行只给出下界，不给出数值。",
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
            f"At each batch size the method with the {lowest} mean {test} *leads*, if any method is better than "
            f"guessing. A method is *better* than another if their mean difference is at least {least} and a paired "
            f"t test gives p < {first:g}, with Holm's correction over all pairs at all batch sizes.{at_rates} A method "
            "is *behind* if any other is better than it. It is *equal* to the leader if the corrected interval of "
            f"their difference is within ±{least}, at the rate of either. Every other method is *not resolved*: its "
            "difference to the leader is within what these seeds can resolve. It is not recommended if none of its "
            "runs trained and one of the leader did. If seeds are added later, "
            f"{design.alpha - first:g} is left for all further reports, so that the probability of a wrong *better* "
            f"is {design.alpha:g} in all.",
            f"在每个批量下，只要有方法优于猜测，平均{test.zh}{lowest_zh}的方法就*领先*。若两种方法的平均差不小于"
            f"{least_zh}，且配对 t 检验得 p < {first:g}（对所有批量的所有两两比较做 Holm 校正），"
            "则一种方法*优于*另一种。"
            f"{at_rates_zh}有其他方法优于它的方法*落后*。若在双方各自的学习率下，与领先者之差的校正后置信区间都落在 "
            f"±{least_zh}以内，则与其*相当*。其余方法*未能分辨*：它与领先者的差异用现有的随机种子还无法分辨。"
            "若它没有运行训练成功，而领先者有，则不推荐它。"
            f"若之后增加随机种子，余下的 {design.alpha - first:g} 供以后的各次报告使用，因此误判*优于*的总概率为 "
            f"{design.alpha:g}。",
        ),
    )


def _target(design: Design) -> Text:
    """The training loss to which steps are counted."""
    if design.target_loss is not None:
        return Text(f"{design.target_loss:g}", f" {design.target_loss:g} ")
    return Text(
        "a target that suits the scale of the loss: at each batch size, halfway from the mean loss of the first step "
        f"to the lowest mean loss of a method over the last {design.window} steps",
        f"与损失量级相适应的目标（各批量下，首步平均损失与各方法最后 {design.window} 步平均损失中最低者的中点）",
    )
