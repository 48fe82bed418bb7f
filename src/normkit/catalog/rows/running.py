"""The rows of the methods that mix the statistics of others, keep other ones, or take them back."""

from __future__ import annotations

from normkit.catalog.row import Mark, Method, Paper, Statement, Text

_STANDARDIZE = "y = (x - mean) / sqrt(var + eps) * weight + bias"

ROWS = (
    Method(
        name="switchable_norm",
        title=Text("Switchable norm", "可切换归一化"),
        aliases=("switchable normalization",),
        layers=("SwitchableNorm",),
        patterns=("b c [...]", "b [c ...]", "[b] c [...]"),
        statistics=Text(
            "a mixture: sample and channel, sample, channel over the batch",
            "三者加权：每个样本的每个通道、每个样本、整个批次上的每个通道",
        ),
        state=Text(
            "weight, bias, the shares of three means and three variances, running mean and variance, "
            "number of batches processed",
            "weight、bias，三种均值与三种方差各自的权重，均值与方差的滑动统计量，已处理的批次数",
        ),
        formula=_STANDARDIZE,
        principle=Text(
            "Mean and variance are learned mixtures of those of instance, layer and batch norm.",
            "均值与方差都是实例归一化、层归一化、批归一化三者统计量的加权和，权重可学习。",
        ),
        where=Text("CNNs: classification, detection, segmentation", "CNN：分类、检测、分割"),
        strengths=(
            Statement("each layer learns which norm suits it", "每一层自行学习适合的归一化方式"),
            Statement(
                "leans less on the batch where batches are small",
                "批量小时自动减少对批次统计量的依赖",
                "SwitchableNorm-1",
            ),
        ),
        weaknesses=(
            Statement("three sets of statistics cost more time", "要算三套统计量，耗时更多"),
            Statement(
                "training and inference differ by the share of batch norm", "批归一化所占的部分使训练与推理行为不一致"
            ),
        ),
        paper=Paper(
            "Differentiable Learning-to-Normalize via Switchable Normalization", "Luo et al.", 2018, "1806.10779"
        ),
        replaces_norms=True,
        mark=Mark("square", "#5a5aa8", "#a9a9ee"),
    ),
    Method(
        name="power_norm",
        title=Text("Power norm", "幂归一化"),
        aliases=("power normalization",),
        layers=("PowerNorm",),
        patterns=("[b] c [...]",),
        statistics=Text("channel", "每个通道"),
        state=Text(
            "weight, bias, running quadratic mean, running statistic of its gradient, number of batches processed",
            "weight、bias，二次均值的滑动统计量及其梯度的滑动统计量，已处理的批次数",
        ),
        formula="y = x / sqrt(mean(x²) + eps) * weight + bias",
        principle=Text(
            "Each channel is divided by the root of a running quadratic mean, in training too after a warm-up; the "
            "gradient of that mean is approximated.",
            "每个通道除以二次均值滑动统计量的平方根；预热之后训练时也使用滑动统计量，其梯度用近似值代替。",
        ),
        where=Text("Transformers in place of layer norm: translation", "Transformer，代替层归一化：机器翻译"),
        strengths=(
            Statement(
                "training and inference use the same statistics after the warm-up",
                "预热之后训练与推理使用同样的统计量",
                "PowerNorm-2",
            ),
            Statement(
                "suits batches whose statistics vary much, as those of text",
                "适合批次间统计量波动大的数据，如文本",
                "PowerNorm-1",
            ),
        ),
        weaknesses=(
            Statement("the gradient is approximate", "梯度是近似的"),
            Statement("needs a warm-up, and updates state in the backward pass", "需要预热，反向传播时还要更新状态"),
        ),
        paper=Paper("PowerNorm: Rethinking Batch Normalization in Transformers", "Shen et al.", 2020, "2003.07845"),
        center=False,
        replaces_norms=True,
        mark=Mark("plus", "#1f7a8c", "#7fd0e0"),
    ),
    Method(
        name="iter_norm",
        title=Text("Iterative norm", "迭代归一化"),
        aliases=("iterative normalization", "iterative whitening"),
        layers=("IterNorm",),
        patterns=("[b] (g [c]) [...]",),
        statistics=Text(
            "channel (mean) and group of channels (covariance)", "每个通道（均值）与每组通道（协方差矩阵）"
        ),
        state=Text(
            "weight, bias, running mean and whitening matrix, number of batches processed",
            "weight、bias，均值与白化矩阵的滑动统计量，已处理的批次数",
        ),
        formula="y = whitening @ (x - mean) * weight + bias",
        principle=Text(
            "The channels of a group are decorrelated over the batch: Newton's iterations approximate the inverse "
            "square root of their covariance matrix.",
            "在整个批次上对一组通道去相关：用牛顿迭代逼近其协方差矩阵的逆平方根。",
        ),
        where=Text("CNNs: classification; GANs", "CNN 分类、GAN"),
        strengths=(
            Statement("decorrelates the channels of a group", "消除组内通道之间的相关性", "IterNorm-1"),
            Statement("converges faster than batch norm in the paper", "论文中比批归一化收敛更快", "IterNorm-2"),
        ),
        weaknesses=(
            Statement("a wide group needs a large batch", "组内通道多时需要大批量"),
            Statement("more computation than batch norm", "计算量大于批归一化"),
            Statement("training and inference differ, as those of batch norm", "与批归一化一样，训练与推理行为不一致"),
        ),
        paper=Paper(
            "Iterative Normalization: Beyond Standardization towards Efficient Whitening",
            "Huang et al.",
            2019,
            "1904.03441",
        ),
        replaces_norms=True,
        mark=Mark("diamond", "#6d4c41", "#c9a797"),
    ),
    Method(
        name="revin",
        title=Text("Reversible instance norm", "可逆实例归一化"),
        aliases=("reversible instance normalization",),
        layers=("RevIN",),
        patterns=("b [...] c",),
        statistics=Text("series of a window", "每个时间窗口的每条序列"),
        state=Text("weight and bias; the statistics of the last window", "weight 与 bias；最近一个窗口的统计量"),
        formula=_STANDARDIZE,
        principle=Text(
            "Each series of a window is standardized before a model, and the forecast is then taken back to its scale.",
            "窗口内每条序列先标准化再送入模型，预测结果再用同一组统计量还原到原来的尺度。",
        ),
        where=Text("time series: forecasting", "时间序列预测"),
        strengths=(
            Statement(
                "removes a shift of level and scale between windows", "消除不同窗口之间水平与尺度的漂移", "RevIN-1"
            ),
            Statement("fits around any forecasting model", "可套在任意预测模型的外面"),
        ),
        weaknesses=(
            Statement("hides the level of a series from the model", "模型看不到序列本身的水平", "RevIN-2"),
            Statement("a change of scale inside a window remains", "窗口内部的尺度变化仍然存在"),
        ),
        paper=Paper(
            "Reversible Instance Normalization for Accurate Time-Series Forecasting against Distribution Shift",
            "Kim et al.",
            2022,
            None,
        ),
        mark=Mark("bar", "#2f5f9e", "#86b4ee"),
    ),
)
