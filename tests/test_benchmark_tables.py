"""Tables and verdicts on hand-made records whose numbers are known."""

import json
import math
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from ul.base import records
from ul.base.errors import InputError
from ul.tables import benchmark, rank_correlations, run_records, table_files

LAYERS, LOW, HIGH = 10, 0.1, 1.0  # clean: half of the layers learnable, beta .55
WEIGHTS = [2**i for i in range(LAYERS)]


def record(
    method,
    learnable,
    accuracy,
    seed,
    *,
    dataset="toy",
    architecture="net",
    defense="none",
    epochs=2,
    trained=2,
    fitted=1.0,
):
    """A record as victims.run writes it: the last `learnable` layers are above the clean threshold."""
    config = {"dataset": dataset, "architecture": architecture, "defense": defense, "method": method, "seed": seed}
    config |= {"recipe": {"epochs": trained}, "limit": None, "eps": 8 / 255, "poison_recipe": "published"}
    config |= {"share": 1.0, "label_noise": 0.0}
    sal = [LOW] * (LAYERS - learnable) + [HIGH] * learnable
    probe = {"layer": [f"l{i}" for i in range(LAYERS)], "sal": sal, "s_max": sal, "s_min": [0.0] * LAYERS}
    probes = [{"epoch": e + 1, **probe, "weights": WEIGHTS} for e in range(epochs)]
    history = {"test_accuracy": [0.1, accuracy], "train_accuracy": [0.1, fitted], "train_loss": [2.0, 0.5]}
    return {"config": config, "history": history, "sal": probes}


COUNTS = {"clean": [5, 5, 5], "noise": [5, 5, 5], "lsp": [1, 2, 1], "em": [0, 0, 0], "tap": [8, 9, 10]}
ACCURACY = {
    "clean": [0.9, 0.92, 0.91], "noise": [0.88, 0.91, 0.9], "lsp": [0.3, 0.33, 0.28], "em": [0.2, 0.2, 0.2],
    "tap": [0.1, 0.12, 0.1],
}  # fmt: skip


PLACES = [
    ("clean", "none", 5), ("noise", "none", 5), ("lsp", "none", 1),
    ("clean", "jpeg", 8), ("noise", "jpeg", 4), ("lsp", "jpeg", 2),
]  # fmt: skip


def runs_of(**place):
    return [record(m, COUNTS[m][s], ACCURACY[m][s], s, **place) for m in COUNTS for s in range(3)]


def frame_of(ud, accuracy=None, late=None):
    """A benchmark frame of one block from {method: [UD of each seed]}, late SAL as UD if not given.

    Without accuracies clean images and noise come to .9, and poisons to about .1: they protect.
    """
    usual = {m: [0.9 if m.startswith(("clean", "noise")) else 0.1 + 0.01 * s for s in range(9)] for m in ud}
    accuracy, late = accuracy or usual, late or ud
    rows = []
    for m, values in ud.items():
        for s, v in enumerate(values):
            row = {"dataset": "toy", "architecture": "net", "defense": "none", "epochs": 2, "method": m, "seed": s}
            row |= {"test_accuracy": accuracy[m][s], "train_accuracy": 1.0, "train_loss": 0.1, "loss_area": 1.0}
            row |= dict.fromkeys(benchmark.UNITS, v) | dict.fromkeys(benchmark.LATE, late[m][s])
            rows.append(row | {"learnable": 5, "clean_learnable": 5, "possible": 20, "comparable": True})
    return pd.DataFrame(rows)[[*run_records.BLOCK, "method", "seed", *benchmark.MEASURED]]


# ---- One row a run -------------------------------------------------------------------------------------------------


def test_benchmark_counts_learnable_layers_and_weights():
    frame = benchmark.benchmark(runs_of())
    assert len(frame) == 15 and frame["test_accuracy"].tolist() == [a for values in ACCURACY.values() for a in values]
    for row in frame.itertuples():
        count = COUNTS[row.method][row.seed]
        assert row.ud_layers == pytest.approx(count / 5)
        assert row.ud_weights == pytest.approx(sum(WEIGHTS[LAYERS - count :]) / sum(WEIGHTS[5:]))


