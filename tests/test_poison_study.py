"""The poisons of one data set: which are drawn, what is told of them, and what lies on disk afterwards."""

import json

import pytest

from tests.imports import ROOT
from ul import data
from ul.base.errors import InputError
from ul.studies import conditions, images, poison, poison_runs
from ul.tables import poisons as tables

CONFIG = {
    "dataset": "mnist", "root": str(ROOT / "data"), "limit": 64, "eps": None, "recipe": "cpu", "seeds": 2,
    "architecture": "lenet5", "epochs": 1, "victims": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poisons")
    found = poison.study(CONFIG, ["noise", "ops"], out=str(folder / "mnist"), folder=folder / "kept", jobs=1)
    return found, folder


def test_every_method_is_told_of_with_all_its_draws(made):
    found, _ = made
    told = [(one["method"], [draw["seed"] for draw in one["draws"]], len(one["victims"])) for one in found["poisons"]]
    assert told == [("noise", [0, 1], 1), ("ops", [0, 1], 1)]
    noise, ops = found["poisons"]
    assert len({draw["digest"] for draw in noise["draws"]}) == 2, "another seed, another noise"
    assert tables.drawn(ops["draws"])["l0"] == 1 and ops["norm"] == "l0" and ops["limit"] == pytest.approx(1, abs=1e-5)
    assert json.dumps(found, allow_nan=False) and found["classes"] == 10


def test_files_are_the_draws_and_runs_read_them(made):
    found, folder = made
    names = {f"mnist-{m}-{s}.npz" for m in ("noise", "ops") for s in (0, 1)}
    assert {path.name for path in (folder / "mnist").iterdir()} == names
    clean = data.load("mnist", "train", root=CONFIG["root"], limit=64, targets=("label",))
    for draw in found["poisons"][0]["draws"]:
        stored = images.stored(str(folder), "mnist", "noise", draw["seed"])
        assert data.read_poison(stored, clean).digest() == draw["digest"]
    usual = {"poison": None, "defense": "none", "probe_epochs": 1, "sal_images": 8, "share": 1.0, "label_noise": 0.0}
    one = conditions.several(CONFIG | usual, ["noise"], poisons=str(folder))[-1]
    there = images.poisoned(one.images)
    assert one.images.poison_seed == 1
    assert there.digest() == images.poisoned(conditions.of(one, poison=None).images).digest(), "as made in memory"


def test_a_second_call_makes_nothing(made, monkeypatch):
    found, folder = made
    monkeypatch.setattr(poison_runs, "poisoned", None)
    monkeypatch.setattr(poison_runs.victim, "fit", None)
    assert poison.study(CONFIG, ["noise", "ops"], folder=folder / "kept", jobs=1) == found


@pytest.mark.parametrize(
    "methods, changes, message",
    [
        (["noise"], {"victims": 3}, "victims is 3, but only 2 poisons of a method are drawn"),
        (["noise", "noise"], {}, "noise comes twice among the methods"),
        (["nonsense"], {}, "unknown method 'nonsense'"),
        (["noise"], {"seeds": 0}, "seeds is 0"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(methods, changes, message):
    with pytest.raises(InputError, match=message):
        poison.study(CONFIG | changes, methods)
