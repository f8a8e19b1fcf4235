"""Work in processes: order, how many, what happens when a piece fails."""

import os

import pytest

from ul import models, processes


def squared(n: int) -> int:
    if n < 0:
        raise ValueError("a negative one")
    return n * n


def where(_: int) -> int:
    return os.getpid()


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


def test_a_gpu_is_not_shared(monkeypatch):
    assert processes.how_many(9, 4) == 4 and processes.how_many(2, 4) == 2
    monkeypatch.setattr(models, "device", lambda: type("Device", (), {"type": "cuda"}))
    assert processes.how_many(9, 4) == 1
