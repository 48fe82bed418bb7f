"""The rows of the norms of weights."""

from __future__ import annotations

from normkit.catalog.row import Mark, Method, Paper, Statement, Text

ROWS = (
    Method(
        name="weight_norm",
        title=Text("Weight norm", "权重归一化"),
        aliases=("WN", "weight normalization"),
        layers=(),
        patterns=(),
        statistics=Text("none: it acts on the weight, not on the data", "无：作用于权重，而不是数据"),
        state=Text(
            "the length g and the direction v, in place of the weight",
            "长度 g 与方向 v，取代原来的权重",
        ),
        formula="w = g * v / ||v||",
        principle=Text(
            "The weight of a layer is split into a length and a direction, which are learned separately.",
            "把层的权重拆成长度与方向两部分，分别学习。",
        ),
        where=Text("CNNs, fully connected networks, generative models", "CNN、全连接网络、生成模型"),
        strengths=(
            Statement("faster convergence", "收敛更快", "WN-1", "steps"),
            Statement("more stability", "训练更稳定", "WN-1", "stead"),
        ),
        weaknesses=(
            Statement("the gain is not always significant", "提升不一定显著"),
            Statement("worse than batch norm on some tasks", "在某些任务上不如批归一化", "WN-2"),
        ),
        paper=Paper(
            "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
            "Salimans & Kingma",
            2016,
            "1602.07868",
        ),
        acts_on="weights",
        center=False,
        eps=0.0,
        mark=Mark("plus", "#c34a00", "#ff8d54"),
        compared=True,
    ),
    Method(
        name="weight_standardization",
        title=Text("Weight standardization", "权重标准化"),
        aliases=("WS",),
        layers=(),
        patterns=(),
        statistics=Text("none: it acts on the weight, not on the data", "无：作用于权重，而不是数据"),
        state=Text("the weight before it is standardized; an optional gain", "标准化之前的权重；可选增益 gain"),
        formula="w = (v - mean) / sqrt(var + eps) * gain",
        principle=Text(
            "Each filter of a weight is standardized whenever the weight is read.",
            "每次读取权重时，对其中每个滤波器做标准化。",
        ),
        where=Text("CNNs trained with small batches, together with group norm", "小批量训练的 CNN，与组归一化配合"),
        strengths=(
            Statement("lets group norm match batch norm on small batches", "使组归一化在小批量下达到批归一化的水平"),
        ),
        weaknesses=(Statement("immediately changes the function of a trained layer", "会立即改变已训练层的函数"),),
        paper=Paper(
            "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
            "Qiao et al.",
            2019,
            "1903.10520",
        ),
        acts_on="weights",
        mark=Mark("bar", "#8a3b3b", "#e08585"),
    ),
    Method(
        name="spectral_norm",
        title=Text("Spectral norm", "谱归一化"),
        aliases=("SN", "spectral normalization"),
        layers=(),
        patterns=(),
        statistics=Text("none: it acts on the weight, not on the data", "无：作用于权重，而不是数据"),
        state=Text(
            "the weight before it is divided, and its leading singular vectors",
            "归一化之前的权重，及其首个左、右奇异向量",
        ),
        formula="w = v / sigma(v)",
        principle=Text(
            "Each weight is divided by its largest singular value, which the power iteration follows.",
            "权重除以其最大奇异值，后者由幂迭代跟踪。",
        ),
        where=Text(
            "GANs, mostly discriminators; networks with a bounded Lipschitz constant",
            "GAN（主要是判别器）、有 Lipschitz 约束的网络",
        ),
        strengths=(
            Statement("bounds the Lipschitz constant of each layer", "限制每一层的 Lipschitz 常数", "SN-1"),
            Statement("stabilizes the training of GANs", "使 GAN 训练更稳定"),
        ),
        weaknesses=(
            Statement("limits what a layer can represent", "限制网络层的表达能力", "SN-2"),
            Statement("a norm after the layer cancels it", "其后若接归一化层，作用即被抵消"),
        ),
        paper=Paper("Spectral Normalization for Generative Adversarial Networks", "Miyato et al.", 2018, "1802.05957"),
        acts_on="weights",
        center=False,
        eps=1e-12,
        mark=Mark("ring", "#a0306a", "#f08abc"),
    ),
)
