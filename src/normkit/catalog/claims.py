"""The claims about normalization that a measurement can test."""

from __future__ import annotations

from normkit.catalog.row import Claim, Text

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
            "训练误差与测试误差之差：随批量大小的变化，并与去除噪声、使用 dropout 的情形比较",
        ),
    ),
    Claim(
        "BN-4",
        Text("batch norm is poor on small batches", "批归一化在小批量时效果差"),
        Text("test error against batch size, compared with group norm", "测试误差随批量大小的变化，与组归一化对照"),
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
            "同一样本单独输入与放入任意批次时的输出；误差随批量大小的变化",
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
        Text("test error against batch size, compared with batch norm", "测试误差随批量大小的变化，与批归一化对照"),
    ),
    Claim(
        "GN-2",
        Text(
            "group norm is sensitive to the number of groups and channels",
            "组归一化对组数与通道数敏感",
        ),
        Text("error over numbers of groups and channels", "不同组数与通道数下的误差"),
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
)
