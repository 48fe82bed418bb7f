"""Kernels for GPUs, in Triton: NVIDIA's, AMD's and Intel's alike. Loaded when the first tensor on a GPU comes.

`schedule` decides how a plan is walked, and `launch` answers calls with it. `forward`, `backward` and `weight` have the
kernels; `tiles`, `moments` and `activation` have what these share. `arguments` has the tuples that both sides know.
"""
