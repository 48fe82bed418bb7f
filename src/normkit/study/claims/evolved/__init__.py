"""Experiments on the claims about EvoNorm, one file for each claim."""

from normkit.study.claims.evolved import evo_norm_b0_1, evo_norm_s0_1

EXPERIMENTS = (*evo_norm_b0_1.EXPERIMENTS, *evo_norm_s0_1.EXPERIMENTS)
