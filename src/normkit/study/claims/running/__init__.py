"""Experiments on the claims about methods that mix statistics, keep others, or take them back; a file for each claim."""

from normkit.study.claims.running import (
    iter_norm_1,
    iter_norm_2,
    power_norm_1,
    power_norm_2,
    revin_1,
    revin_2,
    switchable_norm_1,
)

EXPERIMENTS = (
    *switchable_norm_1.EXPERIMENTS,
    *power_norm_1.EXPERIMENTS,
    *power_norm_2.EXPERIMENTS,
    *iter_norm_1.EXPERIMENTS,
    *iter_norm_2.EXPERIMENTS,
    *revin_1.EXPERIMENTS,
    *revin_2.EXPERIMENTS,
)
