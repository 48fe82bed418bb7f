"""The sentences on measured harm in Chinese, by rule: filled in from the numbers in benchmarks/results/audit_harm.json."""

# ruff: noqa: E501  (a Chinese character counts double)

from __future__ import annotations

from collections.abc import Mapping

_DIGITS = "digits 数据集，5 个随机种子："

SENTENCES: Mapping[str, str] = {
    "NK101": "bias 的最大梯度为 {bias:.1g}，weight 的为 {weight:.1g}（float64）：前者只是舍入误差。",
    "NK102": "刚创建时，两个层归一化与一个的输出相差不超过 {difference:.1g}，而输出最大为 {largest:.1f}：第二个只是多余的计算。",
    "NK103": _DIGITS + "归一化在激活函数之后时，正确率为 {bad:.1f}%，在之前时为 {good:.1f}%；这里不认为它有害，该规则只是 info。",
    "NK104": "推理时，滑动方差与真实方差之比：前面有 dropout 0.5 时为 {ratio:.2f}，没有时为 {plain:.2f}（digits 的正确率分别为 {right:.1f}% 和 {right_plain:.1f}%）。",
    "NK105": "g 的最大梯度为 {g:.1g}，v 的为 {v:.1g}（float64，eps 1e-12）：g 无法学习。",
    "NK106": "前向之后执行 copy.deepcopy 会报错：“{raises}”。",
    "NK107": "均值为 0 和 5 的两个域共用一个批归一化：推理时，两者输出的均值为 {first:.2f} 和 {second:.2f}，训练时都是 0。",
    "NK108": "把一行像素整体调亮 5，输出只改变 {changed:.1g}：各行的亮度信息丢失。",
    "NK109": "反向传播之后，它的 weight 没有梯度；在 DistributedDataParallel 中，第二步报错：“{raises}”。",
    "NK110": "谱范数为 1 的线性层连同其后的批归一化，最多把输入放大 {gain:.1f} 倍；若训练时的输入只有十分之一大小，则为 {gain_small:.0f} 倍。",
    "NK111": "标准差相差 100 倍的特征，对时间做归一化后仍相差 {over_time:.0f} 倍，对特征做归一化后相差 {over_features:.2f} 倍；此外，长度不是 5 的序列会被拒绝。",
    "NK112": "推理时，滑动方差与真实方差之比：前面有 dropout 0.5 和池化时为 {ratio:.2f}，只有池化时为 {plain:.2f}（digits 的正确率分别为 {right:.1f}% 和 {right_plain:.1f}%）。",
    "NK201": "同一个样本的输出，当批次中另有 3 个元素时波动 {of_4:.2f} 个标准差，另有 63 个时波动 {of_64:.2f} 个。",
    "NK202": "GroupNorm(4, 4) 作用于 64 行随机数：最大的输出为 {output:g}，最大的梯度为 {gradient:g}。",
    "NK203": "GroupNorm(4, 8) 作用于 4096 行随机数：{share:.1f}% 的输出与 -1 或 1 相差不到 0.01。",
    "NK301": _DIGITS + "第二个归一化的统计量为 0 和 1 时，正确率为 {bad:.1f}%，用它自己的统计量时为 {good:.1f}%。两个归一化都如此时：{every:.1f}%。",
    "NK302": "digits 数据集，推理时没有做训练时的缩放：正确率为 {bad:.1f}%，做了缩放时为 {good:.1f}%；不缩放、但归一化使用批次的统计量时为 {batch:.1f}%。",
    "NK303": _DIGITS + "20 步之后，momentum 为 0.001 时正确率为 {bad:.1f}%，为 0.1 时是 {good:.1f}%。",
    "NK304": "一个一直为 0 的通道，一旦变为 0.1，输出就是 {output:.1f}。",
    "NK305": "70000 在 float16 中为 {half}；在 bfloat16 中的误差为 {lost:g}。",
    "NK306": "出现一个含无穷的批次之后，即使再有 1000 个正常批次，32 个输出中仍有 {bad} 个不是有限值。",
    "NK307": "float16 中的一行零：eps=1e-8 时，16 个输出中有 {nan[0]} 个为 NaN，eps 为 1e-5 时有 {nan[1]} 个。",
    "NK308": "每批 8 个数值时，滑动方差的误差在 momentum 为 0.99 时是 {error:.0f}%，为 0.1 时是 {error_good:.0f}%。"
    + _DIGITS + "每批 8 张图像，momentum 为 0.99 时正确率为 {bad:.1f}%，为 0.1 时是 {good:.1f}%。",
    "NK309": _DIGITS + "momentum 为 0 时正确率为 {bad:.1f}%，为 0.1 时是 {good:.1f}%。",
    "NK310": "标准差为 0.1 的输入，输出的标准差为 {std:.2f}。" + _DIGITS + "20 步之后，eps 为 0.8 时正确率为 {bad:.1f}%，momentum 为 0.8 时是 {good:.1f}%。",
    "NK311": "让训练好的网络再看 20 个批次，每批 8 个数字，优化器不更新参数：momentum 为 1 时，逐批的正确率在 {one[0]:.1f}% 与 {one[1]:.1f}% 之间波动，为 0.1 时在 {tenth[0]:.1f}% 与 {tenth[1]:.1f}% 之间。",
    "NK312": "训练 60 步，残差分支中的卷积改变了多少：其后为零的缩放被冻结时为 {frozen:.0%}，参与训练时为 {trained:.0%}。",
    "NK313": "一行全为 300 的数值，在 float32 中的输出为 {float32:.2f}，在 float16 中为 {float16:g}。",
    "NK401": "权重衰减为 0.05，200 步之后第一个归一化的平均缩放：受权重衰减时为 {decayed:.2f}，不受时为 {free:.2f}。",
    "NK402": "冻结所有参数，在训练模式下对另一些数据做 50 次前向，特征改变了 {change:.0%}。",
    "NK403": "32 个样本分到 8 个 rank：各 rank 减去的均值相差 {std:.2f} 个标准差，同步时相差 0。",
    "NK404": "换掉批次中的其他样本，一个样本的输出在批归一化下改变 {batch:.2f}，在组归一化下改变 {group:g}。",
    "NK405": "同样的 10 个位置，填充到 40 个：组归一化的输出改变 {change:.0%}。",
    "NK406": _DIGITS + "20 步之后，优化器漏掉归一化的参数时正确率为 {bad:.1f}%，包含全部参数时为 {good:.1f}%。",
    "NK407": "权重衰减为 0.05，200 步之后的平均长度：受权重衰减时为 {decayed:.2f}，不受时为 {free:.2f}（digits 的正确率分别为 {bad:.1f}% 和 {good:.1f}%）。",
    "NK408": "digits 数据集：每次推理两个时，正确率为 {two:.1f}%，一次推理全部时为 {all:.1f}%。",
    "NK409": _DIGITS + "暗的批次与亮的批次交替时，正确率为 {bad:.1f}%，每批中两者都有时为 {good:.1f}%。",
}  # fmt: skip
