"""Processes of a group, for tests of what is distributed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


def run_ranks(work: Callable[..., None], world: int, *args: Any) -> None:
    """``work(rank, world, *args)`` in so many processes; an error in one of them is raised here.

    They are forked from a process that has imported torch and nothing else, because importing it takes each of them as
    long as many tests.
    """
    multiprocessing.set_forkserver_preload(["torch"])
    torch.multiprocessing.start_processes(work, (world, *args), nprocs=world, start_method="forkserver")
