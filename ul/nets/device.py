"""Where networks run, and what numbers depend on there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def device() -> torch.device:
    """CUDA where there is a GPU, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(where: torch.device) -> dict[str, str | int]:
    """The kind of device, threads, the precision of training (SAL is measured in float32), and a GPU's model."""
    if where.type == "cpu":
        return {"device": "cpu", "threads": 1, "precision": "float32"}
    model = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    return {"device": where.type, "threads": torch.get_num_threads(), "precision": "bfloat16", "gpu": model}


@contextmanager
def one_thread(device: torch.device | str) -> Iterator[None]:
    """On the CPU one thread inside: the same sums in the same order, however many runs share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if torch.device(device).type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
