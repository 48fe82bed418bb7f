"""Experiments on the claims about the norms of responses, one file for each claim."""

from normkit.study.claims.response import frn_1, grn_1, scale_norm_1

EXPERIMENTS = (*frn_1.EXPERIMENTS, *grn_1.EXPERIMENTS, *scale_norm_1.EXPERIMENTS)
