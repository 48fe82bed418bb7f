"""The rows of the norms of responses: a channel is divided by its own size, or by that of its neighbours."""

from __future__ import annotations

from normkit.catalog.row import Method, Paper, Statement, Text

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
            Statement("independent of the batch", "与批次无关"),
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
        eps=1e-6,
    ),
)
