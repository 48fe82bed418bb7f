"""DDP and FSDP2 on two processes: gradients equal to those of one process on the whole batch."""

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from transforms.subjects import LAYERS, sample

# Without layers that see other samples in half of the batch, and without those that have nothing to train.
SEE_THE_BATCH = ("batch", "batch, no running statistics", "batch with extras", "instance with extras")
NAMES = [name for name in LAYERS if name not in (*SEE_THE_BATCH, "local_response", "frozen")]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def work(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for name in NAMES:
        torch.manual_seed(0)
        alone, x = LAYERS[name](), sample(4)
        for wrap in (DistributedDataParallel, lambda layer: fully_shard(layer, mesh=mesh)):
            twin, layer = copy.deepcopy(alone), wrap(copy.deepcopy(alone))
            twin(x).pow(2).mean().backward()
            layer(x[2 * rank : 2 * rank + 2]).pow(2).mean().backward()
            for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
                # fp32 sums in another order, over a few dozen values of order 1.
                torch.testing.assert_close(whole(ours.grad), theirs.grad, atol=1e-6, rtol=1e-4, msg=name)
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_two_processes():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (f"{folder}/meeting",), nprocs=2)
