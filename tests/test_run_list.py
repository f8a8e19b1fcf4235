"""What was run where: from planted records and parameters."""

import json

import pytest

from ul.base.errors import InputError
from ul.pipeline import run_list

SETTINGS = """
settings:
  toy:
    with: {dataset: toy, limit: 2000, method: noise, others: [lsp], architecture: net, epochs: 4, first_seed: 3,
      seeds: 3}
  toy-jpeg: {with: {dataset: toy, method: lsp, architecture: net, defense: jpeg, epochs: 4, seeds: 2}}
cross_tasks:
  toy: {with: {name: cross_task, dataset: toy, encoder: vit, epochs: 2, seeds: 1, methods: [noise, em]}}
"""


def run(method, seed, device):
    config = {"dataset": "toy", "limit": 2000, "architecture": "net", "defense": "none", "method": method, "seed": seed}
    config |= {"recipe": {"epochs": 4}, "poison_seed": seed}
    return {"config": config, "machine": device, "versions": {"torch": "2.13.0"}}


@pytest.fixture
def rows(tmp_path):
    """The page's table by profile and record, cells by column; seed 4 was finished for noise alone."""
    folder = tmp_path / "results" / "laptop" / "records"
    folder.mkdir(parents=True)
    (tmp_path / "params.yaml").write_text(SETTINGS)
    runs = [run(m, s, {"device": "cuda", "gpu": "NVIDIA H200"}) for m, s in (("noise", 3), ("noise", 4), ("lsp", 3))]
    (folder / "toy.json").write_text(json.dumps({"runs": runs}))
    lines = [line.strip("| ").split(" | ") for line in run_list.page(tmp_path).splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): dict(zip(lines[0], row, strict=False)) for row in lines[1:]}


def test_seeds_are_done_when_all_methods_have_them(rows):
    found = rows["laptop", "toy"]
    assert found["seeds done"] == "3 (of some: 4)" and found["seeds open"] == "4-5" and found["poison draws"] == "3-4"
    assert found["methods"] == "noise, lsp" and found["data"] == "toy, 2,000 images"
    assert found["device"] == "NVIDIA H200" and found["torch"] == "2.13.0" and found["code"] == run_list.TODAY


def test_what_has_no_record_is_not_run_yet(rows):
    assert rows["laptop", "toy-jpeg"]["defense"] == "jpeg" and rows["laptop", "toy-jpeg"]["seeds open"] == "0-1"
    study = rows["laptop", "cross_task"]
    assert study["network"] == "vit" and study["methods"] == "noise, em" and study["device"] == "not run yet"
    assert len(rows) == 3


@pytest.mark.parametrize("content", ["{}", "[]", '{"runs": 3}', "{"])
def test_a_record_without_runs_is_one_line(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(InputError, match=r"record\.json.*; run `dvc repro`"):
        run_list._runs(tmp_path / "record.json")
