"""Experiments on the claims about instance norm, one file for each claim."""

from normkit.study.claims.instance_norm import in_1, in_2

EXPERIMENTS = (*in_1.EXPERIMENTS, *in_2.EXPERIMENTS)
