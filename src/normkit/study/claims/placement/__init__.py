"""Experiments on the claims about the place of a norm, one file for each claim."""

from normkit.study.claims.placement import p_1, p_2

EXPERIMENTS = (*p_1.EXPERIMENTS, *p_2.EXPERIMENTS)
