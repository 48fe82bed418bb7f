"""Experiments on the claims about layer norm, RMS norm, and norms of queries and keys, one file for each claim."""

from normkit.study.claims.layer_norm import ln_1, ln_2, qk_1, rms_1

EXPERIMENTS = (*ln_1.EXPERIMENTS, *ln_2.EXPERIMENTS, *rms_1.EXPERIMENTS, *qk_1.EXPERIMENTS)
