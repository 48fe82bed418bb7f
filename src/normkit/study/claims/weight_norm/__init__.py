"""Experiments on the claims about weight norm, one file for each claim."""

from normkit.study.claims.weight_norm import wn_1, wn_2

EXPERIMENTS = (*wn_1.EXPERIMENTS, *wn_2.EXPERIMENTS)
