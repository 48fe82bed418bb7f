"""The rows of the methods that were found by a search: a normalization and an activation in one formula."""

from __future__ import annotations

from normkit.catalog.row import Mark, Method, Paper, Statement, Text

_PAPER = Paper("Evolving Normalization-Activation Layers", "Liu et al.", 2020, "2004.02967")

ROWS = (
    Method(
        name="evo_norm_b0",
        title=Text("EvoNorm-B0", "EvoNorm-B0 归一化"),
        aliases=("EvoNormB0",),
        layers=("EvoNorm2dB0",),
        patterns=("[b] c [...]", "b c [...]"),
        statistics=Text("channel, and sample and channel", "每个通道；每个样本的每个通道"),
        state=Text("weight, bias, v and running variance", "weight、bias、v 与方差的滑动统计量"),
        formula="y = x / max(sqrt(batch_var + eps), v * x + sqrt(var + eps)) * weight + bias",
        principle=Text(
            "Each channel is divided by the deviation of the batch, or by a line through that of the sample where that "
            "is larger; this is norm and activation at once.",
            "每个通道除以批次标准差；若由样本自身标准差构成的线性式更大，则除以后者。归一化与激活合为一步。",
        ),
        where=Text(
            "CNNs: classification, detection, in place of batch norm and ReLU", "CNN：分类、检测，替换批归一化加 ReLU"
        ),
        strengths=(
            Statement("better than batch norm with ReLU in the paper", "论文结果优于批归一化加 ReLU", "EvoNormB0-1"),
            Statement("needs no activation", "不需要另外的激活函数"),
        ),
        weaknesses=(
            Statement("depends on the batch; evaluation needs the recorded variance", "依赖批次，推理需要记录的方差"),
            Statement("slower than batch norm: two variances of each value", "比批归一化慢：每个数值涉及两个方差"),
        ),
        paper=_PAPER,
        center=False,
        activates=True,
        mark=Mark("up", "#3d6b8f", "#8fc1e3"),
    ),
    Method(
        name="evo_norm_s0",
        title=Text("EvoNorm-S0", "EvoNorm-S0 归一化"),
        aliases=("EvoNormS0",),
        layers=("EvoNorm2dS0",),
        patterns=("b (g [c]) [...]",),
        statistics=Text("sample and group of channels", "每个样本的每组通道"),
        state=Text("weight, bias and v", "weight、bias 与 v"),
        formula="y = x * sigmoid(v * x) / sqrt(var + eps) * weight + bias",
        principle=Text(
            "A swish of learned slope is divided by the deviation of a group of channels; this is norm and activation "
            "at once.",
            "斜率可学习的 Swish 除以一组通道的标准差，归一化与激活合为一步。",
        ),
        where=Text("CNNs trained with small batches: detection, generation", "小批量训练的 CNN：检测、生成"),
        strengths=(
            Statement("independent of the batch", "与批次无关", "EvoNormS0-1"),
            Statement("needs no activation", "不需要另外的激活函数"),
        ),
        weaknesses=(
            Statement("sensitive to the number of groups, as group norm", "与组归一化一样对组数敏感"),
            Statement("more memory in training than group norm with ReLU", "训练时比组归一化加 ReLU 占用更多内存"),
        ),
        paper=_PAPER,
        center=False,
        activates=True,
        mark=Mark("down", "#7a5c00", "#d9b84a"),
    ),
)
