"""The rows of the methods that standardize: batch, layer, instance, group and RMS norm."""

from __future__ import annotations

from normkit.catalog.row import Mark, Method, Paper, Statement, Text

_STANDARDIZE = "y = (x - mean) / sqrt(var + eps) * weight + bias"
_AFFINE = Text("weight and bias", "仿射参数 weight 与 bias")

ROWS = (
    Method(
        name="batch_norm",
        title=Text("Batch norm", "批归一化"),
        aliases=("BN", "batch normalization"),
        layers=("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
        patterns=("[b] c [...]",),
        statistics=Text("channel", "每个通道"),
        state=Text(
            "weight, bias, running mean and variance, number of batches processed",
            "weight、bias，均值与方差的滑动统计量，已处理的批次数",
        ),
        formula=_STANDARDIZE,
        principle=Text(
            "Each channel is standardized over the whole batch; evaluation uses the running statistics instead.",
            "每个通道在整个批次上做标准化；推理时改用训练中记录的滑动统计量。",
        ),
        where=Text("CNNs and MLPs: classification, detection", "CNN 与 MLP：分类、检测"),
        strengths=(
            Statement("faster convergence", "收敛更快", "BN-1"),
            Statement("allows a higher learning rate", "允许更大的学习率", "BN-2"),
            Statement("less internal covariate shift", "减轻内部协变量偏移"),
            Statement("batch noise regularizes mildly, like dropout", "批次噪声带来轻微的正则化，类似 dropout", "BN-3"),
            Statement("works well with large batches", "适合大批量"),
        ),
        weaknesses=(
            Statement("poor estimates on small batches", "小批量时统计量估计不准", "BN-4"),
            Statement("weaker on sequences (RNN, Transformer)", "不太适合序列模型（RNN、Transformer）", "BN-5"),
            Statement(
                "training and inference differ: inference needs recorded statistics",
                "训练与推理行为不一致：推理依赖事先记录的全局均值与方差",
                "BN-6",
            ),
        ),
        paper=Paper(
            "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
            "Ioffe & Szegedy",
            2015,
            "1502.03167",
        ),
        keeps_statistics=True,
        target="[b] c [...]",
        mark=Mark("square", "#0068a8", "#5db5ee"),
        compared=True,
    ),
    Method(
        name="layer_norm",
        title=Text("Layer norm", "层归一化"),
        aliases=("LN", "layer normalization"),
        layers=("LayerNorm",),
        patterns=("b [c ...]", "... [c]"),
        statistics=Text("sample (images) or token (sequences)", "每个样本（图像）或每个词元（序列）"),
        state=_AFFINE,
        formula=_STANDARDIZE,
        principle=Text(
            "All features of one sample, or of one token, are standardized together.",
            "把一个样本（或一个词元）的全部特征放在一起做标准化。",
        ),
        where=Text("RNNs, Transformers, sequences", "RNN、Transformer 等序列模型"),
        strengths=(
            Statement("independent of the batch", "与批次无关", "LN-1", "batch dependence"),
            Statement("suits small batches", "适合小批量", "LN-1", "flat"),
        ),
        weaknesses=(
            Statement("more computation", "计算量更大", "LN-2", "time"),
            Statement("may converge a little slower", "收敛可能略慢", "LN-2", "steps"),
        ),
        paper=Paper("Layer Normalization", "Ba, Kiros & Hinton", 2016, "1607.06450"),
        target="b [c ...]",
        mark=Mark("up", "#a96800", "#f0b03a"),
        compared=True,
    ),
    Method(
        name="instance_norm",
        title=Text("Instance norm", "实例归一化"),
        aliases=("IN", "instance normalization"),
        layers=("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
        patterns=("b c [...]",),
        statistics=Text("sample and channel", "每个样本的每个通道"),
        state=Text(
            "none by default; weight, bias and running statistics are optional",
            "默认没有；可选 weight、bias 与滑动统计量",
        ),
        formula=_STANDARDIZE,
        principle=Text(
            "Each channel of each sample is standardized over its own positions.",
            "每个样本的每个通道只在自己的空间位置上做标准化。",
        ),
        where=Text("image generation, style transfer", "图像生成、风格迁移"),
        strengths=(
            Statement(
                "acts on each image's style (contrast, brightness)",
                "直接作用于单幅图像的风格（对比度、亮度）",
                "IN-1",
                "contrast",
            ),
            Statement("suits generation", "适合生成任务", "IN-1", "stylizer"),
        ),
        weaknesses=(
            Statement("not for classification", "不适合分类", "IN-2", "ordinary"),
            Statement("sees no global information", "看不到全局信息", "IN-2", "classes by contrast"),
        ),
        paper=Paper(
            "Instance Normalization: The Missing Ingredient for Fast Stylization",
            "Ulyanov, Vedaldi & Lempitsky",
            2016,
            "1607.08022",
        ),
        keeps_statistics=True,
        target="b c [...]",
        mark=Mark("down", "#b0488a", "#e694c5"),
        compared=True,
    ),
    Method(
        name="group_norm",
        title=Text("Group norm", "组归一化"),
        aliases=("GN", "group normalization"),
        layers=("GroupNorm",),
        patterns=("b (g [c]) [...]",),
        statistics=Text("sample and group of channels", "每个样本的每组通道"),
        state=_AFFINE,
        formula=_STANDARDIZE,
        principle=Text(
            "The channels of each sample are split into groups, and each group is standardized separately.",
            "把每个样本的通道分成若干组，逐组做标准化。",
        ),
        where=Text("CNNs trained with small batches", "小批量训练的 CNN"),
        strengths=(
            Statement("suits small batches", "适合小批量", "GN-1"),
            Statement("independent of the batch", "与批次无关"),
        ),
        weaknesses=(
            Statement(
                "sensitive to kernel size and to the number of channels and groups",
                "对卷积核大小、通道数与组数敏感",
                "GN-2",
            ),
        ),
        paper=Paper("Group Normalization", "Wu & He", 2018, "1803.08494"),
        target="b (g [c]) [...]",
        mark=Mark("diamond", "#00805d", "#37c89d"),
        compared=True,
    ),
    Method(
        name="rms_norm",
        title=Text("RMS norm", "均方根归一化"),
        aliases=("RMS", "root mean square normalization"),
        layers=("RMSNorm",),
        patterns=("... [c]",),
        statistics=Text("token", "每个词元"),
        state=Text("weight", "仿射参数 weight"),
        formula="y = x / sqrt(mean(x²) + eps) * weight",
        principle=Text(
            "Layer norm without the mean: the features of one token are divided by their root mean square.",
            "去掉均值的层归一化：一个词元的特征除以它们的均方根。",
        ),
        where=Text("Transformers, especially large language models", "Transformer，尤其是大语言模型"),
        strengths=(
            Statement("one statistic fewer than layer norm", "比层归一化少算一个统计量"),
            Statement("as good as layer norm in Transformers", "在 Transformer 中与层归一化相当", "RMS-1"),
            Statement("independent of the batch", "与批次无关"),
        ),
        weaknesses=(Statement("does not remove a shift of the features", "不消除特征的整体平移"),),
        paper=Paper("Root Mean Square Layer Normalization", "Zhang & Sennrich", 2019, "1910.07467"),
        center=False,
        eps=None,
        target="b [c] ...",
        mark=Mark("cross", "#7a4fc0", "#b99af0"),
    ),
    Method(
        name="layer_norm2d",
        title=Text("Layer norm 2d", "逐像素层归一化"),
        aliases=("LN2d", "channels-first layer norm"),
        layers=("LayerNorm2d",),
        patterns=("b [c] ...",),
        statistics=Text("pixel", "每个像素"),
        state=_AFFINE,
        formula=_STANDARDIZE,
        principle=Text(
            "Layer norm for channels-first images: the channels of one pixel are standardized together.",
            "通道在前的图像上的层归一化：对每个像素的全部通道一起做标准化。",
        ),
        where=Text("CNNs that borrow from Transformers, such as ConvNeXt", "借鉴 Transformer 的 CNN，例如 ConvNeXt"),
        strengths=(
            Statement("independent of the batch", "与批次无关"),
            Statement("independent of the image size", "与图像大小无关"),
        ),
        weaknesses=(
            Statement("slow if implemented by permuting to channels last", "若靠把通道维转置到最后来实现，则速度较慢"),
        ),
        paper=Paper("A ConvNet for the 2020s", "Liu et al.", 2022, "2201.03545"),
        eps=1e-6,
        target="b [c] ...",
        mark=Mark("up", "#7d6a00", "#d8c84a"),
    ),
)