def test_every_run_is_measured_by_its_own_twin():
    """Another seed's and another architecture's clean run have other counts; a defended run uses the undefended one."""
    runs = [record("clean", c, 0.9, s, architecture=a) for a, s, c in (("net", 0, 5), ("net", 1, 4), ("big", 0, 2))]
    runs += [record("lsp", 2, 0.3, s, architecture=a) for a, s in (("net", 0), ("net", 1), ("big", 0))]
    runs += [record("clean", 8, 0.9, 0, defense="jpeg"), record("lsp", 2, 0.5, 0, defense="jpeg")]
    assert benchmark.benchmark(runs)["ud_layers"].tolist() == pytest.approx(
        [1, 1, 1, 2 / 5, 2 / 4, 2 / 2, 8 / 5, 2 / 5]
    )


def test_a_missing_clean_twin_is_named():
    runs = [r for r in runs_of() if (r["config"]["method"], r["config"]["seed"]) != ("clean", 1)]
    with pytest.raises(ValueError, match="no clean run of toy, net, 2 epochs, seed 1"):
        benchmark.benchmark(runs)


def test_other_lengths_and_defenses_have_twins_of_their_own():
    """UD divides by the clean run of as many epochs; ud_own by the one under the same defense, where there is one."""
    runs = [record("clean", 5, 0.9, 0), record("clean", 2, 0.9, 0, trained=60)]
    runs += [record("lsp", 4, 0.3, 0), record("lsp", 4, 0.3, 0, trained=60)]
    runs += [record("lsp", 4, 0.3, 0, defense="jpeg"), record("clean", 8, 0.9, 0, defense="cutout")]
    runs += [record("lsp", 4, 0.3, 0, defense="cutout")]
    frame = benchmark.benchmark(runs)
    assert frame["ud_layers"].tolist() == pytest.approx([1, 1, 4 / 5, 4 / 2, 4 / 5, 8 / 5, 4 / 5])
    assert frame["ud_own"].tolist() == pytest.approx([1, 1, 4 / 5, 4 / 2, math.nan, 1, 4 / 8], nan_ok=True)
    summary = benchmark.by_method(frame)  # without noise
    assert summary.set_index(["defense", "epochs", "method"]).loc[("cutout", 2, "lsp"), "ud_own"] == pytest.approx(0.5)
    assert "accuracy_minus_noise" not in summary


def test_helpers_of_a_record():
    run = record("lsp", 3, 0.5, 0, epochs=4)
    assert run_records.sal_matrix(run).shape == (4, LAYERS) and run_records.sal_matrix(run, "s_min").sum() == 0
    assert run_records.layer_weights(run).tolist() == WEIGHTS
    assert run_records.threshold([record("clean", 5, 0.9, 0)]) == pytest.approx((LOW + HIGH) / 2)


def test_trajectories_are_tidy():
    runs = [record("em", 2, 0.5, 0), record("lsp", 5, 0.5, 1, epochs=3)]
    frame = run_records.trajectories(runs)
    assert len(frame) == (2 + 3) * LAYERS and not frame.isna().any(axis=None)
    assert frame.columns.tolist()[:4] == ["method", "seed", "epoch", "layer"]
    above = frame[frame["sal"] == HIGH].groupby(["method", "seed", "epoch"]).size()
    assert above.to_dict() == {("em", 0, 1): 2, ("em", 0, 2): 2} | {("lsp", 1, e): 5 for e in (1, 2, 3)}
    assert frame["weights"].tolist() == 5 * WEIGHTS


