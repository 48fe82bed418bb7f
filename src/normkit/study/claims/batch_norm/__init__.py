"""Experiments on the claims about batch norm, one file for each claim."""

from normkit.study.claims.batch_norm import bn_1, bn_2, bn_3, bn_4, bn_5, bn_6

EXPERIMENTS = (
    *bn_1.EXPERIMENTS,
    *bn_2.EXPERIMENTS,
    *bn_3.EXPERIMENTS,
    *bn_4.EXPERIMENTS,
    *bn_5.EXPERIMENTS,
    *bn_6.EXPERIMENTS,
)
