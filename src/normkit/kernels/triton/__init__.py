"""Kernels for GPUs, in Triton: NVIDIA's, AMD's and Intel's alike. Loaded when the first tensor on a GPU comes.

`schedule` decides how a plan is carried out, in passes that `passes` makes. `launch` and `gradients` launch the
kernels, which are in `code`. `arguments` has the tuples that both sides know. `recipes` writes launches down for C++ to
repeat.
"""
