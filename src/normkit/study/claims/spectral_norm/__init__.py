"""Experiments on the claims about spectral norm, one file for each claim."""

from normkit.study.claims.spectral_norm import sn_1, sn_2

EXPERIMENTS = (*sn_1.EXPERIMENTS, *sn_2.EXPERIMENTS)
