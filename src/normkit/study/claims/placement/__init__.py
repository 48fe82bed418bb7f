"""Experiments on the claim about the place of a norm."""

from normkit.study.claims.placement import p_1

EXPERIMENTS = p_1.EXPERIMENTS
