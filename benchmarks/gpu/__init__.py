"""Measurements on one GPU: cells, calls of layers, whole models, CUDA graphs; `make bench-gpu` and gpu_check.sh."""
