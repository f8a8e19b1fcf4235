"""Where networks run, and what numbers depend on there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from ..base import arithmetic


def device() -> torch.device:
    """CUDA where there is a GPU, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(where: torch.device) -> dict[str, str | int]:
    """The kind of device, threads, the precision of training (SAL is measured in float32), and a GPU's model.

    On the CPU instead of the model the instructions that torch uses, and `arithmetic.chosen`.
    """
    if where.type == "cpu":
        instructions = torch.backends.cpu.get_cpu_capability().lower()
        found: dict[str, str | int] = {"device": "cpu", "threads": 1, "precision": "float32"}
        return found | {"instructions": instructions, "arithmetic": arithmetic.chosen()}
    model = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    return {"device": where.type, "threads": torch.get_num_threads(), "precision": "bfloat16", "gpu": model}


@contextmanager
def deterministic(device: torch.device | str) -> Iterator[None]:
    """On a GPU the same sums in the same order inside, call by call; where torch has no such kernel it warns.

    Needs `arithmetic.GPU` in the environment before CUDA starts.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    wanted, mild = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, searched = torch.backends.cudnn, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark = False  # it would take another algorithm wherever another is faster today
    try:
        yield
    finally:
        cudnn.benchmark = searched
        torch.use_deterministic_algorithms(wanted, warn_only=mild)


@contextmanager
def one_thread(device: torch.device | str) -> Iterator[None]:
    """On the CPU one thread inside, of torch and of BLAS below numpy and scikit-learn.

    The same sums in the same order, however many runs share the machine.
    """
    on_cpu = torch.device(device).type == "cpu"
    before = torch.get_num_threads()
    torch.set_num_threads(1 if on_cpu else before)
    try:
        with threadpool_limits(1 if on_cpu else None):
            yield
    finally:
        torch.set_num_threads(before)
