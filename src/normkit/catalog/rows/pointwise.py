"""The rows of the methods without moments: a bounded function of each value by itself."""

from __future__ import annotations

from normkit.catalog.row import Mark, Method, Paper, Statement, Text

_STATISTICS = Text("none: each value by itself", "无：逐个数值计算")

ROWS = (
    Method(
        name="dynamic_tanh",
        title=Text("Dynamic tanh", "动态 Tanh"),
        aliases=("DyT",),
        layers=("DynamicTanh",),
        patterns=(),
        statistics=_STATISTICS,
        state=Text("alpha (one slope), weight and bias", "斜率 alpha（一个标量）、weight 与 bias"),
        formula="y = tanh(alpha * x) * weight + bias",
        principle=Text(
            "Each value passes a hyperbolic tangent of learned slope, which bounds large values as a norm would.",
            "每个数值经过斜率可学习的双曲正切函数，像归一化那样压住过大的值，但不计算统计量。",
        ),
        where=Text("Transformers, in place of layer norm or RMS norm", "Transformer，替换层归一化或均方根归一化"),
        strengths=(
            Statement(
                "no statistics: independent of batch, token and channel",
                "不需要统计量：与批次、词元、通道都无关",
                "DyT-1",
            ),
            Statement(
                "matches layer norm in Transformers of the paper", "论文中的 Transformer 上与层归一化相当", "DyT-2"
            ),
        ),
        weaknesses=(
            Statement("the first slope must be tuned for large language models", "用于大语言模型时需要调斜率的初值"),
            Statement("poor in place of batch norm in classic CNNs", "在经典 CNN 中替换批归一化时效果较差"),
        ),
        paper=Paper("Transformers without Normalization", "Zhu et al.", 2025, "2503.10622"),
        acts_on="values",
        center=False,
        eps=0.0,
        replaces_norms=True,
        mark=Mark("ring", "#5c6f00", "#b5cf3f"),
    ),
    Method(
        name="dynamic_erf",
        title=Text("Dynamic erf", "动态 erf"),
        aliases=("Derf",),
        layers=("DynamicErf",),
        patterns=(),
        statistics=_STATISTICS,
        state=Text(
            "alpha and shift (one number each), weight and bias", "alpha 与 shift（各一个标量）、weight 与 bias"
        ),
        formula="y = erf(alpha * x + shift) * weight + bias",
        principle=Text(
            "Dynamic tanh with the error function, and with a learned shift before it.",
            "把动态 Tanh 的双曲正切换成误差函数，并在函数之前加一个可学习的平移。",
        ),
        where=Text("Transformers, in place of layer norm or RMS norm", "Transformer，替换层归一化或均方根归一化"),
        strengths=(
            Statement(
                "no statistics: independent of batch, token and channel", "不需要统计量：与批次、词元、通道都无关"
            ),
            Statement(
                "better than layer norm and dynamic tanh in the paper", "论文结果优于层归一化与动态 Tanh", "Derf-1"
            ),
        ),
        weaknesses=(
            Statement("one more scalar than dynamic tanh", "比动态 Tanh 多一个标量参数"),
            Statement("tested on Transformers and similar models only", "只在 Transformer 及类似模型上验证过"),
        ),
        paper=Paper("Stronger Normalization-Free Transformers", "Chen et al.", 2025, "2512.10938"),
        acts_on="values",
        center=False,
        eps=0.0,
        replaces_norms=True,
        mark=Mark("cross", "#9c5a00", "#f0a860"),
    ),
)
