"""Experiments on the claims about layer norm, one file for each claim."""

from normkit.study.claims.layer_norm import ln_1, ln_2

EXPERIMENTS = (*ln_1.EXPERIMENTS, *ln_2.EXPERIMENTS)
