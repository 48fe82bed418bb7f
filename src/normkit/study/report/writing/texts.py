"""All texts of the page that are not from the catalog, an experiment or the rules, in both languages."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.catalog import Text


def say(key: str, lang: str, **values: object) -> str:
    """A text of the page in one language.

    >>> say("batch", "en", size=8), say("batch", "zh", size=8)
    ('batch size 8', '批量 8')
    """
    return TEXTS[key].to(lang).format(**values)


TEXTS: Mapping[str, Text] = {
    key: Text(en, zh)
    for key, en, zh in (
        # Head
        ("title", "normkit compare: {task}", "normkit compare：{task}"),
        ("skip", "Skip to the answer", "跳到结论"),
        ("heading", "Which normalization?", "该用哪种归一化？"),
        ("contents", "On this page", "本页内容"),
        ("nav.methods", "Methods", "方法"),
        ("nav.claims", "Claims", "论断"),
        ("nav.figures", "Figures", "图表"),
        ("nav.numbers", "Numbers", "数据"),
        ("nav.how", "How", "测量方法"),
        ("nav.origin", "Provenance", "来源"),
        ("theme", "Light or dark", "明暗主题"),
        ("incomplete", "Not complete.", "尚未完成。"),
        (
            "incomplete.text",
            "The study was interrupted. This page is based on the finished runs; give the same command again to "
            "continue.",
            "研究中断。本页依据已完成的运行；再次执行同一命令即可继续。",
        ),
        (
            "safe",
            "No method is measurably better than {names} at any of these batch sizes.",
            "在所有这些批量下，没有测得优于{names}的方法。",
        ),
        ("chip.runs", "training runs", "次训练"),
        ("chip.seeds", "seeds for each result", "个种子支撑每个结果"),
        ("chip.rates", "learning rates tried for each method", "个学习率供每种方法尝试"),
        ("chip.experiments", "experiments on {claims} claims", "项实验，检验 {claims} 条论断"),
        ("chip.untrained", "runs that did not train, all included", "次运行未训练成功，全部计入"),
        ("chip.failed", "runs that failed", "次运行失败"),
        ("chip.time", "wall time of the last call", "上次调用用时"),
        ("batch", "batch size {size}", "批量 {size}"),
        ("dots", "Dots are seeds; the mark is their mean with its 95 % interval; the grey band is the smallest "
         "difference that matters.", "圆点为各个种子；标记为其均值与 95 % 区间；灰带为有意义的最小差异。"),
        ("colon", ": ", "："),
        # Methods
        ("methods", "The methods side by side", "各方法对照"),
        (
            "methods.lead",
            "Common claims about each method, and what was measured here. A badge is a verdict; the small figure next to "
            "it shows the effect with its interval. Right of the line the claim holds; effects inside the grey band are too "
            "small to matter. Each links to its experiments.",
            "关于各方法的常见论断，以及这里的测量结果。标签是结论，旁边的小图是效应及其区间：位于线右侧表示论断成立，"
            "落在灰带内表示效应太小、没有意义。点击可查看对应的实验。",
        ),
        (
            "methods.plain",
            "What each method does and what was measured here. The small figure shows every seed, the mean and its "
            "interval, on one scale for each batch size.",
            "各方法的做法与这里的测量结果。小图显示每个种子、均值及其区间，同一批量共用一个刻度。",
        ),
        ("col.method", "Method", "方法"),
        ("col.use", "Where used", "适用场景"),
        ("col.strengths", "Claimed strengths", "据称的优点"),
        ("col.weaknesses", "Claimed weaknesses", "据称的缺点"),
        ("col.measured", "Measured: {metric}", "实测：{metric}"),
        ("none.principle", "The output of a layer is passed on unchanged.", "层的输出原样传给下一层。"),
        ("none.where", "the baseline of this comparison", "本次比较的基准"),
        ("unchanged.principle", "The model unchanged.", "模型保持原样。"),
        ("unchanged.where", "your present model", "现有的模型"),
        ("unmeasured", "not measured", "未测量"),
        ("sort", "Tables are sorted by clicking on a heading.", "点击表头可排序。"),
        ("tally", "{count} {finding}", "{count} 项{finding}"),
        # Claims
        ("claims", "The claims, and the experiments on them", "论断及其实验"),
        (
            "claims.lead",
            "Question, design, measure and rule of each experiment were fixed before it was run. A claim may be more general "
            "than an experiment can show; a verdict holds for these networks, these data and this machine.",
            "每项实验的问题、设计、度量与判定规则都在运行之前写定。论断可能比实验所能表明的更一般；结论只对这些网络、"
            "数据和机器成立。",
        ),
        ("claims.open", "Open all experiments", "展开全部实验"),
        ("claims.close", "Close all experiments", "收起全部实验"),
        ("findings.claim", "claim", "论断"),
        ("findings.experiment", "experiment", "问题"),
        ("findings.effect", "effect", "效应"),
        ("findings.interval", "95 %", "95 %"),
        ("findings.finding", "finding", "结论"),
        ("design", "Design", "设计"),
        ("measure", "Measure", "度量"),
        ("rule", "Rule, fixed before the result", "事先写定的规则"),
        ("result", "Result", "结果"),
        ("effect", "Effect", "效应"),
        ("interval", "95 % interval", "95 % 区间"),
        ("wide", "simultaneous interval", "联合区间"),
        ("smallest", "smallest that matters", "有意义的最小效应"),
        ("p", "p, corrected over all experiments", "p（对全部实验校正）"),
        ("p.none", "none: the claim is that there is no difference", "无：论断就是没有差异"),
        ("n", "values", "数值个数"),
        ("bound.at least", "at least: runs that did not reach the target count as if they had just reached it", "下界：未达到目标的运行按刚好达到计"),
        ("bound.at most", "at most: runs that did not reach the target count as if they had just reached it", "上界：未达到目标的运行按刚好达到计"),
        ("bound.unknown", "runs of both variants did not reach the target; the direction of the error is not known",
         "两组都有未达到目标的运行，误差方向未知"),
        ("variants", "The values of each variant", "各组的结果"),
        ("variant", "Variant", "组"),
        ("variant.mean", "mean", "均值"),
        ("variant.median", "median", "中位数"),
        ("variant.values", "Seed by seed", "逐个种子"),
        ("variant.rounds", "{count} rounds, in the figure and in results.json", "{count} 轮，见图与 results.json"),
        ("repeat", "To repeat it", "重复此实验"),
        ("copy", "Copy", "复制"),
        ("copied", "Copied", "已复制"),
        ("not.measured", "Not measured by these runs", "这些运行未测量的论断"),
        ("form.share", "share", "比例"),
        ("form.steps", "steps", "步数"),
        ("form.rate", "learning rate", "学习率"),
        ("form.seconds", "milliseconds", "毫秒"),
        ("form.number", "value", "数值"),
        ("back", "Back to the table", "回到表格"),
        # Figures
        ("figures", "The figures", "图表"),
        ("legend", "Methods shown", "显示的方法"),
        ("legend.lead", "Press a method to hide it everywhere.", "点击某个方法可在各处隐藏它。"),
        ("curves", "Learning curves", "学习曲线"),
        (
            "curves.lead",
            "Training loss, averaged over {window} steps; the line is the mean over {seeds} seeds, the band its 95 % "
            "interval. Each method uses its best learning rate.",
            "训练损失，在 {window} 步上取平均；线为 {seeds} 个种子的均值，色带为 95 % 区间。每种方法使用各自的最佳学习率。",
        ),
        ("sizes", "{metric} against batch size", "{metric}随批量的变化"),
        (
            "sizes.lead",
            "Every batch size takes the same number of steps, so small batches use fewer samples. Compare the order of the "
            "methods, which may change, and not the slope that they share.",
            "各批量的步数相同，小批量看到的样本更少：请看各方法的次序如何变化，而不是它们共同的斜率。",
        ),
        ("rates", "Robustness to the learning rate", "对学习率的稳健性"),
        (
            "rates.lead",
            "Mean {metric} over {runs} tuning seeds. A ring marks the chosen rate, a cross a rate at which a run did "
            "not train. In a wide valley the choice of the rate matters less.",
            "{runs} 个调参种子的平均{metric}。圆环为选定的学习率，叉号表示有运行未训练成功。谷底越宽，学习率的选择影响越小。",
        ),
        (
            "edge",
            "The best rate was the first or last one tried for {names}: a better one may be outside the range.",
            "以下情形的最佳学习率位于所试范围的端点，范围之外可能有更好的：{names}。",
        ),
        ("edge.item", "{name} at batch size {size} ({rate})", "{name}，批量 {size}（{rate}）"),
        ("gaps", "Training mode against evaluation mode", "训练模式与推理模式"),
        (
            "gaps.lead",
            "The same weights on the same training samples: does the loss change when the model is switched to "
            "evaluation mode? Of the norms, only those with running statistics can cause a difference.",
            "相同的权重、相同的训练样本：切换到推理模式时损失是否改变？在各归一化方法中，只有使用滑动统计量的才会造成差异。",
        ),
        (
            "recalibrated",
            "{name}, batch size {size}: {metric} {before} with the running statistics of training, {after} with "
            "recalibrated statistics.",
            "{name}，批量 {size}：使用训练中的滑动统计量时{metric}为 {before}，重新计算统计量后为 {after}。",
        ),
        ("times", "Time of a training step", "每个训练步的时间"),
        ("times.lead", "Relative to no norm, round by round; the mark is the median.", "相对于不归一化，逐轮比较；标记为中位数。"),
        ("memory", "Memory of a training step", "每个训练步的内存"),
        (
            "memory.lead",
            "Bytes of the tensors that one step saves for its backward pass, without parameters.",
            "一步为反向传播保存的张量字节数，不含参数。",
        ),
        ("cubes", "Which values share one mean", "哪些元素共用一个均值"),
        (
            "cubes.lead",
            "The cube is one layer's output: batch, channels and positions. The coloured values share one mean and one "
            "variance.",
            "立方体是一层的输出：批次、通道与位置。着色的数值共用一个均值和一个方差。",
        ),
        (
            "cubes.count",
            "Below each is the number of these values at the last convolution of this network, where a mean is least certain.",
            "下方为本网络最后一个卷积层中这样的数值个数，那里的均值最不可靠。",
        ),
        ("cube.values", "{count} values at batch size {size}", "批量 {size} 时 {count} 个数值"),
        ("cube.weights", "acts on the weights, not on the values", "作用于权重，不看数值"),
        ("nothing", "Nothing has been measured yet.", "尚无测量结果。"),
        # Numbers
        ("numbers", "All numbers", "全部数据"),
        (
            "numbers.lead",
            "One row for each method and batch size, means over {seeds} seeds with their 95 % intervals. Runs that did "
            "not train are included in every mean.",
            "每种方法、每个批量一行，为 {seeds} 个种子的均值及 95 % 区间。未训练成功的运行也计入所有均值。",
        ),
        ("col.batch", "Batch", "批量"),
        ("col.verdict", "Standing", "位次"),
        ("col.steps", "Steps to {target:g}", "到 {target:g} 的步数"),
        ("col.gap", "Train/eval gap", "训练/推理差距"),
        ("col.time", "Time of a step", "每步时间"),
        ("col.ratio", "To no norm", "相对不归一化"),
        ("col.memory", "Memory", "内存"),
        ("col.rate", "Learning rate", "学习率"),
        ("col.untrained", "Not trained", "未训练成功"),
        ("pairs", "All {count} paired differences", "全部 {count} 个配对差值"),
        ("pairs.caption", "Differences of {metric}, second minus first, seed by seed", "{metric}之差（后者减前者），逐种子"),
        ("pairs.compared", "Compared", "比较"),
        ("pairs.difference", "Difference{unit}", "差值{unit}"),
        ("pairs.unit", " in points", "（百分点）"),
        ("pairs.p", "p, corrected", "p（校正后）"),
        ("pairs.relation", "The first is", "前者"),
        ("relation.better", "better", "更好"),
        ("relation.worse", "worse", "更差"),
        ("relation.equal", "equal", "相当"),
        ("relation.not resolved", "not resolved", "未定"),
        ("failures", "Runs that failed", "失败的运行"),
        (
            "failures.lead",
            "They are not included in any mean; the same command tries them again.",
            "它们不计入任何均值；同一命令会再次尝试。",
        ),
        ("failures.item", "{name}, batch size {size}, rate {rate}, seed {seed}", "{name}，批量 {size}，学习率 {rate}，种子 {seed}"),
        ("trace", "Traceback", "错误堆栈"),
        ("messages", "Runs that did not train", "未训练成功的运行"),
        ("messages.broke", "the loss was no longer finite", "损失不再是有限数"),
        ("messages.guess", "at the end no better than guessing", "结束时不优于随机猜测"),
        ("messages.lead", "They are included in every mean.", "它们计入所有均值。"),
        ("messages.where", "{name}, batch size {size}", "{name}，批量 {size}"),
        ("messages.count", "{count} of {runs} runs", "{runs} 次运行中的 {count} 次"),
        # How, provenance
        ("how", "How this was measured", "如何测量"),
        (
            "how.lead",
            "The design and the rules are part of normkit. They are fixed before a run and the same for every method.",
            "设计与规则是 normkit 的一部分，在运行之前固定，对每种方法都相同。",
        ),
        ("origin", "Provenance", "来源"),
        ("origin.again", "To repeat it", "重复全部研究"),
        (
            "origin.files",
            "Every number on this page, and every run, is in results.json in the same folder.",
            "本页的每个数字及其背后的每次运行都在同目录的 results.json 中。",
        ),
        ("origin.seeds", "seeds of results", "结果所用种子"),
        ("origin.tuning", "seeds of tuning", "调参所用种子"),
        ("fact.processor", "processor", "处理器"),
        ("fact.cores", "cores", "核心数"),
        ("fact.system", "system", "系统"),
        ("fact.python", "Python", "Python"),
        ("fact.torch", "PyTorch", "PyTorch"),
        ("fact.normkit", "normkit", "normkit"),
        ("fact.kernels", "kernels", "内核"),
        ("fact.workers", "workers", "工作进程"),
        ("fact.executor", "executor", "执行方式"),
        ("fact.device", "device", "设备"),
        ("fact.accelerator", "accelerator", "加速器"),
        ("value.processes", "processes", "本机进程"),
        ("value.ray", "Ray", "Ray"),
        # Verdicts
        ("finding.supported", "supported", "成立"),
        ("finding.contradicted", "contradicted", "不成立"),
        ("finding.not resolved", "not resolved", "未定"),
        ("finding.mixed", "mixed", "不一"),
        # Figures' words
        ("axis.step", "training step", "训练步"),
        ("axis.loss", "training loss", "训练损失"),
        ("axis.batch", "batch size", "批量"),
        ("axis.rate", "learning rate", "学习率"),
        ("axis.gap", "loss in evaluation − loss in training mode", "推理模式损失 − 训练模式损失"),
        ("axis.time", "time of a step, no norm = 1", "每步时间，不归一化 = 1"),
        ("axis.memory", "saved for the backward pass", "为反向传播保存"),
        ("axis.points", "effect in points", "效应（百分点）"),
        ("axis.log2 ratio", "ratio", "比值"),
        ("axis.log10 ratio", "ratio", "比值"),
        ("axis.nats", "effect in nats", "效应（奈特）"),
        ("axis.share", "effect", "效应"),
        ("target", "target", "目标"),
        ("alt.errors", "{metric} of each method at batch size {size}, seed by seed", "批量 {size} 时各方法的{metric}，逐种子"),
        ("alt.curves", "Training loss over the steps at batch size {size}", "批量 {size} 时的训练损失曲线"),
        ("alt.sizes", "{metric} against batch size", "{metric}随批量的变化"),
        ("alt.rates", "{metric} against learning rate at batch size {size}", "批量 {size} 时{metric}随学习率的变化"),
        ("alt.gaps", "Train/eval gap at batch size {size}", "批量 {size} 时训练与推理模式的损失之差"),
        ("alt.times", "Time of a step relative to no norm at batch size {size}", "批量 {size} 时每步时间，相对于不归一化"),
        ("alt.memory", "Memory of a step at batch size {size}", "批量 {size} 时每步的内存"),
        ("alt.strip", "{name}, batch size {size}: {value}, 95 % interval {spread}, {n} seeds",
         "{name}，批量 {size}：{value}，95 % 区间 {spread}，{n} 个种子"),
        ("alt.effect", "Effect {effect}, {finding}", "效应 {effect}，{finding}"),
        ("alt.variants", "The values of each variant, seed by seed: {question}", "各组结果，逐种子：{question}"),
        ("alt.variant.curves", "Training loss of each variant: {question}", "各组的训练损失：{question}"),
        ("alt.cube", "{name}: one mean and one variance per {statistics}", "{name}：每个统计域共用均值与方差（{statistics}）"),
    )
}  # fmt: skip
