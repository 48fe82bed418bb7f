"""The rows of the norms of responses: a channel is divided by its own size, or by that of its neighbours."""

from __future__ import annotations

from normkit.catalog.row import Mark, Method, Paper, Statement, Text

_AFFINE = Text("weight and bias", "仿射参数 weight 与 bias")

ROWS = (
    Method(
        name="local_response_norm",
        title=Text("Local response norm", "局部响应归一化"),
        aliases=("LRN", "local response normalization"),
        layers=("LocalResponseNorm",),
        patterns=(),
        statistics=Text(
            "none: a sliding window of neighbouring channels, not a region",
            "无：邻近通道上的滑动窗口，不是统计域",
        ),
        state=Text("none", "没有"),
        formula="y = x / (k + alpha * mean(x² over the window)) ** beta",
        principle=Text(
            "Each value is divided by a power of the energy of its neighbouring channels at the same position.",
            "每个值除以同一位置上邻近通道能量的幂。",
        ),
        where=Text("early CNNs such as AlexNet", "早期 CNN，例如 AlexNet"),
        strengths=(
            Statement(
                "strong responses suppress their neighbours (lateral inhibition)", "强响应抑制邻近通道（侧抑制）"
            ),
        ),
        weaknesses=(
            Statement("costs memory and time; batch norm has replaced it", "占用内存和时间，已被批归一化取代"),
        ),
        paper=Paper(
            "ImageNet Classification with Deep Convolutional Neural Networks",
            "Krizhevsky, Sutskever & Hinton",
            2012,
            None,
        ),
        center=False,
        eps=0.0,
    ),
    Method(
        name="filter_response_norm",
        title=Text("Filter response norm", "滤波器响应归一化"),
        aliases=("FRN", "filter response normalization"),
        layers=("FilterResponseNorm2d",),
        patterns=("b c [...]",),
        statistics=Text("sample and channel", "每个样本的每个通道"),
        state=Text("weight, bias and threshold", "weight、bias 与阈值 threshold"),
        formula="y = max(x / sqrt(mean(x²) + eps) * weight + bias, threshold)",
        principle=Text(
            "Each channel of each sample is divided by the root mean square of its positions; a learned threshold "
            "replaces the activation.",
            "每个样本的每个通道除以其各位置的均方根，再由可学习的阈值代替激活函数。",
        ),
        where=Text("CNNs trained with small batches: classification, detection", "小批量训练的 CNN：分类、检测"),
        strengths=(
            Statement("independent of the batch", "与批次无关", "FRN-1"),
            Statement("no other channel or sample is needed", "不需要其他通道或样本"),
        ),
        weaknesses=(
            Statement("a single position keeps only its sign", "只有一个位置时仅保留符号"),
            Statement("the paper needs a warm-up of the learning rate", "论文中需要学习率预热"),
        ),
        paper=Paper(
            "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep Neural Networks",
            "Singh & Krishnan",
            2020,
            "1911.09737",
        ),
        center=False,
        activates=True,
        eps=1e-6,
        mark=Mark("diamond", "#8c3f5f", "#e391b3"),
    ),
    Method(
        name="global_response_norm",
        title=Text("Global response norm", "全局响应归一化"),
        aliases=("GRN", "global response normalization"),
        layers=("GlobalResponseNorm",),
        patterns=("b c [...]",),
        statistics=Text("sample and channel, relative to the other channels", "每个样本的每个通道，相对于其他通道"),
        state=_AFFINE,
        formula="y = x + x * ||x|| / (mean(||x||) + eps) * weight + bias",
        principle=Text(
            "Each channel of a sample is scaled by its length over all positions, relative to the mean length of the "
            "channels, and added to the input.",
            "每个样本的每个通道乘以它在全部位置上的长度与各通道平均长度之比，再加回输入。",
        ),
        where=Text("ConvNeXt V2, in the perceptron of each block", "ConvNeXt V2，每个块的感知机内部"),
        strengths=(
            Statement(
                "channels compete, so that fewer of them are alike or dead",
                "通道相互竞争，减少雷同或失活的通道",
                "GRN-1",
            ),
            Statement("independent of the batch, and the identity at first", "与批次无关，初始时是恒等映射"),
        ),
        weaknesses=(
            Statement(
                "does not bound the size of values, so that a norm is needed as well",
                "不限制数值大小，仍需配合其他归一化",
            ),
            Statement("the whole image must be known: no streaming", "需要整幅图像，无法流式计算"),
        ),
        paper=Paper(
            "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", "Woo et al.", 2023, "2301.00808"
        ),
        center=False,
        eps=1e-6,
        mark=Mark("square", "#1f7a4d", "#6fd3a0"),
    ),
    Method(
        name="scale_norm",
        title=Text("Scale norm", "尺度归一化"),
        aliases=("scale normalization",),
        layers=("ScaleNorm",),
        patterns=("... [c]",),
        statistics=Text("token", "每个词元"),
        state=Text("weight (one number)", "仿射参数 weight（一个标量）"),
        formula="y = x / max(||x||, eps) * weight",
        principle=Text(
            "The features of one token are divided by their Euclidean length, and multiplied by one learned number.",
            "一个词元的特征除以它们的欧氏长度，再乘以一个可学习的标量。",
        ),
        where=Text("Transformers for translation with few data", "低资源翻译的 Transformer"),
        strengths=(
            Statement("one parameter in all", "总共只有一个参数", "ScaleNorm-1"),
            Statement("independent of the batch", "与批次无关"),
        ),
        weaknesses=(
            Statement("features have no weights of their own", "各特征没有各自的缩放系数"),
            Statement("does not remove a shift of the features", "不消除特征的整体平移"),
        ),
        paper=Paper(
            "Transformers without Tears: Improving the Normalization of Self-Attention",
            "Nguyen & Salazar",
            2019,
            "1910.05895",
        ),
        center=False,
        replaces_norms=True,
        mark=Mark("bar", "#7a4f6d", "#d4a3c6"),
    ),
)
