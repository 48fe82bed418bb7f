"""Experiments on the claims about group norm, one file for each claim."""

from normkit.study.claims.group_norm import gn_1, gn_2

EXPERIMENTS = (*gn_1.EXPERIMENTS, *gn_2.EXPERIMENTS)
