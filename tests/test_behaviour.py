"""The table of what poisons are and do, from planted records, and order against published values."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from tests.test_tables import frame_of
from ul import behaviour, published, records
from ul.config import InputError

ACCURACY = {
    "clean": [0.9, 0.92, 0.91], "noise": [0.88, 0.91, 0.9], "lsp": [0.3, 0.33, 0.28], "ar": [0.5, 0.52, 0.55],
    "tap": [0.1, 0.12, 0.15],
}  # fmt: skip


def poison(method, recipe="as published", **changes):
    sizes = {"linf": 0.03, "l2": 1.2, "l2_mean": 1.1, "l0": 256, "linf_but_one": 0.03}
    base = {
        "dataset": "toy",
        "method": method,
        "recipe": recipe,
        "eps": 0.0313725,
        "passes_per_image": 3.0,
        "separability": 0.5,
    }
    return base | {"sizes": sizes, "passes_per_image": 3.0} | changes


def rows(methods=("noise", "lsp", "ar", "tap"), **recipes):
    made = [poison(m, recipes.get(m, "as published")) for m in methods]
    return behaviour.table(made, frame_of(ACCURACY)).set_index("method")


def test_differences_are_paired_by_seed():
    found = rows()
    gaps = np.subtract(ACCURACY["lsp"], ACCURACY["noise"])
    expected = scipy_stats.t.interval(0.95, 2, gaps.mean(), gaps.std(ddof=1) / math.sqrt(3))
    assert found.loc["lsp", "minus_noise"] == pytest.approx(gaps.mean())
    assert found.loc["lsp", ["minus_noise_low", "minus_noise_high"]].tolist() == pytest.approx(expected)
    assert found.loc["lsp", "minus_clean"] == pytest.approx(np.mean(ACCURACY["lsp"]) - np.mean(ACCURACY["clean"]))
    assert found.loc["noise", "minus_noise"] == 0 and (found["n"] == 3).all()


def test_p_values_are_holms_of_the_paired_tests():
    found, tested = rows(), ["lsp", "ar", "tap"]
    raw = {m: scipy_stats.ttest_rel(ACCURACY[m], ACCURACY["noise"]).pvalue for m in tested}
    order = sorted(tested, key=raw.get)
    running, expected = 0.0, {}
    for i, m in enumerate(order):
        running = max(running, raw[m] * (3 - i))
        expected[m] = min(running, 1)
    assert found["p_holm"].drop("noise").to_dict() == pytest.approx(expected)
    assert math.isnan(found.loc["noise", "p_holm"])


def test_published_values_stand_beside_whole_recipes_only():
    found = rows(tap="cpu")
    assert found.loc["lsp", "published"] == 0.1306 and math.isnan(found.loc["tap", "published"])
    assert found["ordered_alike"].to_dict() == {"noise": "", "lsp": "0/1", "ar": "0/1", "tap": ""}


def test_order_is_compared_pair_by_pair():
    assert published.agreeing({"tap": 0.1, "lsp": 0.3, "ar": 0.5}) == {"tap": "2/2", "lsp": "1/2", "ar": "1/2"}
    assert published.agreeing({"lsp": 0.3, "noise": 0.9}) == {}


def test_two_data_sets_are_two_families():
    both = frame_of(ACCURACY)
    other = both.assign(dataset="other", test_accuracy=both["test_accuracy"] / 2)
    made = [poison(m) for m in ("noise", "lsp")] + [poison(m, dataset="other") for m in ("noise", "tap")]
    found = behaviour.table(made, pd.concat([both, other]))
    assert found[["dataset", "method"]].to_numpy().tolist() == [
        ["toy", "noise"], ["toy", "lsp"], ["other", "noise"], ["other", "tap"],
    ]  # fmt: skip
    assert found.loc[3, "test_accuracy"] == pytest.approx(np.mean(ACCURACY["tap"]) / 2)


def test_a_missing_record_is_named(tmp_path):
    records.save(poison("lsp"), tmp_path / "poison-toy-lsp.json")
    assert behaviour.load(tmp_path, ["toy-lsp"])[0]["method"] == "lsp"
    with pytest.raises(InputError, match=r"poison-toy-em\.json is missing; run `dvc repro` first"):
        behaviour.load(tmp_path, ["toy-em"])
