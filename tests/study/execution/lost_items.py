"""Work of which some items are lost; a module by itself, because each worker that is started again imports it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch


class TwoPartsError(Exception):
    """Cannot be read back from a pickle: its arguments are not those of its constructor."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


class Number(int):
    """A payload of this module, so that a worker imports the module when it starts and not within a time limit."""


def odd(payload: int, item: str) -> Any:
    """Fails in the way that the item names."""
    match item:
        case "raise":
            raise TwoPartsError("no ", "room")
        case "memory":
            raise MemoryError("4 GiB")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(3)
        case "hang":
            time.sleep(100)
        case "lambda":
            return lambda: payload
    return int(payload) + int(item), torch.get_num_threads()
