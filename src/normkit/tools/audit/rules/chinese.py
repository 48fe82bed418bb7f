"""The texts of the rules in Chinese, by code: a rule without an entry fails a test."""

# ruff: noqa: E501  (a Chinese character counts double)

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Words(NamedTuple):
    """Title, reason, fix and source of a rule in one language; an empty source is that of the English rule."""

    title: str
    why: str
    fix: str
    source: str = ""


CHINESE: Mapping[str, Words] = {
    "NK101": Words(
        "归一化会减去均值，其前面的偏置多余",
        "训练时，归一化减去每个通道的均值，偏置随之抵消：它的梯度为零，却白白占用内存、时间和优化器状态。",
        "训练之前，建层时用 bias=False。已训练的模型，偏置已经计入滑动均值：若有滑动均值，先执行 "
        "norm.running_mean -= layer.bias，再执行 layer.bias = None；推理的输出不变。",
        "Ioffe & Szegedy 2015, arXiv:1502.03167，第 3.2 节",
    ),
    "NK102": Words(
        "两个归一化层相连",
        "第二个归一化层把第一个的输出重新归一化：第一个的缩放又被除掉，所花的时间也白费。",
        "只保留其中一个。去掉第一个时，除非它的 weight 和 bias 仍是初始值，否则输出会改变；需重新训练。",
        "Xiong et al. 2020, arXiv:2002.04745（归一化在块中的位置）",
    ),
    "NK103": Words(
        "归一化在激活函数之后",
        "论文中的次序是：层、归一化、激活函数。激活函数之后的数值偏向一侧，归一化的输出也不再在零处截断。有些网络有意这样做。",
        "训练之前，把归一化放到层与激活函数之间，或者比较两种次序。改动已训练的模型，输出会改变：需重新训练。",
        "Ioffe & Szegedy 2015, arXiv:1502.03167，第 3.2 节",
    ),
    "NK104": Words(
        "批归一化之前有 dropout",
        "dropout 在训练时增大方差，推理时不会，因此滑动方差比推理时输入的方差大。",
        "把 dropout 移到最后一个批归一化之后，再继续训练或重新校准，因为这时的滑动方差仍来自带 dropout 的训练。"
        "也可以改用没有滑动统计量的归一化。",
    ),
    "NK105": Words(
        "权重归一化之后又有归一化",
        "后面的归一化除以每个输出通道的尺度，因此权重归一化的 g 不起任何作用，也得不到梯度。",
        "去掉权重归一化，权重保持不变。normkit 的用 normkit.remove_weight_norm(layer)；torch 的用 "
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')。",
        "Salimans & Kingma 2016, arXiv:1602.07868（提出用权重归一化代替批归一化）",
    ),
    "NK106": Words(
        "使用已弃用的 torch.nn.utils.weight_norm",
        "它把权重存为普通属性，由 hook 反复改写：前向之后 deepcopy 会失败，而且该函数已标记为弃用。",
        "先执行 torch.nn.utils.remove_weight_norm(layer)，再用 normkit.weight_norm(layer) 或 "
        "torch.nn.utils.parametrizations.weight_norm(layer)：权重不变。两者都能读取旧的 state dict。",
        "torch.nn.utils.weight_norm 的文档；pytorch/pytorch#102981",
    ),
    "NK107": Words(
        "一次前向中，多个输入共用一个批归一化",
        "训练时，每次调用按自己的批次归一化；推理时，各个输入共用同一组混合的统计量。若各输入的分布不同，"
        "训练与推理计算的就是不同的函数。",
        "为每次调用各设一个批归一化，先用 copy.deepcopy 复制现有的这个，再继续训练。或者把各输入合并成一个批次，"
        "或改用组归一化；这时输出会改变。",
    ),
    "NK108": Words(
        "层归一化作用在宽度上，而不是通道上",
        "输入的通道在前，最后一维是一行像素：每一行单独归一化，weight 和 bias 对应的是列。",
        "用 normkit.LayerNorm2d(channels)。输出会改变：需重新训练。",
        "huggingface/pytorch-image-models#1340；应该用的归一化见 Liu et al. 2022, arXiv:2201.03545",
    ),
    "NK109": Words(
        "归一化的输出没有被使用",
        "它占用时间和内存，参数得不到梯度；在 DistributedDataParallel 中，未使用的参数会使训练中断。"
        "多半是笔误：把 `x = self.norm(x)` 写成了 `self.norm(x)`。",
        "使用它的输出，或删去这个归一化。",
        "DistributedDataParallel 的文档：find_unused_parameters",
    ),
    "NK110": Words(
        "谱归一化之后又有归一化",
        "谱归一化限制一层最多能把输入放大多少；后面的归一化无论输入如何都会除以其尺度，这一限制便失去作用。"
        "有些生成器（BigGAN）有意这样做。",
        "在推理模式下去掉该层的谱归一化，这时权重保持不变："
        "torch.nn.utils.parametrize.remove_parametrizations(layer.eval(), 'weight')。"
        "必须满足 Lipschitz 条件的判别器则保留谱归一化，去掉另一个归一化：输出会改变，需重新训练。",
        "Miyato et al. 2018, arXiv:1802.05957，第 3 节（与其他归一化的比较）",
    ),
    "NK111": Words(
        "归一化作用在时间上，而不是特征上",
        "每个位置有各自的 weight 和统计量，或与后面的位置一起归一化：该层依赖序列长度，混合不同位置，"
        "而各特征的尺度保持原样。",
        "在交换维度之前，对特征做层归一化；或对特征做批归一化：y = norm(x.transpose(1, 2)).transpose(1, 2)。"
        "输出会改变：需重新训练。",
        "torch.nn.BatchNorm1d 的文档：输入为 (N, C, L)；torch.nn.LayerNorm 的文档：归一化最后几维",
    ),
    "NK112": Words(
        "dropout 增大了批归一化输入的方差",
        "dropout 或随机深度（stochastic depth）在训练时增加方差，推理时不会。这部分方差经过求和或池化进入滑动方差，"
        "使它比推理时输入的方差大。",
        "降低丢弃率，把 dropout 放到最后一个批归一化之后，或改用没有滑动统计量的归一化。已训练的模型用 "
        "normkit.recalibrate(model, batches)，它会关闭 dropout：输出会改变，变得与训练时一致。",
    ),
    "NK201": Words(
        "批归一化每个通道的元素太少",
        "元素这么少，均值和方差的随机误差很大：训练噪声大，滑动统计量也与训练时用到的不符。"
        "梯度累积不会增大归一化所用的批次。",
        "增大每个 rank 的批大小；有多个 rank 时，用 normkit.SyncBatchNorm.convert(model)：推理的输出不变。"
        "也可以用组归一化，normkit.convert(model, 'group_norm')：输出会改变，需重新训练。",
        "Wu & He 2018, arXiv:1803.08494，图 1；ultralytics/yolov5#1630",
    ),
    "NK202": Words(
        "统计域只有一个元素",
        "一个值减去自身等于零：无论输入如何，输出都是 bias，梯度也无法通过。",
        "减少组数，使一个统计域包含多个元素；池化后的特征用层归一化。输出会改变：需重新训练。",
        "由算术得出；torch 的 instance_norm 在训练时拒绝这种输入：Expected more than 1 spatial element",
    ),
    "NK203": Words(
        "统计域的结果只剩下符号",
        "两个值减去它们的均值，得到一个数及其相反数，再除以这个数的绝对值：输出只能是正一或负一，梯度几乎为零。",
        "减少组数，使一个统计域包含多个元素。输出会改变：需重新训练。",
        "由算术得出：(a - m, b - m) / s = (1, -1) sign(a - b)",
    ),
    "NK301": Words(
        "滑动统计量从未更新",
        "推理时减 0、除以 1：训练时做了归一化，推理时却什么也不做。",
        "加载检查点时连同 buffer 一起加载；对参数取平均时，buffer 也取平均；训练时让该层处于训练模式；"
        "或在训练数据上执行 normkit.recalibrate(model, batches)。输出会改变：推理时也会归一化。",
    ),
    "NK302": Words(
        "滑动统计量与数据相差很远",
        "训练按批次归一化，推理按滑动统计量归一化；两者不一致时，训练结果好，推理结果差。",
        "检查预处理是否不同、批次是否太小、数据的分布是否变了；或执行 normkit.recalibrate(model, batches)。"
        "输出会改变：推理的归一化变得与训练一致。",
    ),
    "NK303": Words(
        "滑动统计量尚未稳定",
        "批次太少，滑动平均中仍混有初始的均值 0 和方差 1。",
        "在训练模式下多运行一些批次，训练时用 momentum=None 取普通平均，或执行 normkit.recalibrate(model, batches)："
        "输出会改变。如果批次虽少但统计量已经合适，给 audit 一个 loader，它便会确认这一点。",
        "torch.nn.BatchNorm2d 的文档：running = (1 - momentum) * running + momentum * batch",
    ),
    "NK304": Words(
        "通道的值没有变化",
        "没有方差的通道不携带信息；此后出现的噪声，无论多小，都会被归一化放大 1 / sqrt(eps) 倍：eps 取默认值时为 316 倍。",
        "检查前一层：可能因学习率过高而失活，也可能输入通道从不变化。删去该通道，或把归一化在该处的 weight 设为 0："
        "这些通道的输出会改变，变为 bias，与训练时相同。",
    ),
    "NK305": Words(
        "输入数值过大",
        "接近 float16 上限的数值在半精度中会溢出；正常的网络中，归一化的输入在 1 左右。",
        "找出前面使数值增大的层；检查学习率、预处理和残差求和。输出会改变：需重新训练。",
    ),
    "NK306": Words(
        "状态含有 NaN、无穷或负的方差",
        "只要有一个批次含有 NaN 或无穷，滑动统计量就永远失效，此后的每次推理都受影响。"
        "任何批次都不会有负的方差：文件的转换或平均有误，或者文件已损坏。",
        "用 normkit.recalibrate(model, batches) 重新计算统计量；参数从更早的检查点恢复。输出会改变。"
        "损失为 NaN 或无穷的批次应当跳过；normkit 的层不会用这样的统计量更新状态。",
    ),
    "NK307": Words(
        "eps 在计算所用的精度中丢失",
        "小于 float16 最小正数 6e-8 的 eps，在始终用半精度的计算中变为 0；数值恒定的统计域于是除以零。",
        "把 eps 设为 1e-5：除数值几乎恒定的统计域之外，输出保持不变，只有舍入误差。",
    ),
    "NK308": Words(
        "momentum 用了 TensorFlow 的约定",
        "在 PyTorch 中，momentum 是新批次的权重；在 TensorFlow 中，是旧平均值的权重。取 0.99 时，"
        "滑动统计量几乎就是最后一个批次的统计量。",
        "改为 1 - momentum：0.9 对应 0.1，0.99 对应 0.01。",
        "torch.nn.BatchNorm2d 与 tf.keras.layers.BatchNormalization 的文档",
    ),
    "NK309": Words(
        "momentum 为零",
        "滑动统计量从不更新，也没有任何警告；推理一直使用旧值。",
        "设 momentum=0.1；若有意保持统计量不变，调用 normkit.freeze(layer)。",
        "torch.nn.BatchNorm2d 的文档",
    ),
    "NK310": Words(
        "eps 很大，可能本想设置 momentum",
        "eps 的位置在 momentum 之前：BatchNorm2d(8, 0.8) 给方差加上 0.8。方差小的通道，输出仍然小，"
        "输入的尺度没有被除掉。",
        "写出参数名：BatchNorm2d(8, momentum=0.8)。用这个 eps 训练过的模型应保留它，否则输出会改变：需重新训练。",
        "torch.nn.BatchNorm2d 的文档：BatchNorm2d(num_features, eps=1e-05, momentum=0.1)；"
        "eriklindernoren/PyTorch-GAN, dcgan.py",
    ),
    "NK311": Words(
        "momentum 为一",
        "滑动统计量只来自最后一个训练批次，推理结果取决于最后碰到的是哪一个。",
        "用 momentum=0.1，或用 momentum=None 取普通平均；已训练的模型用 normkit.recalibrate 重新校准。",
        "torch.nn.BatchNorm2d 的文档：running = (1 - momentum) * running + momentum * batch",
    ),
    "NK312": Words(
        "归一化在缩放为零时被冻结",
        "缩放为零时，前面的层得不到梯度；又因为冻结，缩放永远是零：这个分支再也不起作用。"
        "原因是残差分支的缩放从零开始，还没有训练就被冻结。",
        "先加载训练好的权重再冻结，或训练这个缩放：normkit.unfreeze、requires_grad_(True)。",
        "Goyal et al. 2017, arXiv:1706.02677，第 5.1 节（从零开始的缩放）",
    ),
    "NK313": Words(
        "平方在 float16 中溢出",
        "大于 255 的数，其平方在 float16 中是无穷：先平方、再转为 float32 的归一化会除以无穷，返回零或 NaN。",
        "改用在 float32 中计算的归一化，torch 和 normkit 的都是如此，例如 normkit.RMSNorm；也可以用 bfloat16。"
        "输出会改变，变得与 float32 的一致。",
        "IEEE 754 binary16；huggingface/transformers 的 T5LayerNorm 在 float32 中计算方差",
    ),
    "NK401": Words(
        "归一化的参数受权重衰减",
        "归一化的缩放并不会过拟合，权重衰减却把它拉向零，所有特征也随之变小。",
        "用 normkit.param_groups(model, weight_decay=...) 构造优化器：归一化参数和偏置便不受权重衰减。",
        "He et al. 2019, Bag of Tricks, arXiv:1812.01187，第 3.1 节",
    ),
    "NK402": Words(
        "冻结的部分中，批归一化处于训练模式",
        "requires_grad=False 只对优化器有效，滑动统计量照样更新：冻结部分的特征不断改变，"
        "而其余部分正在这些特征上训练。",
        "normkit.freeze(part)：此后即使调用 model.train()，其中的归一化也使用滑动统计量。",
    ),
    "NK403": Words(
        "批归一化未在各个 rank 之间同步",
        "每个 rank 只按批次中自己的那一份归一化，而保存下来的只有一个 rank 的滑动统计量。",
        "normkit.SyncBatchNorm.convert(model)：推理的输出不变。自带激活函数的归一化，如 timm 的 BatchNormAct2d，"
        "要先执行 model, _ = normkit.convert(model)。也可以用组归一化：输出会改变。",
        "Peng et al. 2018, MegDet, arXiv:1711.07240（同步批归一化）",
    ),
    "NK404": Words(
        "该层混合不同的样本",
        "一个样本的输出依赖其他样本，因此逐样本梯度没有定义；在 vmap 中，原地更新统计量会失败。",
        "normkit.freeze(model)，训练时也使用滑动统计量。也可以用组归一化，normkit.convert(model, 'group_norm')："
        "输出会改变，需重新训练。",
        "pytorch/opacus#319；torch.func 的文档：patching batch norm",
    ),
    "NK405": Words(
        "填充计入统计量",
        "均值和方差同时来自数据和填充：同一个序列，与更长的序列放在一批时，输出就会不同。",
        "把等长的序列放在一批；或把有效位置告诉 normkit 的归一化，norm(x, mask=mask)；或对每个位置做层归一化。"
        "输出会改变：需重新训练。",
    ),
    "NK406": Words(
        "优化器中没有归一化的参数",
        "周围的层在训练，它的 weight 和 bias 却保持不变：可能是参数组遗漏了它，也可能它在优化器之后才创建，例如转换模型时。",
        "最后再构造优化器，用 normkit.param_groups(model, weight_decay=...)；若有意保持不变，就把它冻结。",
        "torch.optim 的文档：改好模型之后再构造优化器",
    ),
    "NK407": Words(
        "权重归一化的长度受权重衰减",
        "w = g v / |v|，因此 g 是该层的尺度，权重衰减会把它拉向零，与归一化的 weight 一样；"
        "对 v 的衰减不改变输出，只改变 v 的更新幅度。",
        "用 normkit.param_groups(model, weight_decay=...) 构造优化器，它不对 g 做权重衰减；"
        "若有意对该层的尺度做正则化，则保留。",
    ),
    "NK408": Words(
        "推理时使用批次的统计量",
        "一个样本的输出取决于同一批中的其他样本，而且一批只有一个样本时，结果与训练时不同。",
        "用 track_running_stats=True 和 normkit.recalibrate(model, batches)：输出会改变，变为按全部数据的统计量计算。"
        "也可以换成不混合样本的归一化，normkit.convert(model, 'group_norm')，再重新训练。",
        "torch.nn.BatchNorm2d 的文档：track_running_stats",
    ),
    "NK409": Words(
        "loader 的批次来自不同的分布",
        "训练按每个批次自己的均值和方差归一化，推理按它们的平均，而这个平均与哪个批次都不符："
        "各个批次轮流来自单一的域或类别。",
        "打乱数据，或在每个批次中混合各个域。也可以为每个域各设一个批归一化，或用组归一化：输出会改变。",
    ),
}
