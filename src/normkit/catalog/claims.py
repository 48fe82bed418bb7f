"""The claims about normalization that a measurement can test."""

from __future__ import annotations

from normkit.catalog.row import Claim, Paper, Text

ALL = (
    Claim(
        "BN-1",
        Text("batch norm speeds up convergence", "批归一化加快收敛"),
        Text(
            "steps to a target loss, with batch norm and without any norm, each at its own best learning rate",
            "各自取最佳学习率，比较使用批归一化与不使用归一化时达到目标损失所需的步数",
        ),
    ),
    Claim(
        "BN-2",
        Text("batch norm allows a higher learning rate", "批归一化允许更大的学习率"),
        Text("the largest learning rate that still trains", "仍能正常训练的最大学习率"),
    ),
    Claim(
        "BN-3",
        Text(
            "the batch noise of batch norm regularizes mildly, like dropout",
            "批归一化的批次噪声带来类似 dropout 的轻微正则化",
        ),
        Text(
            "gap between training and test error against batch size, without that noise, and with dropout",
            "训练错误率与测试错误率之差：随批量大小的变化，并与去除噪声、使用 dropout 的情形比较",
        ),
    ),
    Claim(
        "BN-4",
        Text("batch norm is poor on small batches", "批归一化在小批量时效果差"),
        Text("test error against batch size, compared with group norm", "测试错误率随批量大小的变化，与组归一化对照"),
    ),
    Claim(
        "BN-5",
        Text("batch norm is weaker on sequences", "批归一化不太适合序列任务"),
        Text(
            "a character language model and a recurrent classifier, compared with layer norm",
            "字符级语言模型与循环分类器，与层归一化对照",
        ),
    ),
    Claim(
        "BN-6",
        Text("batch norm differs between training and inference", "批归一化在训练与推理时行为不同"),
        Text(
            "the same inputs in training mode and in evaluation mode, with and without new running statistics",
            "同样的输入分别在训练模式与推理模式下的结果，以及重新校准滑动统计量前后的差别",
        ),
    ),
    Claim(
        "LN-1",
        Text("layer norm does not depend on the batch", "层归一化与批次无关"),
        Text(
            "one sample alone against the same sample inside any batch; error against batch size",
            "同一样本单独输入与放入任意批次时的输出；错误率随批量大小的变化",
        ),
    ),
    Claim(
        "LN-2",
        Text(
            "layer norm costs more than batch norm on CNNs and may converge more slowly",
            "在 CNN 上层归一化比批归一化开销大，收敛可能更慢",
        ),
        Text("time per step, and steps to a target loss", "每步耗时，以及达到目标损失所需的步数"),
    ),
    Claim(
        "RMS-1",
        Text(
            "RMS norm trains a Transformer as layer norm does: the mean need not be subtracted",
            "均方根归一化训练 Transformer 的效果等同于层归一化：不必减去均值",
        ),
        Text(
            "test loss of a character Transformer, test error on padded sequences; two optimizers, three widths",
            "字符级 Transformer 的测试损失与带填充序列上的测试错误率：两种优化器、三种宽度",
        ),
        (Paper("Root Mean Square Layer Normalization", "Zhang & Sennrich", 2019, "1910.07467"),),
    ),
    Claim(
        "QK-1",
        Text(
            "norms of queries and keys widen the range of learning rates of a Transformer",
            "对查询与键做归一化使 Transformer 可用的学习率范围更宽",
        ),
        Text(
            "learning-rate sensitivity of a character Transformer and its range of good rates, with and without them",
            "字符级 Transformer 的学习率敏感度，以及接近最佳的学习率范围：做与不做查询、键的归一化",
        ),
        (
            Paper("Query-Key Normalization for Transformers", "Henry et al.", 2020, "2010.04245"),
            Paper(
                "Small-scale proxies for large-scale Transformer training instabilities",
                "Wortsman et al.",
                2023,
                "2309.14322",
            ),
        ),
    ),
    Claim(
        "IN-1",
        Text(
            "instance norm removes the style of an image (contrast, brightness) and suits style transfer",
            "实例归一化去除图像的风格（对比度、亮度），适合风格迁移",
        ),
        Text(
            "how much the output changes with contrast and brightness; loss of a stylizer, compared with batch norm",
            "改变对比度与亮度时输出的变化；风格迁移的损失，与批归一化对照",
        ),
    ),
    Claim(
        "IN-2",
        Text("instance norm is unsuitable for classification", "实例归一化不适合分类"),
        Text(
            "a task whose classes differ in contrast, and an ordinary one",
            "类别只在对比度上不同的任务，以及普通分类任务",
        ),
    ),
    Claim(
        "GN-1",
        Text("group norm still works well at small batches", "组归一化在小批量下依然有效"),
        Text("test error against batch size, compared with batch norm", "测试错误率随批量大小的变化，与批归一化对照"),
    ),
    Claim(
        "GN-2",
        Text(
            "group norm is sensitive to the number of groups and channels",
            "组归一化对组数与通道数敏感",
        ),
        Text("error over numbers of groups and channels", "不同组数与通道数下的错误率"),
    ),
    Claim(
        "WN-1",
        Text("weight norm speeds up convergence and makes training more stable", "权重归一化加快收敛，使训练更稳定"),
        Text(
            "steps to a target loss, with weight norm and with plain weights",
            "使用权重归一化与使用普通权重时达到目标损失所需的步数",
        ),
    ),
    Claim(
        "WN-2",
        Text(
            "the gain of weight norm is not always significant, and batch norm is better on some tasks",
            "权重归一化的提升不一定显著，在某些任务上不如批归一化",
        ),
        Text("the same runs, with intervals, compared with batch norm", "同样的实验给出区间，与批归一化对照"),
    ),
    Claim(
        "FRN-1",
        Text("filter response norm does not depend on the batch", "滤波器响应归一化与批次无关"),
        Text(
            "one image among different other images; error at batch 2 and at batch 16, compared with batch norm",
            "同一张图像与不同图像同批时的输出；批量 2 与批量 16 的错误率，与批归一化对照",
        ),
    ),
    Claim(
        "GRN-1",
        Text(
            "global response norm makes the channels of a network less alike",
            "全局响应归一化使网络各通道的特征更不雷同",
        ),
        Text(
            "mean cosine distance of the channels of an image, with and without it beside a layer norm",
            "同一图像各通道之间的平均余弦距离：在层归一化之外加与不加它",
        ),
    ),
    Claim(
        "ScaleNorm-1",
        Text(
            "scale norm trains a Transformer as well as layer norm, with one parameter",
            "尺度归一化只用一个参数，训练 Transformer 的效果与层归一化相当",
        ),
        Text("test loss of a character Transformer", "字符级 Transformer 的测试损失"),
    ),
    Claim(
        "EvoNormB0-1",
        Text("EvoNorm-B0 is better than batch norm with ReLU", "EvoNorm-B0 优于批归一化加 ReLU"),
        Text("test error of a convolutional network at batch 16", "卷积网络在批量 16 时的测试错误率"),
    ),
    Claim(
        "EvoNormS0-1",
        Text("EvoNorm-S0 does not depend on the batch", "EvoNorm-S0 与批次无关"),
        Text(
            "one image among different other images; error at batch 2 and at batch 16, compared with batch norm",
            "同一张图像与不同图像同批时的输出；批量 2 与批量 16 的错误率，与批归一化对照",
        ),
    ),
    Claim(
        "DyT-1",
        Text(
            "dynamic tanh computes no statistics: no value affects the output of another",
            "动态 Tanh 不计算统计量：任何数值都不影响其他数值的输出",
        ),
        Text(
            "how much a norm's outputs for other features change when one feature of a token changes",
            "改变词元的一个特征后，归一化层对其余特征的输出变化多少",
        ),
    ),
    Claim(
        "DyT-2",
        Text(
            "dynamic tanh trains a Transformer as well as layer norm", "动态 Tanh 训练 Transformer 的效果与层归一化相当"
        ),
        Text(
            "test loss of a character Transformer, test error on padded sequences; two optimizers, three widths",
            "字符级 Transformer 的测试损失与带填充序列上的测试错误率：两种优化器、三种宽度",
        ),
        (Paper("Transformers without Normalization", "Zhu et al.", 2025, "2503.10622"),),
    ),
    Claim(
        "Derf-1",
        Text(
            "dynamic erf trains a Transformer better than layer norm and dynamic tanh",
            "动态 erf 训练 Transformer 的效果优于层归一化与动态 Tanh",
        ),
        Text("test loss of a character Transformer", "字符级 Transformer 的测试损失"),
    ),
    Claim(
        "SwitchableNorm-1",
        Text(
            "switchable norm gives batch statistics a smaller share at small batches",
            "批量小时，可切换归一化分给批次统计量的权重更小",
        ),
        Text("learned share of batch statistics at batch 2 and at batch 16", "批量 2 与批量 16 时学到的批次统计量权重"),
    ),
    Claim(
        "PowerNorm-1",
        Text(
            "power norm suits a Transformer better than batch norm, because the statistics of text vary",
            "文本的统计量波动大，因此幂归一化比批归一化更适合 Transformer",
        ),
        Text("test loss of a character Transformer", "字符级 Transformer 的测试损失"),
    ),
    Claim(
        "PowerNorm-2",
        Text("power norm is the same in training and in inference", "幂归一化在训练与推理时行为一致"),
        Text(
            "loss in evaluation mode against loss in training mode, compared with batch norm",
            "推理模式与训练模式的损失之差，与批归一化对照",
        ),
    ),
    Claim(
        "IterNorm-1",
        Text("iterative norm decorrelates the channels of a group", "迭代归一化消除组内通道之间的相关性"),
        Text(
            "condition number of the covariance of its outputs, compared with batch norm",
            "输出协方差矩阵的条件数，与批归一化对照",
        ),
    ),
    Claim(
        "IterNorm-2",
        Text("iterative norm converges faster than batch norm", "迭代归一化比批归一化收敛更快"),
        Text("steps to a target loss, each at its own best learning rate", "各取最佳学习率，达到目标损失所需的步数"),
    ),
    Claim(
        "RevIN-1",
        Text(
            "reversible instance norm makes a forecast robust to a shift of level and scale",
            "可逆实例归一化使预测不受水平与尺度漂移的影响",
        ),
        Text(
            "error on series with another mean and scale than in training, and on series without a shift",
            "在均值与尺度不同于训练数据的序列上、以及在没有漂移的序列上的预测误差",
        ),
    ),
    Claim(
        "RevIN-2",
        Text(
            "reversible instance norm hides the level of a series from the model",
            "可逆实例归一化使模型看不到序列本身的水平",
        ),
        Text(
            "error on series that return to a fixed level, which a forecast must know",
            "在会回归固定水平的序列上的预测误差：这种预测必须知道水平",
        ),
    ),
    Claim(
        "SN-1",
        Text("spectral norm bounds the Lipschitz constant of each layer", "谱归一化限制每一层的 Lipschitz 常数"),
        Text(
            "largest singular value of the trained weights, and largest slope of the network",
            "训练后权重的最大奇异值，以及网络的最大斜率",
        ),
    ),
    Claim(
        "SN-2",
        Text("spectral norm limits what a layer can represent", "谱归一化限制网络层的表达能力"),
        Text("training error with and without it", "使用与不使用时的训练错误率"),
    ),
    Claim(
        "P-1",
        Text(
            "the usual place of a norm is after the convolution or linear layer and before the activation",
            "归一化通常放在卷积层或线性层之后、激活函数之前",
        ),
        Text(
            "the same network with the norm before the activation and after it",
            "同一网络把归一化分别放在激活函数之前与之后",
        ),
    ),
    Claim(
        "P-2",
        Text(
            "a Transformer with pre-norm trains without a warm-up of the learning rate, which post-norm needs",
            "前置归一化的 Transformer 不需要学习率预热，后置归一化则需要",
        ),
        Text(
            "test loss with pre-norm and with post-norm, with and without warm-up, each at its own best learning rate",
            "前置与后置归一化、有无预热时的测试损失，各取最佳学习率",
        ),
        (Paper("On Layer Normalization in the Transformer Architecture", "Xiong et al.", 2020, "2002.04745"),),
    ),
)
