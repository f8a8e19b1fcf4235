"""The table of what poisons are and do, from planted records, and order against published values."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from tests.test_benchmark_tables import frame_of
from ul.base import records
from ul.base.errors import InputError
from ul.tables import poisons as poison_tables
from ul.tables import published

ACCURACY = {
    "clean": [0.9, 0.92, 0.91], "noise": [0.88, 0.91, 0.9], "lsp": [0.3, 0.33, 0.28], "ar": [0.5, 0.52, 0.55],
    "tap": [0.1, 0.12, 0.15],
}  # fmt: skip


def poison(method, recipe="as published", **changes):
    sizes = {"linf": 0.03, "l2": 1.2, "l2_mean": 1.1, "l0": 256, "linf_but_one": 0.03}
    draws = [{"seed": seed, "sizes": sizes, "passes_per_image": 3.0, "separability": 0.5 + seed} for seed in (0, 1)]
    return {"dataset": "toy", "method": method, "recipe": recipe, "eps": 0.0313725, "draws": draws} | changes


def rows(methods=("noise", "lsp", "ar", "tap"), **recipes):
    made = [poison(m, recipes.get(m, "as published")) for m in methods]
    return poison_tables.table(made, frame_of(ACCURACY, ACCURACY)).set_index("method")


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
    both = frame_of(ACCURACY, ACCURACY)
    other = both.assign(dataset="other", test_accuracy=both["test_accuracy"] / 2)
    made = [poison(m) for m in ("noise", "lsp")] + [poison(m, dataset="other") for m in ("noise", "tap")]
    found = poison_tables.table(made, pd.concat([both, other]))
    assert found[["dataset", "method"]].to_numpy().tolist() == [
        ["toy", "noise"], ["toy", "lsp"], ["other", "noise"], ["other", "tap"],
    ]  # fmt: skip
    assert found.loc[3, "test_accuracy"] == pytest.approx(np.mean(ACCURACY["tap"]) / 2)


def test_records_of_several_poisons_are_read_and_a_missing_one_is_named(tmp_path):
    records.save({"poisons": [poison("lsp"), poison("ar")]}, tmp_path / "poison-toy.json")
    records.save({"poisons": [poison("lsp", dataset="other")]}, tmp_path / "poison-b.json")
    found = poison_tables.load(tmp_path, [("toy", "ar"), ("other", "lsp")])
    assert [(one["dataset"], one["method"]) for one in found] == [("toy", "ar"), ("other", "lsp")]
    with pytest.raises(InputError, match="no record of toy em; run `dvc repro` first"):
        poison_tables.load(tmp_path, [("toy", "em")])


def test_a_poison_is_told_of_over_its_draws():
    """Means, but of what a budget bounds the largest."""
    sizes = [{"linf": 0.1, "l2": 1, "l2_mean": 1, "l0": 5}, {"linf": 0.3, "l2": 3, "l2_mean": 3, "l0": 1}]
    draws = [{"passes_per_image": n, "separability": n, "sizes": size} for n, size in enumerate(sizes)]
    wanted = {"passes_per_image": 0.5, "linf": 0.3, "l2": 3, "l2_mean": 2, "l0": 5, "separability": 0.5}
    assert poison_tables.drawn(draws) == wanted
    row = rows().loc["lsp"]
    assert (row["draws"], row["separability"]) == (2, 1)


# ---- Reduced recipes beside published ones ---------------------------------------------------------------------------


def test_recipes_stand_beside_reduced_rows_only(tmp_path):
    found = pd.DataFrame({
        "method": ["tap", "ar"], "accuracy_cpu": [0.2, 0.9], "accuracy_published": [0.1, 0.9],
        "difference": [0.1, 0.0], "difference_low": [-0.1, 0.0], "difference_high": [0.3, 0.0], "accuracy_noise": 0.7,
    })  # fmt: skip
    found.to_csv(tmp_path / "recipes.csv")
    table = rows(tap="cpu").reset_index().assign(dataset="rooms")
    joined = poison_tables.with_recipes(table, tmp_path / "recipes.csv").set_index("method")
    columns = ["noise_500", "cpu_500", "published_500", "cpu_minus_published"]
    columns += ["cpu_minus_published_low", "cpu_minus_published_high"]
    assert joined.loc["tap", columns].tolist() == [0.7, 0.2, 0.1, 0.1, -0.1, 0.3]
    assert joined.loc[["noise", "lsp", "ar"], columns].isna().all(axis=None)
    elsewhere = poison_tables.with_recipes(table.assign(dataset="mnist"), tmp_path / "recipes.csv")
    assert elsewhere[columns].isna().all(axis=None)
    with pytest.raises(InputError, match=r"other\.csv is missing; run `make recipes`"):
        poison_tables.with_recipes(joined.reset_index(), tmp_path / "other.csv")


# ---- Defenses --------------------------------------------------------------------------------------------------------


def run(method, seed, accuracy, defense="none", epochs=20):
    config = {"dataset": "toy", "architecture": "net", "defense": defense, "method": method, "seed": seed}
    return {"config": config | {"recipe": {"epochs": epochs}}, "history": {"test_accuracy": [0.0, accuracy]}}


def runs_of(table):
    """Runs of {(defense, epochs, method): [accuracy of each seed]}."""
    return [run(m, s, a, d, e) for (d, e, m), values in table.items() for s, a in enumerate(values)]


PLANTED = {
    ("none", 20, "clean"): [0.8, 0.9, 0.85], ("none", 20, "lsp"): [0.2, 0.3, 0.2], ("none", 20, "ar"): [0.5, 0.5, 0.6],
    ("jpeg", 20, "clean"): [0.7, 0.75, 0.7], ("jpeg", 20, "lsp"): [0.6, 0.6, 0.7], ("jpeg", 20, "ar"): [0.5, 0.7, 0.6],
    ("none", 60, "clean"): [0.9, 0.9, 0.95], ("none", 60, "lsp"): [0.1, 0.1, 0.2],
    ("long", 60, "clean"): [0.8, 0.8, 0.85], ("long", 60, "lsp"): [0.8, 0.8, 0.85],
}  # fmt: skip


def test_gain_and_protection_are_paired_within_equal_epochs():
    found = poison_tables.defended(runs_of(PLANTED)).set_index(["defense", "method"])
    assert list(found.index) == [("jpeg", "clean"), ("jpeg", "lsp"), ("jpeg", "ar"), ("long", "clean"), ("long", "lsp")]
    row = found.loc[("jpeg", "lsp")]
    gaps = np.array([0.4, 0.3, 0.5])
    low, high = scipy_stats.t.interval(0.95, 2, gaps.mean(), gaps.std(ddof=1) / math.sqrt(3))
    assert row[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([0.4, low, high])
    assert row["protection"] == pytest.approx(np.mean([0.6, 0.6, 0.65]))
    assert row["protection_left"] == pytest.approx(np.mean([0.1, 0.15, 0.0]))
    assert found.loc[("long", "lsp"), "gain"] == pytest.approx(np.mean([0.7, 0.7, 0.65]))
    assert found.loc[("long", "lsp"), "protection_left"] == 0


def test_gains_of_one_defense_are_one_family():
    found = poison_tables.defended(runs_of(PLANTED)).set_index(["defense", "method"])["p_holm"]
    raw = sorted(
        scipy_stats.ttest_rel(PLANTED["jpeg", 20, m], PLANTED["none", 20, m]).pvalue for m in ("clean", "lsp", "ar")
    )
    assert sorted(found["jpeg"])[0] == pytest.approx(3 * raw[0])
    assert found["long"].max() <= 1


@pytest.mark.parametrize("lacking", [("none", 20, "lsp"), ("jpeg", 20, "clean"), ("none", 20, "clean")])
def test_a_run_to_compare_with_is_asked_for(lacking):
    left = {name: values for name, values in PLANTED.items() if name != lacking and name[1] == 20}
    message = f"no run of {lacking[2]} on toy, net, defense {lacking[0]}, 20 epochs"
    with pytest.raises(InputError, match=message):
        poison_tables.defended(runs_of(left))


def test_no_defense_is_an_empty_table():
    left = {name: values for name, values in PLANTED.items() if name[0] == "none"}
    assert poison_tables.defended(runs_of(left)).empty