def test_load_reads_conditions_in_order(tmp_path):
    for name, seeds in (("toy-b", 2), ("toy-a", 1)):
        records.save({"runs": [record(name[-1], 1, 0.5, s) for s in range(seeds)]}, tmp_path / f"{name}.json")
    assert [run_records.key(r)[4:] for r in run_records.load(tmp_path, ["toy-b", "toy-a"])] == [
        ("b", 0),
        ("b", 1),
        ("a", 0),
    ]
    assert len(run_records.load(tmp_path, ["toy-b", "toy-b"])) == 2, "a run that two settings hold counts once"
    with pytest.raises(InputError, match=r"toy-c\.json is missing; run `dvc repro` first"):
        run_records.load(tmp_path, ["toy-a", "toy-c"])


# ---- One row a condition -------------------------------------------------------------------------------------------


def interval(row, name):
    return tuple(row[[name, f"{name}_low", f"{name}_high"]])


def test_by_method_gives_scipys_intervals():
    summary = benchmark.by_method(benchmark.benchmark(runs_of())).set_index("method")
    assert summary.index.tolist() == list(COUNTS) and (summary["n"] == 3).all()
    for method, row in summary.iterrows():
        difference = scipy_stats.ttest_rel(ACCURACY[method], ACCURACY["noise"])
        if method != "noise":
            assert interval(row, "accuracy_minus_noise")[1:] == pytest.approx(tuple(difference.confidence_interval()))
        if method != "em":
            logs = np.log(np.array(COUNTS[method]) / 5)
            low, high = (
                scipy_stats.t.interval(0.95, 2, logs.mean(), scipy_stats.sem(logs)) if np.ptp(logs) else (np.nan,) * 2
            )
            wanted = tuple(np.exp([logs.mean(), low, high]))
            assert interval(row, "ud_layers") == pytest.approx(wanted, nan_ok=True)
    assert interval(summary.loc["noise"], "accuracy_minus_noise") == (0, 0, 0)


def test_p_values_are_t_tests_with_holm_over_methods():
    summary = benchmark.by_method(benchmark.benchmark(runs_of())).set_index("method")
    p = {m: scipy_stats.ttest_1samp(np.log(np.array(COUNTS[m]) / 5), 0).pvalue for m in ("lsp", "tap")}
    assert summary["p_ud_layers"].dropna().to_dict() == pytest.approx(p)
    first, second = sorted(p, key=p.get)
    assert summary["p_holm"].dropna().to_dict() == pytest.approx(
        {first: 2 * p[first], second: max(2 * p[first], p[second])}
    )


def test_one_seed_has_estimates_without_intervals():
    runs = [r for r in runs_of() if r["config"]["seed"] == 0]
    row = benchmark.by_method(benchmark.benchmark(runs)).set_index("method").loc["lsp"]
    assert row["ud_layers"] == pytest.approx(0.2) and row["n"] == 1
    assert row[["ud_layers_low", "ud_layers_high", "p_ud_layers", "p_holm"]].isna().all()


@pytest.mark.parametrize("clean", [[5, 5, 5], [5, 3, 4], [2, 9, 8]])
def test_three_zeros_have_no_interval_whatever_the_clean_draws_are(clean):
    """What a zero counts as would be read off the clean runs: two draws of them gave two intervals to the same data."""
    runs = [record("clean", count, 0.9, seed) for seed, count in enumerate(clean)]
    runs += [record("em", 0, 0.2, seed) for seed in range(3)]
    row = benchmark.by_method(benchmark.benchmark(runs)).set_index("method").loc["em"]
    assert (row["ud_layers"], row["zeros"], row["ud_n"]) == (0, 3, 3)
    assert row["counts"] == f"0 over {2 * sum(clean)}, of 60"
    assert row[["ud_layers_low", "ud_layers_high", "p_ud_layers", "p_holm"]].isna().all()


