"""DyT-1: dynamic tanh computes no statistics."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import level, probed
from normkit.study.claims.transformers import DESIGN

BOUNDED, LAYER = ("tokens", "dynamic_tanh", 8), ("tokens", "layer_norm", 8)

EXPERIMENTS = (
    Experiment(
        claim="DyT-1",
        name="dependence on other features",
        question=Text(
            "Do the outputs for the other features of a token change when one feature changes?",
            "改变词元的一个特征时，其余特征的输出是否变化？",
        ),
        design=DESIGN,
        measure=Text(
            "Every norm of the trained network, in training mode: one of 32 normally distributed features is raised by "
            "3; largest change of the outputs for the others, in units of their standard deviation. The claim is that "
            "there is none.",
            "训练好的网络中的每个归一化层，置于训练模式：32 个正态分布的特征中有一个增大 3；其余特征输出的最大变化，"
            "以其标准差为单位。论断是没有变化。",
        ),
        unit="share",
        effect=level(BOUNDED, probed("value_dependence")),
        cells=(BOUNDED, LAYER),
        show=probed("value_dependence"),
        smallest=1e-3,
        equivalence=True,
    ),
)
