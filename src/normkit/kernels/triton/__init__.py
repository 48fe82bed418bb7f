"""Kernels for GPUs, in Triton: NVIDIA's, AMD's and Intel's alike. Loaded when the first tensor on one comes.

`schedule` decides how a plan is walked, `tiles`, `forward` and `backward` walk it, `launch` answers calls.
"""
