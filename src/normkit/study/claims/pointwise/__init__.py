"""Experiments on the claims about dynamic tanh and dynamic erf, one file for each claim."""

from normkit.study.claims.pointwise import derf_1, dyt_1, dyt_2

EXPERIMENTS = (*dyt_1.EXPERIMENTS, *dyt_2.EXPERIMENTS, *derf_1.EXPERIMENTS)