def test_a_clean_twin_that_counts_too_few_carries_no_ud():
    """Of twenty layers and epochs a fifth are four: a twin with two learnable layers carries a UD, one with one not."""
    runs = [record("clean", count, 0.9, seed) for seed, count in enumerate((1, 2, 5))]
    runs += [record("lsp", 1, 0.2, seed) for seed in range(3)]
    frame = benchmark.benchmark(runs)
    own = frame[frame["method"] == "lsp"]
    assert own["ud_layers"].tolist() == pytest.approx([math.nan, 1 / 2, 1 / 5], nan_ok=True)
    assert own["ud_weights"].isna().tolist() == own["ud_own"].isna().tolist() == [True, False, False]
    row = benchmark.by_method(frame).set_index("method").loc["lsp"]
    assert (row["n"], row["ud_n"], row["counts"]) == (3, 2, "6 over 16, of 60")
    assert row["ud_layers"] == pytest.approx(math.sqrt(1 / 10))
    none = benchmark.by_method(frame[frame["seed"] == 0]).set_index("method").loc["lsp"]
    assert none["ud_n"] == 0 and math.isnan(none["ud_layers"])


def test_pooled_clean_runs_give_one_base_to_all_seeds():
    """Thresholds are alike, counts 2, 5 and 8 of ten: each run is divided by 5, whatever its own twin has."""
    runs = [record("clean", count, 0.9, seed) for seed, count in enumerate((2, 5, 8))]
    runs += [record("lsp", 4, 0.2, seed) for seed in range(3)]
    frame = benchmark.benchmark(runs)
    assert frame[frame["method"] == "lsp"]["ud_pooled"].tolist() == pytest.approx([4 / 5] * 3)
    assert frame[frame["method"] == "clean"]["ud_pooled"].tolist() == pytest.approx([2 / 5, 1, 8 / 5])


def test_late_sal_is_a_geometric_mean_over_noise():
    """Ten layers, the last four at HIGH beside the last five of noise: one layer's log is log .1 in all of ten."""
    runs = [record(m, count, 0.9, 0, epochs=4) for m, count in (("clean", 5), ("noise", 5), ("lsp", 4))]
    for probe in runs[2]["sal"][:2]:
        probe["sal"] = [50.0] * LAYERS  # early epochs do not count
    row = benchmark.benchmark(runs).set_index("method").loc["lsp"]
    assert row["late_sal"] == pytest.approx(0.1 ** (1 / 10), rel=1e-6)
    assert row["late_sal_weights"] == pytest.approx(0.1 ** (WEIGHTS[5] / sum(WEIGHTS)), rel=1e-6)
    assert benchmark.benchmark(runs[:1])[["late_sal", "late_sal_weights"]].isna().all(axis=None), "no noise"


def test_what_protects_and_what_is_trained_to_fit():
    accuracy = {"clean": [0.9, 0.91], "noise": [0.88, 0.9], "lsp": [0.3, 0.33], "ar": [0.75, 0.76], "em": [0.1, 0.9]}
    runs = [record(m, 5, a, s, fitted=0.94) for m, values in accuracy.items() for s, a in enumerate(values)]
    summary = benchmark.by_method(benchmark.benchmark(runs)).set_index("method")
    assert summary["protects"].to_dict() == {m: m == "lsp" for m in accuracy}  # ar: too little; em: not in both seeds
    assert summary["fits"].to_dict() == {m: m in ("clean", "noise") for m in accuracy}
    assert not benchmark.fitted(summary) and benchmark.fitted(summary.loc[["clean", "noise"]])
    assert benchmark.protecting(benchmark.benchmark(runs)) == ["lsp"]
    assert summary.loc["lsp", ["train_accuracy", "train_loss", "loss_area"]].tolist() == [0.94, 0.5, 1.25]


def test_seeds_in_short():
    assert benchmark.span([0, 1, 2, 4]) == "0-2, 4" and benchmark.span([3]) == "3" and benchmark.span([]) == ""


def test_blocks_have_their_own_holm():
    runs = runs_of() + runs_of(dataset="other")
    summary = benchmark.by_method(benchmark.benchmark(runs))
    alone = benchmark.by_method(benchmark.benchmark(runs_of()))
    assert summary.groupby("dataset")["p_holm"].max().tolist() == pytest.approx([alone["p_holm"].max()] * 2)


