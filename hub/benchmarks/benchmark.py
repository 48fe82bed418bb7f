"""Workloads for ``kernels benchmark``: rows of a language model, against the formulas of transformers and torch."""

import torch
from kernels.benchmark import Benchmark

ROWS, WIDTH = 2048, 2048


class NormBenchmark(Benchmark):
    """Each workload writes `out`; its ``verify`` returns what it must be."""

    seed = 0

    def setup(self) -> None:
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.x = torch.randn(ROWS, WIDTH, device=self.device, dtype=dtype)
        self.gate = torch.randn_like(self.x)
        self.weight = torch.rand(WIDTH, device=self.device, dtype=dtype) + 0.5
        self.bias = torch.randn(WIDTH, device=self.device, dtype=dtype)

    def reference(self) -> torch.Tensor:
        wide = self.x.float()
        hat = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * hat.to(self.x.dtype)

    def benchmark_rms_norm(self) -> None:
        self.out = self.kernel.rms_norm(self.x, (WIDTH,), self.weight, eps=1e-6, cast="before")

    def verify_rms_norm(self) -> torch.Tensor:
        return self.reference()

    def benchmark_layer_norm(self) -> None:
        self.out = self.kernel.layer_norm(self.x, (WIDTH,), self.weight, self.bias)

    def verify_layer_norm(self) -> torch.Tensor:
        return torch.nn.functional.layer_norm(self.x, (WIDTH,), self.weight, self.bias)

    def benchmark_gated_rms_norm(self) -> None:
        self.out = self.kernel.gated_rms_norm(self.x, self.gate, self.weight, 1e-6, cast="before")

    def verify_gated_rms_norm(self) -> torch.Tensor:
        return (self.reference() * torch.nn.functional.silu(self.gate.float())).to(self.x.dtype)
