"""What the GPU runs, in Triton's language; `arguments` has the tuples that the kernels take."""
