"""All texts of the page that are not from the catalog, an experiment or the rules, in both languages."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.catalog import Text
from normkit.study.report.writing import formatting


def say(key: str, lang: str, **values: object) -> str:
    """A text of the page in one language.

    >>> say("batch", "en", size=8), say("batch", "zh", size=8)
    ('batch size 8', '批量 8')
    """
    text = TEXTS[key].to(lang).format(**values)
    return formatting.chinese(text) if lang == "zh" and values else text


TEXTS: Mapping[str, Text] = {
    key: Text(en, zh)
    for key, en, zh in (
        # Head
        ("title", "normkit compare: {task}", "normkit compare：{task}"),
        ("skip", "Skip to the answer", "跳到结论"),
        ("heading", "Which normalization?", "该用哪种归一化？"),
        ("contents", "On this page", "本页内容"),
        ("nav.decision", "Decision", "选择"),
        ("nav.methods", "Methods", "方法"),
        ("nav.claims", "Claims", "论断"),
        ("nav.figures", "Figures", "图表"),
        ("nav.uncertainty", "Uncertainty", "不确定性"),
        ("nav.numbers", "Numbers", "数据"),
        ("nav.how", "Rules", "规则"),
        ("nav.origin", "Provenance", "环境"),
        ("theme", "Light or dark", "明暗主题"),
        ("incomplete", "Not complete.", "尚未完成。"),
        (
            "incomplete.text",
            "The study was interrupted, and this page shows the finished runs. The same command continues the study.",
            "研究被中断，本页只包含已完成的运行。再次执行同一命令即可继续。",
        ),
        ("preliminary", "Preliminary: {done} of {all} seeds.", "初步结果：{all} 个随机种子中已测完 {done} 个。"),
        (
            "preliminary.text",
            "The other seeds are being measured. With so few seeds only large differences can be found, and none of them "
            "is confirmed at other learning rates yet, so methods that are not resolved here may still be told apart. "
            "This page is written again when the comparison is finished: reload it.",
            "其余随机种子仍在测量。随机种子这样少，只能发现较大的差异，而且这些差异都尚未在其他学习率下确认，"
            "因此此处未能分辨的方法之后仍可能分出高下。比较完成后会更新本页，刷新即可查看。",
        ),
        ("awaited", "Claims are still being measured: {done} of {all} experiments.", "论断仍在测量中：已完成 {done} / {all} 项实验。"),
        (
            "awaited.text",
            "The comparison is finished. This page is written again every minute and at the end of the study: reload it. "
            "Verdicts on claims may change until then, because they are corrected over all experiments.",
            "各方法的比较已经完成。本页每分钟更新一次，研究结束时写入最终版本，刷新即可查看。论断的结论要对全部实验做校正，在此之前可能改变。",
        ),
        ("awaited.command", "If the command has been stopped, give it again; it continues from the finished runs.",
         "若命令已停止，再次执行即可从已完成的运行继续。"),
        ("reason", "No run has a result.", "没有任何运行得到结果。"),
        ("reason.failed", "Failed runs: {count}. The first one ({where}) ended with this message:", "失败的运行：{count} 次。第一次（{where}）的错误信息："),
        ("reason.more", "All messages and tracebacks", "查看全部错误信息与堆栈"),
        (
            "safe",
            "At none of these batch sizes is another method measurably better than {names}.",
            "在以上所有批量下，没有其他方法显著优于{names}。",
        ),
        ("chip.runs", "training runs", "次训练"),
        ("chip.seeds", "seeds for each result", "个随机种子（每个结果）"),
        ("chip.rates", "learning rates tried for each method", "个候选学习率（每种方法）"),
        ("chip.experiments", "experiments on {claims} claims", "项实验，检验 {claims} 条论断"),
        ("chip.untrained.one", "run of the comparison did not train (counted in its mean)", "次运行未训练成功（计入均值）"),
        ("chip.failed.one", "run failed", "次运行失败"),
        ("chip.untrained", "runs of the comparison did not train (counted in the means)", "次运行未训练成功（计入均值）"),
        ("chip.failed", "runs failed", "次运行失败"),
        ("chip.time", "wall time of the last call", "上次调用用时"),
        ("batch", "batch size {size}", "批量 {size}"),
        (
            "dots",
            "Each dot is one seed; the mark is the mean over the seeds, the line its 95 % interval. The grey band starts "
            "at the mean of the best method and is as wide as the smallest difference that matters ({least}).",
            "每个圆点是一个随机种子；大标记为各种子的均值，横线为 95 % 置信区间。灰带从最佳方法的均值开始，宽度为有实际意义的最小差异（{least}）。",
        ),
        (
            "dots.cut",
            "The axis is cut at the double stroke, so that outliers do not squeeze the other values. Arrows mark what lies "
            "beyond it.",
            "坐标轴在双斜线处截断，以免离群值把其余数值挤在一起；箭头表示超出范围的数值。",
        ),
        ("colon", ": ", "："),
        # Decision
        ("decision", "What to take at your batch size", "按批量选择"),
        (
            "decision.lead",
            "Measured on {task}. Each entry shows the evidence and links to it: the mean of the best method with its 95 % "
            "interval, and the differences of the others to it. Their p values and intervals are corrected over all "
            "comparisons.",
            "在“{task}”上测得。每一项都给出依据及其链接：最佳方法的均值及 95 % 置信区间，以及其余方法与它的差值；p 值与置信区间已对全部比较做校正。",
        ),
        ("decision.size", "Batch size", "批量"),
        ("decision.take", "Take", "选用"),
        ("decision.avoid", "Avoid", "避免"),
        ("decision.choice", "Choice", "选择"),
        ("decision.evidence", "Evidence", "依据"),
        ("decision.none", "nothing: no method was measurably worse", "无：没有方法显著更差"),
        ("decision.open", "undecided", "无法判断"),
        ("elsewhere", "In other networks and on other tasks", "其他网络与任务"),
        (
            "elsewhere.lead",
            "The experiments that found one method measurably better than another, each in one respect.",
            "以下实验测得一种方法显著优于另一种，每项实验只针对一个方面。",
        ),
        ("elsewhere.question", "Question", "问题"),
        ("elsewhere.better", "Better", "更好"),
        ("elsewhere.worse", "Worse", "更差"),
        ("elsewhere.by", "By", "差值"),
        # Methods
        ("methods", "The methods side by side", "各方法对照"),
        (
            "methods.lead",
            "What is claimed about each method, and what was measured here. A badge is the verdict on a claim. The small "
            "figure next to it shows the measured effect with its interval: to the right of the line the claim holds, and "
            "effects inside the grey band are too small to matter. Both link to the experiments.",
            "关于各方法的常见论断，以及本次的实测结果。标签为对论断的结论，旁边的小图为实测效应及其置信区间：竖线右侧表示论断成立，"
            "落在灰带内的效应可忽略。点击可查看对应的实验。",
        ),
        (
            "methods.plain",
            "What each method does, and what was measured here. The small figure shows every seed, the mean and its "
            "interval; all methods of a batch size share one scale.",
            "各方法的做法与本次的实测结果。小图显示每个随机种子、均值及其置信区间；同一批量的各方法使用同一刻度。",
        ),
        ("col.method", "Method", "方法"),
        ("col.use", "Where used", "适用场景"),
        ("col.strengths", "Claimed strengths", "通常认为的优点"),
        ("col.weaknesses", "Claimed weaknesses", "通常认为的缺点"),
        ("col.measured", "Measured: {metric}", "实测：{metric}"),
        ("none.principle", "The output of a layer is passed on unchanged.", "层的输出不做归一化，直接传给下一层。"),
        ("none.where", "the baseline of this comparison", "本次比较的基线"),
        ("unchanged.principle", "The model with the norms that it has now.", "保留模型现有的归一化层。"),
        ("unchanged.where", "your present model", "你现在的模型"),
        ("unmeasured", "not measured", "未测量"),
        ("sort", "Click on a heading to sort the table.", "点击表头可排序。"),
        ("tally", "{count} {finding}", "{count} 项{finding}"),
        # Claims
        ("claims", "The claims, and the experiments on them", "论断与实验"),
        (
            "claims.lead",
            "Question, design, measure and rule of each experiment were fixed before it was run. A claim is often more "
            "general than an experiment can show: a verdict holds for these networks and these data.",
            "每项实验的问题、设计、指标与判定规则都在运行之前确定。论断往往比实验所能说明的更宽泛：结论只适用于这里的网络与数据。",
        ),
        ("claims.open", "Open all experiments", "展开全部实验"),
        ("claims.close", "Close all experiments", "收起全部实验"),
        ("findings.claim", "claim", "论断"),
        ("findings.experiment", "experiment", "问题"),
        ("findings.effect", "effect", "效应"),
        ("findings.interval", "95 % interval", "95 % 置信区间"),
        ("findings.finding", "verdict", "结论"),
        ("design", "Design", "设计"),
        ("measure", "Measure", "指标"),
        ("rule", "Rule, fixed before the result", "事先确定的判定规则"),
        ("result", "Result", "结果"),
        ("effect", "Effect", "效应"),
        ("interval", "95 % interval", "95 % 置信区间"),
        ("wide", "interval corrected over all experiments", "对全部实验校正的置信区间"),
        ("wide.pairs", "corrected interval", "校正后的置信区间"),
        ("smallest", "smallest effect that matters", "有实际意义的最小效应"),
        ("p", "p, corrected over all experiments", "p 值（对全部实验校正）"),
        ("p.none", "none: the claim is that there is no difference", "无：该论断的内容就是“没有差异”"),
        ("n", "number of values", "样本数"),
        (
            "bound.at least",
            "The true effect is at least this large: runs that did not reach the target are counted as if they had just reached it.",
            "真实效应不小于此值：未达到目标的运行按刚好达到计算。",
        ),
        (
            "bound.at most",
            "The true effect is at most this large: runs that did not reach the target are counted as if they had just reached it.",
            "真实效应不大于此值：未达到目标的运行按刚好达到计算。",
        ),
        (
            "bound.unknown",
            "Some runs of both variants did not reach the target, so the true effect may be larger or smaller.",
            "两组都有未达到目标的运行，真实效应可能更大，也可能更小。",
        ),
        ("variants", "The values of each variant", "各组的数值"),
        ("variant", "Variant", "组别"),
        ("variant.mean", "mean", "均值"),
        ("variant.median", "median", "中位数"),
        ("variant.values", "Seed by seed", "逐个随机种子"),
        ("variant.rounds", "{count} rounds: see the figure and results.json", "{count} 轮，见图与 results.json"),
        ("repeat", "Repeat this experiment", "复现实验"),
        ("copy", "Copy", "复制"),
        ("copied", "Copied", "已复制"),
        ("not.measured", "Claims that these runs do not measure", "本次运行未测量的论断"),
        ("form.share", "share", "比例"),
        ("form.steps", "steps", "步数"),
        ("form.rate", "learning rate", "学习率"),
        ("form.seconds", "milliseconds", "毫秒"),
        ("form.number", "value", "数值"),
        ("back", "Back to the table", "回到表格"),
        # Figures
        ("figures", "The figures", "图表"),
        ("figures.lead", "Each figure as SVG, and its data as CSV:", "将每幅图导出为 SVG，数据导出为 CSV："),
        ("legend", "Methods shown", "显示的方法"),
        ("legend.lead", "Press a method to hide it in all figures and tables.", "点击某个方法，可在所有图表中隐藏它。"),
        ("curves", "Learning curves", "学习曲线"),
        (
            "curves.lead",
            "Training loss, averaged over {window} steps, at the chosen learning rate of each method. The line is the mean "
            "over {seeds} seeds, the band its 95 % interval.",
            "各方法在其选定学习率下的训练损失（{window} 步滑动平均）。线为 {seeds} 个随机种子的均值，色带为 95 % 置信区间。",
        ),
        ("sizes", "{metric} against batch size", "{metric}与批量"),
        (
            "sizes.lead",
            "All batch sizes take the same number of steps, so a small batch sees fewer samples in all. Compare the order "
            "of the methods between batch sizes; the slope that all of them share has no meaning.",
            "所有批量的训练步数相同，因此小批量见到的样本总数更少。请比较各方法的次序如何随批量变化；所有方法共有的斜率没有意义。",
        ),
        ("rates", "Sensitivity to the learning rate", "对学习率的敏感性"),
        (
            "rates.lead",
            "Mean {metric} over {runs} tuning seeds for each learning rate. A ring marks the chosen rate, a cross a rate at "
            "which a run did not train. The flatter the curve, the less the choice matters.",
            "每个学习率在 {runs} 个调参用的随机种子上的平均{metric}。圆环为选定的学习率，叉号表示有运行未训练成功。曲线越平，对学习率越不敏感。",
        ),
        (
            "sensitivity.lead",
            "The same curves for each method, one line for each batch size. The bar below a curve covers the rates whose "
            "mean is within {least} of the best one: the wider it is, the less the method depends on the rate.",
            "同样的曲线按方法分开，每个批量一条线。曲线下方的横条为均值与最佳值相差不超过 {least} 的学习率范围：横条越宽，对学习率的依赖越小。",
        ),
        (
            "edge",
            "The best rate was the lowest or highest one tried for {names}. A better one may lie beyond it.",
            "以下情形的最佳学习率是所试范围的端点，范围之外可能还有更好的：{names}。",
        ),
        ("edge.item", "{name} at batch size {size} ({rate})", "{name}，批量 {size}（{rate}）"),
        ("gaps", "Training mode against evaluation mode", "训练模式与推理模式"),
        (
            "gaps.lead",
            "How much the loss changes when the same weights process the same training samples in evaluation mode. Among "
            "the norms, only those with running statistics can cause a change.",
            "权重与训练样本都不变，切换到推理模式后损失的变化。归一化方法中，只有使用滑动统计量的才会带来变化。",
        ),
        (
            "recalibrated",
            "{name}, batch size {size}: {metric} {before} with the running statistics of training, {after} with "
            "recalibrated ones.",
            "{name}，批量 {size}：使用训练得到的滑动统计量时，{metric}为 {before}；重新校准后为 {after}。",
        ),
        ("times", "Time of a training step", "每个训练步的时间"),
        ("times.lead", "Divided by the time of no norm in the same round. Each dot is one round; the mark is the median.",
         "与同一轮中无归一化的时间之比。每个圆点是一轮，大标记为中位数。"),
        ("memory", "Memory of a training step", "每个训练步的内存"),
        (
            "memory.lead",
            "Bytes of the tensors that one step saves for its backward pass, without parameters.",
            "一个训练步为反向传播保存的张量字节数，不含参数。",
        ),
        ("cubes", "Which values share one mean", "哪些元素共用一个均值"),
        (
            "cubes.lead",
            "The cube is the output of one layer: batch, channels and positions. The coloured values share one mean and "
            "one variance.",
            "立方体是一层的输出：批次、通道与空间位置。着色的元素共用一个均值和一个方差。",
        ),
        (
            "cubes.count",
            "The figures below count these values at the last convolution of this network, where they are fewest and a mean is least certain.",
            "下方为本网络最后一个卷积层中这样的元素个数；那里元素最少，均值的估计最不准。",
        ),
        ("cube.values", "{count} values at batch size {size}", "批量 {size} 时为 {count} 个元素"),
        ("cube.weights", "acts on the weights, not on the values", "作用于权重，不使用激活值"),
        ("nothing", "Nothing has been measured yet.", "尚无测量结果。"),
        # Numbers
        ("numbers", "All numbers", "全部数据"),
        (
            "numbers.lead",
            "One row for each method and batch size: means over {seeds} seeds, with 95 % intervals. Runs that did not "
            "train are counted in every mean.",
            "每种方法在每个批量下占一行，为 {seeds} 个随机种子的均值及 95 % 置信区间。未训练成功的运行也计入均值。",
        ),
        ("col.batch", "Batch", "批量"),
        ("col.verdict", "Standing", "位次"),
        ("col.steps", "Steps to loss {target:g}", "损失降到 {target:g} 的步数"),
        ("col.steps.target", "Steps to target loss", "达到目标损失的步数"),
        ("col.gap", "Train/eval gap", "训练/推理差距"),
        ("col.time", "Time of a step", "每步时间"),
        ("col.ratio", "Relative to no norm", "相对无归一化"),
        ("col.memory", "Memory", "内存"),
        ("col.rate", "Learning rate", "学习率"),
        ("col.untrained", "Did not train", "未训练成功"),
        ("pairs", "All {count} paired differences", "全部 {count} 组配对差值"),
        ("pairs.caption", "{metric} of the first method minus that of the second, paired seed by seed",
         "前一种方法的{metric}减后一种方法的{metric}，逐个随机种子配对"),
        ("pairs.compared", "Compared", "比较"),
        ("pairs.difference", "Difference{unit}", "差值{unit}"),
        ("pairs.unit", " in points", "（百分点）"),
        ("pairs.p", "p, corrected", "p 值（校正后）"),
        ("pairs.relation", "Better", "更优者"),
        ("relation.equal", "equal", "相当"),
        ("relation.not resolved", "not resolved", "未能分辨"),
        ("failures", "Runs that failed", "失败的运行"),
        (
            "failures.lead",
            "They have no result and are in no mean. The same command tries them again.",
            "这些运行没有结果，不计入任何均值；再次执行同一命令会重试。",
        ),
        ("failures.item", "{name}, batch size {size}, rate {rate}, seed {seed}", "{name}，批量 {size}，学习率 {rate}，随机种子 {seed}"),
        ("trace", "Traceback", "错误堆栈"),
        ("messages", "Runs that did not train", "未训练成功的运行"),
        ("messages.broke", "the loss was no longer finite", "损失不再是有限值"),
        ("messages.guess", "at the end no better than guessing", "结束时不优于随机猜测"),
        ("messages.lead", "They are counted in every mean.", "这些运行计入所有均值。"),
        ("messages.where", "{name}, batch size {size}", "{name}，批量 {size}"),
        ("messages.count", "{count} of {runs} runs", "{runs} 次运行中的 {count} 次"),
        # How, provenance
        ("how", "How this was measured", "测量与判定规则"),
        (
            "how.lead",
            "These rules are part of normkit. They were fixed before the runs and are the same for every method.",
            "以下规则是 normkit 的一部分，在运行之前就已确定，对每种方法都相同。",
        ),
        ("origin", "Provenance", "运行环境"),
        ("origin.again", "Repeat the study", "复现全部实验"),
        (
            "origin.files",
            "Every number on this page and every run is in results.json in the same folder.",
            "本页的每个数字和每次运行都保存在同一文件夹的 results.json 中。",
        ),
        ("origin.seeds", "seeds of the results", "结果所用的随机种子"),
        ("origin.tuning", "seeds of the tuning", "调参所用的随机种子"),
        ("fact.processor", "processor", "处理器"),
        ("fact.cores", "cores", "核心数"),
        ("fact.system", "system", "系统"),
        ("fact.python", "Python", "Python"),
        ("fact.torch", "PyTorch", "PyTorch"),
        ("fact.normkit", "normkit", "normkit"),
        ("fact.kernels", "kernels", "计算内核"),
        ("fact.workers", "workers", "工作进程数"),
        ("fact.executor", "executor", "执行方式"),
        ("fact.device", "device", "设备"),
        ("fact.accelerator", "accelerator", "加速器"),
        ("value.processes", "processes", "本机多进程"),
        ("value.ray", "Ray", "Ray"),
        # Verdicts
        ("finding.supported", "supported", "成立"),
        ("finding.contradicted", "contradicted", "不成立"),
        ("finding.not resolved", "not resolved", "尚无定论"),
        ("finding.mixed", "mixed", "结论不一"),
        # Figures' words
        ("axis.step", "training step", "训练步"),
        ("axis.training", "training loss", "训练损失"),
        ("axis.batch", "batch size", "批量"),
        ("axis.rate", "learning rate", "学习率"),
        ("axis.gap", "loss in evaluation mode − loss in training mode", "推理模式的损失 − 训练模式的损失"),
        ("axis.time", "time of a step, no norm = 1", "每步时间（无归一化 = 1）"),
        ("axis.memory", "saved for the backward pass", "为反向传播保存的字节数"),
        ("axis.points", "effect in points", "效应（百分点）"),
        ("axis.log2 ratio", "ratio", "比值"),
        ("axis.log10 ratio", "ratio", "比值"),
        ("axis.nats", "effect in nats", "效应（nats）"),
        ("axis.loss", "effect on the loss", "对损失的效应"),
        ("axis.share", "effect", "效应"),
        ("target", "target {target:g}", "目标 {target:g}"),
        ("alt.errors", "{metric} of each method at batch size {size}, seed by seed", "批量 {size} 时各方法的{metric}，逐个随机种子"),
        ("alt.curves", "Training loss over the steps at batch size {size}", "批量 {size} 时的训练损失曲线"),
        ("alt.sizes", "{metric} against batch size", "{metric}随批量的变化"),
        ("alt.rates", "{metric} against learning rate at batch size {size}", "批量 {size} 时{metric}随学习率的变化"),
        ("alt.sensitivity", "{name}: {metric} against learning rate at each batch size",
         "{name}：各批量下{metric}随学习率的变化"),
        ("alt.gaps", "Train/eval gap at batch size {size}", "批量 {size} 时训练模式与推理模式的损失之差"),
        ("alt.times", "Time of a step relative to no norm at batch size {size}", "批量 {size} 时每步时间与无归一化之比"),
        ("alt.memory", "Memory of a step at batch size {size}", "批量 {size} 时每步的内存"),
        ("alt.strip", "{name}, batch size {size}: {value}, 95 % interval {spread}, {n} seeds",
         "{name}，批量 {size}：{value}，95 % 置信区间 {spread}，{n} 个随机种子"),
        ("alt.effect", "Effect {effect}, {finding}", "效应 {effect}，{finding}"),
        ("alt.variants", "The values of each variant, seed by seed: {question}", "各组的数值，逐个随机种子：{question}"),
        ("alt.variant.curves", "Training loss of each variant: {question}", "各组的训练损失：{question}"),
        ("alt.cube", "{name}: one mean and one variance per {statistics}", "{name}：每个统计区域共用一个均值和一个方差（{statistics}）"),
    )
}  # fmt: skip
