"""Work in processes: order, how many, what happens when a piece fails; and what is told of it."""

import os
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_victims import MACHINE, SETTINGS
from ul.base import names
from ul.studies import conditions, description, processes


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


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_there_is_not_made(jobs):
    work = [(n,) for n in (0, 1, -2, 3, -4)]  # of a negative one `squared` makes nothing
    found = processes.each(squared, work, "squares", jobs=jobs, finished=lambda n: n if n < 0 else None)
    assert found == [0, 1, -2, 9, -4]


def test_where_all_is_there_no_process_is_started(monkeypatch):
    started = []
    monkeypatch.setattr(processes.get_reusable_executor.__globals__["_ReusablePoolExecutor"], "submit", started.append)
    assert processes.each(where, [(0,), (1,)], "there", jobs=2, finished=lambda n: n + 10) == [10, 11]
    assert not started


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


def test_a_small_gpu_is_not_shared_unless_asked(monkeypatch):
    assert processes.how_many(9, 4) == 4 and processes.how_many(2, 4) == 2 and processes.how_many(0, 4) == 1
    monkeypatch.setattr(processes, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * 2**30, 8 * 2**30))
    assert processes.how_many(9) == 1 and processes.how_many(9, 2) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert processes.how_many(9) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("poison", [None, "/home/somebody/mine.npz"])
def test_a_description_names_no_place_of_this_machine(poison):
    run = placed(poison)
    found = description.described(run, {"train": "ab"}, torch.device("cpu"))
    assert found["data"] == {"train": "ab"} and found["versions"]["torch"] == torch.__version__
    assert found["machine"] == MACHINE
    assert found["config"]["dataset"] == "rooms" and "root" not in found["config"] and "images" not in found["config"]
    assert found["config"]["poison"] == (poison is not None) and found["config"]["seed"] == 0
    assert run.images.poison == poison and "somebody" not in str(found)


def test_what_a_run_depends_on_has_no_places_but_the_rows_that_it_names(monkeypatch):
    base = description.depends(placed(None))
    assert base == description.depends(placed("/home/somebody/mine.npz"))
    assert "somebody" not in str(base)
    monkeypatch.setitem(names.DATASETS, "another", names.DataSet("label", 3))
    monkeypatch.setitem(names.METHODS, "another", names.Method("Another", "handcrafted"))
    assert description.depends(placed(None)) == base, "a new row changes no other"
    monkeypatch.setitem(names.DATASETS, "rooms", replace(names.DATASETS["rooms"], classes=11))
    assert description.depends(placed(None)) != base


def placed(poison: str | None):
    run = conditions.one(SETTINGS | {"root": "/home/somebody/data", "poison": poison})[0]
    assert run.images.root == "/home/somebody/data"
    return run