def test_a_defended_condition_keeps_its_ud_against_the_undefended_clean_run():
    runs = [record(m, c, 0.5, s, defense=d) for m, d, c in PLACES for s in range(2)]
    summary = benchmark.by_method(benchmark.benchmark(runs)).set_index(["defense", "method"])
    assert summary["ud_layers"].to_dict() == pytest.approx({(d, m): c / 5 for m, d, c in PLACES})


@pytest.mark.parametrize(
    ("values", "zeros", "said"),
    [([], 0, "too few layers"), ([0.5, 0], 1, "0 in 1 of 2"), ([0.5], 0, "0.50 (one seed)"),
     ([0.5, 0.5], 0, "0.50 (equal in 2)"), ([0.5, 0.5, 0.6], 0, "0.53 [0.41, 0.69]")],
)  # fmt: skip
def test_ud_in_brief(values, zeros, said):
    assert benchmark.in_brief(benchmark.of_ratios(pd.Series(values, dtype=float)), zeros) == said


# ---- Ranks ---------------------------------------------------------------------------------------------------------

SIX = ["rem", "lsp", "ops", "em", "ar", "tap"]


def ranked(*orders):
    """UD rises with the method's place in each seed's order, accuracy along SIX; clean and noise beside them."""
    ud = {m: [1 + order.index(m) for order in orders] for m in SIX} | {m: [1] * len(orders) for m in ("clean", "noise")}
    return frame_of(
        ud, {m: [i / 10] * len(orders) for i, m in enumerate(SIX)} | {"clean": [0.9] * 9, "noise": [0.9] * 9}
    )


def test_ranks_of_planted_orders():
    swapped = ["lsp", "rem", *SIX[2:]]  # one swap of neighbours: rho = 1 - 6 * 2 / (6 * 35)
    rows = rank_correlations.ranks(ranked(SIX, swapped))
    assert rows["unit"].tolist() == ["ud_layers", "ud_weights"]
    row = rows.iloc[0]
    assert (row["methods"], row["seeds"]) == (6, 2)
    z = np.arctanh([1 - 6 / 210, 1 - 12 / 210])  # a perfect order counts as half a swap
    assert row["rho"] == pytest.approx((1 + (1 - 12 / 210)) / 2)
    half = scipy_stats.t.ppf(0.975, 1) * scipy_stats.sem(z)
    assert row["rho_low"] == pytest.approx(np.tanh(z.mean() - half))
    assert row["rho_high"] == pytest.approx(1)  # the mean is half a swap away from it


def test_ranks_of_one_order_have_the_exact_p():
    row = rank_correlations.ranks(ranked(SIX, SIX, SIX)).iloc[0]
    assert (row["rho"], row["rho_of_means"], row["p_exact"]) == pytest.approx((1, 1, 2 / 720))


def test_all_conditions_together_have_a_row_of_their_own():
    """Within each block UD and accuracy agree; that levels differ between blocks is no order of methods."""
    low, high = ranked(SIX, SIX), ranked(SIX, SIX).assign(defense="jpeg")
    high = high.assign(ud_layers=high["ud_layers"] + 10, test_accuracy=high["test_accuracy"] - 5)
    rows = rank_correlations.ranks(pd.concat([low, high]))
    rows = rows[rows["unit"] == "ud_layers"].set_index("defense")
    assert rows["rho_of_means"].round(6).to_dict() == {"none": 1, "jpeg": 1, "all": 1}
    assert rows["methods"].to_dict() == {"none": 6, "jpeg": 6, "all": 12}


def test_all_conditions_together_use_the_seeds_that_all_have():
    """A block with fewer seeds, and one of another length, which is a condition of its own."""
    few = ranked(SIX, SIX).assign(defense="jpeg")
    rows = rank_correlations.ranks(
        pd.concat([ranked(SIX, SIX, SIX[::-1]), few, ranked(SIX, SIX, SIX).assign(epochs=60)])
    )
    row = rows[(rows["unit"] == "ud_layers") & (rows["defense"] == "all")].iloc[0]
    assert (row["methods"], row["seeds"]) == (18, 2)


