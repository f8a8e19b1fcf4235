"""Answers in plain words, on planted accuracies."""

import numpy as np
import pandas as pd
import pytest

from ul.base.errors import InputError
from ul.base.stats import Interval
from ul.tables import in_words, table_files

NAN = float("nan")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.9, 0.6, 1.2), "protected"), ((0.05, -0.1, 0.2), "not protected"), ((0.35, 0.25, 0.45), "protected in part"),
     ((0.35, 0.1, 0.6), "undecided"), ((0.9, 0.4, 1.4), "undecided"), ((NAN, NAN, NAN), "not tested")],
)  # fmt: skip
def test_the_whole_interval_decides(interval, expected):
    assert in_words.verdict(Interval(*interval, n=3)) == expected


def test_one_run_tells_nothing():
    assert in_words.verdict(Interval(0.9, NAN, NAN, n=1)) == "cannot be told from one run"


def frame(**accuracies):
    """Rows of `benchmark.benchmark` from accuracies by seed: method=..., method__defense=..."""
    rows = []
    for name, values in accuracies.items():
        method, _, defense = name.partition("__")
        place = {"dataset": "toy", "architecture": "net", "defense": defense or "none", "epochs": 5, "method": method}
        rows += [place | {"seed": seed, "test_accuracy": value} for seed, value in enumerate(values)]
    return pd.DataFrame(rows)


PLANTED = frame(
    clean=[0.9, 0.8],
    own=[0.1, 0.1],
    noise=[0.9, 0.8],
    clean__jpeg=[0.5, 0.5],
    own__jpeg=[0.5, 0.4],
    noise__jpeg=[0.1, 0],
)


def test_classes_are_answered_without_and_under_each_defense():
    found = in_words.about_classes(PLANTED, "own", 0.1).set_index("question")
    assert found["share"].to_dict() == pytest.approx({"the classes": 1, "the classes, if the trainer uses jpeg": 0.125})
    assert found["verdict"].tolist() == ["protected", "undecided"]


def test_a_defense_under_which_nothing_is_learnt_has_no_answer():
    found = in_words.about_classes(PLANTED, "own", 0.5)
    assert found["verdict"].tolist() == ["undecided", "not tested"]
    assert list(in_words.sentences(found))[1].startswith("the classes, if the trainer uses jpeg: NOT TESTED")


def test_one_weak_clean_seed_leaves_the_classes_untested():
    found = in_words.about_classes(frame(clean=[0.9, 0.4], own=[0.1, 0.1]), "own", 0.5)
    assert found["verdict"].tolist() == ["not tested"] and found["n"].tolist() == [2]


def test_tasks_are_those_trained_together_but_for_the_attacked_one():
    rows = [
        {"regime": regime, "method": method, "task": task, "own": task == "label", "n": 3, "protection": value,
         "protection_low": value - 0.1, "protection_high": value + 0.1}
        for regime in ("multi", "single") for method in ("own", "lsp")
        for task, value in (("label", 0.9), ("depth", 0.05), ("edges", NAN))
    ]  # fmt: skip
    found = in_words.about_tasks(pd.DataFrame(rows), "own")
    assert found[["question", "verdict"]].to_numpy().tolist() == [["depth", "not protected"], ["edges", "not tested"]]
    told = list(in_words.sentences(found))
    assert told[0] == "depth: NOT PROTECTED (5% [-5%, 15%] of what clean images teach is gone, n=3)"
    assert told[1] == "edges: NOT TESTED (networks do not learn it from clean images either)"


@pytest.mark.parametrize(("low", "high", "side"), [(0.1, 0.9, "below"), (1.1, 3, "above"), (0.5, 2, "not told from")])
def test_ud_is_told_from_one_by_its_interval(low, high, side):
    row = pd.Series({"ud_layers": 0.7, "ud_layers_low": low, "ud_layers_high": high, "ud_n": 3, "zeros": 0})
    assert in_words.distance(row).startswith("UD 0.70 [") and in_words.distance(row).endswith(
        f"n=3: {side} the 1 of clean images"
    )


def test_ud_of_one_run_is_not_judged():
    row = pd.Series({"ud_layers": 0.7, "ud_layers_low": NAN, "ud_layers_high": NAN, "ud_n": 1, "zeros": 0})
    assert in_words.distance(row) == "UD 0.70, n=1: cannot be told from one run"


@pytest.mark.parametrize(
    ("n", "zeros", "told"),
    [
        (3, 2, "UD is 0 in 2 of 3 runs: no layer counts as learnable there"),
        (0, 0, "no UD: the clean runs have too few learnable layers to count by (learnable layers 1 over 2, of 60)"),
    ],
)
def test_why_there_is_no_ud(n, zeros, told):
    row = {"ud_layers": 0.1, "ud_layers_low": NAN, "ud_layers_high": NAN, "counts": "1 over 2, of 60"}
    assert in_words.distance(pd.Series(row | {"ud_n": n, "zeros": zeros})) == told


def test_own_images_stand_among_those_of_the_same_block(tmp_path):
    columns = {"n": 3, "ud_layers": 1.0, "ud_layers_low": np.nan, "ud_layers_high": np.nan}
    summary = frame(clean=[0.9], own=[0.3]).assign(**columns)
    known = frame(em=[0.1], lsp=[0.5], tap__jpeg=[0.0]).assign(**columns)
    table_files.write(known, tmp_path / "known")
    found = in_words.beside(summary, tmp_path / "known.csv")
    assert found["method"].to_dict() == {1: "em", 2: "own", 3: "lsp", 4: "clean"}
    assert in_words.remark(found, "known.csv") == ""
    alone = in_words.beside(summary, None)
    assert alone["method"].tolist() == ["own", "clean"] and in_words.remark(alone, None) == ""


def test_a_share_just_below_0_is_0():
    row = {"question": "depth", "verdict": "not protected", "share": -0.002, "share_low": -0.01, "share_high": 0.004}
    told = list(in_words.sentences(pd.DataFrame([row | {"n": 3}])))
    assert told == ["depth: NOT PROTECTED (0% [-1%, 0%] of what clean images teach is gone, n=3)"]


def test_a_table_of_another_setting_is_remarked_on(tmp_path):
    columns = {"n": 3, "ud_layers": 1.0, "ud_layers_low": np.nan, "ud_layers_high": np.nan}
    summary = frame(own=[0.3]).assign(**columns)
    table_files.write(frame(em=[0.1]).assign(**columns | {"epochs": 20}), tmp_path / "longer")
    found = in_words.beside(summary, tmp_path / "longer.csv")
    assert found["method"].tolist() == ["own"] and "longer.csv has no method of this setting" in in_words.remark(
        found, "longer.csv"
    )


@pytest.mark.parametrize("change", [{"epochs": "many"}, {"drop": "ud_layers"}])
def test_what_is_no_table_of_a_benchmark_is_refused(tmp_path, change):
    columns = {"n": 3, "ud_layers": 1.0, "ud_layers_low": np.nan, "ud_layers_high": np.nan}
    summary = frame(own=[0.3]).assign(**columns)
    bad = summary.drop(columns=change["drop"]) if "drop" in change else summary.assign(**change)
    bad.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match=r"bad\.csv: no .*; run `dvc repro`"):
        in_words.beside(summary, tmp_path / "bad.csv")
