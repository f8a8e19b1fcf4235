"""Work in processes: order, how many, what happens when a piece fails."""

import os
import time
import warnings

import numpy as np
import pytest
import torch

from ul import models, processes


def squared(n: int) -> int:
    if n < 0:
        raise ValueError("a negative one")
    return n * n


def where(_: int) -> int:
    return os.getpid()


def grown(n: int) -> int:
    HELD.append(np.ones(50_000_000))  # 400 MB more in this worker
    time.sleep(1.1)  # loky looks once a second
    return n


HELD: list[np.ndarray] = []


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order(jobs):
    assert processes.each(squared, [(n,) for n in range(7)], "squares", jobs=jobs) == [n * n for n in range(7)]
    assert processes.each(squared, ((n,) for n in range(3)), "squares", total=3, jobs=jobs) == [0, 1, 4]


def test_several_jobs_are_other_processes():
    assert processes.each(where, [(0,)], "here", jobs=4) == [os.getpid()], "one piece of work needs no process"
    assert os.getpid() not in processes.each(where, [(0,), (1,)], "there", jobs=2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_raised_as_it_is(jobs):
    with pytest.raises(ValueError, match="a negative one"):
        processes.each(squared, [(1,), (-1,)], "squares", jobs=jobs)
    assert processes.each(squared, [(2,), (3,)], "squares", jobs=jobs) == [4, 9]


def test_a_worker_that_is_renewed_for_its_memory_is_no_news():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert processes.each(grown, [(n,) for n in range(6)], "grown", jobs=2) == list(range(6))
    assert [str(w.message) for w in seen] == []


def test_a_gpu_is_not_shared(monkeypatch):
    assert processes.how_many(9, 4) == 4 and processes.how_many(2, 4) == 2
    monkeypatch.setattr(models, "device", lambda: type("Device", (), {"type": "cuda"}))
    assert processes.how_many(9, 4) == 1


@pytest.mark.parametrize("poison", [None, "/home/somebody/mine.npz"])
def test_a_description_names_no_place_of_this_machine(poison):
    settings = {"dataset": "rooms", "root": "/home/somebody/data", "poison": poison}
    found = processes.described(settings, {"train": "ab"}, torch.device("cpu"))
    assert found["config"] == {"dataset": "rooms", "poison": poison is not None} and found["data"] == {"train": "ab"}
    assert found["machine"] == {"device": "cpu", "threads": 1} and found["versions"]["torch"] == torch.__version__
    assert settings["poison"] == poison and "somebody" not in str(found)