def test_two_methods_have_no_rank_correlation():
    found = rank_correlations.rank_correlation(
        frame_of({"clean": [1, 1], "noise": [1, 1], "em": [1, 0.9], "lsp": [0.2, 0.3]})
    )
    assert found["interval"] is None and found["methods"] == 2 and math.isnan(found["rho_of_means"])


def test_ud_that_does_not_vary_has_no_order():
    found = rank_correlations.rank_correlation(
        frame_of({m: [1.0, 1.0] for m in SIX}, {m: [i, i] for i, m in enumerate(SIX)})
    )
    assert found["interval"] is None and found["p"] == 1


# ---- Files ---------------------------------------------------------------------------------------------------------


def test_written_tables_are_read_back(tmp_path):
    frame = pd.DataFrame({"method": ["em_classwise", "b & c %"], "ud": [0.123456, float("nan")], "n": [3, 12345]})
    table_files.write(frame, tmp_path / "new" / "table")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["table.csv", "table.md", "table.tex"]
    rounded = frame.assign(ud=[0.1235, float("nan")])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "table.csv"), rounded)
    text = (tmp_path / "new" / "table.md").read_text()
    assert text.endswith("|\n") and not text.endswith("\n\n")
    markdown = pd.read_csv(StringIO(text), sep="|", skiprows=[1], skipinitialspace=True).iloc[:, 1:-1]
    markdown = markdown.rename(columns=str.strip).map(lambda v: v.strip() if isinstance(v, str) else v)
    pd.testing.assert_frame_equal(markdown.astype({"ud": float}), rounded)
    tex = (tmp_path / "new" / "table.tex").read_text()
    assert r"em\_classwise & 0.123" in tex and r"b \& c \% & " in tex and tex.endswith("\\end{tabular}\n")
    assert frame["ud"][0] == 0.123456, "the frame was changed"


def test_metrics_are_json_by_data_set_and_method(tmp_path):
    summary = benchmark.by_method(benchmark.benchmark(runs_of()))
    table_files.write_metrics(summary, tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert list(found) == ["toy"] and found["toy"].keys() == COUNTS.keys()
    ones = dict.fromkeys(("ud_layers", "ud_weights", "ud_pooled", "late_sal"), 1)
    assert found["toy"]["clean"] == {"test_accuracy": pytest.approx(0.91)} | ones
    assert "ud_layers" not in _metrics_of_too_few(tmp_path)["toy"]["clean"], "what is not known is left out"


def _metrics_of_too_few(folder):
    runs = [record("clean", 1, 0.9, seed) for seed in range(2)]
    table_files.write_metrics(benchmark.by_method(benchmark.benchmark(runs)), folder / "few.json")
    return json.loads((folder / "few.json").read_text())


def test_differences_name_the_condition(tmp_path):
    for name, shift in (("a", 0), ("b", 0.08)):
        frame = benchmark.benchmark(runs_of()).assign(test_accuracy=lambda f, s=shift: f["test_accuracy"] + s)
        table_files.write(benchmark.by_method(frame), tmp_path / name / "tables" / "benchmark" / "ud_by_data")
    assert table_files.differences(tmp_path / "a", tmp_path / "a") == []
    found = table_files.differences(tmp_path / "a", tmp_path / "b")
    assert len(found) == 5 and found[0].startswith("toy net none 2 clean test_accuracy: 0.91 and 0.99")


def test_different_runs_of_one_key_are_refused(tmp_path):
    for name, limit in (("a", None), ("b", 7)):
        run = record("lsp", 1, 0.5, 0)
        run["config"]["limit"] = limit
        records.save({"runs": [run]}, tmp_path / f"{name}.json")
    with pytest.raises(InputError, match=r"b\.json: toy net none 2 lsp 0 differs from another setting's"):
        run_records.load(tmp_path, ["a", "b"])
