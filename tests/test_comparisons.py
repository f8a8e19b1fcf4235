"""What defenses and architectures do to UD, on planted runs; the verdicts on C6 and C7."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import stats as scipy_stats

from tests.test_benchmark_tables import HIGH, LAYERS, LOW, frame_of, record
from ul.figures import charts
from ul.tables import benchmark, claims, comparisons, published
from ul.tables.rules import FAILS, HOLDS, NOT_TESTED, UNDECIDED

WIGGLE = (1.0, 1.1, 0.9)


def block(ud, **place):
    """UD by method, each with a little spread over three seeds."""
    frame = frame_of({"clean": [1, 1, 1], "noise": [1, 1, 1], **{m: [v * w for w in WIGGLE] for m, v in ud.items()}})
    return frame.assign(**place)


def grown(**factors):
    """LSP and EM at .2 and .5 without a defense, times a factor under each defense."""
    ud = {"lsp": 0.2, "em": 0.5}
    parts = [block(ud), *(block({m: v * f for m, v in ud.items()}, defense=d) for d, f in factors.items())]
    return pd.concat(parts, ignore_index=True)


def test_gains_are_mean_log_ratios_paired_by_seed():
    frame = grown(jpeg=4, cutout=2)
    frame.loc[(frame["defense"] == "jpeg") & (frame["method"] == "em") & (frame["seed"] == 0), "ud_layers"] *= 1.5
    found = comparisons.defense_gains(frame).set_index("defense")
    values = np.log([4, 4, 4]) + np.array([np.log(1.5) / 2, 0, 0])
    low, high = scipy_stats.t.interval(0.95, 2, values.mean(), scipy_stats.sem(values))
    assert found.loc["jpeg", ["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([values.mean(), low, high])
    assert found.loc["cutout", "gain"] == pytest.approx(np.log(2)) and (found["methods"] == 2).all()
    assert found.loc["cutout", "jpeg_more"] == pytest.approx(values.mean() - np.log(2))
    assert math.isnan(found.loc["jpeg", "jpeg_more"])


def test_gains_use_the_poisons_that_all_defenses_have_and_runs_of_equal_length():
    frame = grown(jpeg=4)
    long = pd.concat([block({"lsp": 0.1}, epochs=60), block({"lsp": 0.3}, epochs=60, defense="ueraser")])
    found = comparisons.defense_gains(pd.concat([frame, long], ignore_index=True)).set_index("defense")
    assert found["gain"].to_dict() == pytest.approx({"jpeg": np.log(4), "ueraser": np.log(3)})
    assert found["methods"].to_dict() == {"jpeg": 2, "ueraser": 1}


def test_defenses_without_a_shared_poison_have_their_own_gains():
    other = pd.concat([block({"ops": 0.1}), block({"ops": 0.4}, defense="mixup")])
    other = other[(other["method"] == "ops") | ((other["method"] == "clean") & (other["defense"] == "mixup"))]
    frame = pd.concat([grown(jpeg=4), other], ignore_index=True)
    found = comparisons.defense_gains(frame).set_index("defense")
    assert found["gain"].to_dict() == pytest.approx({"jpeg": np.log(4), "mixup": np.log(4)})
    assert found["jpeg_more"].isna().all(), "nothing to compare"
    verdicts = claims.verdicts(grown(), defended=comparisons.defense_gains(frame)).set_index("claim")
    assert verdicts.loc["C6", "verdict"] == UNDECIDED


def test_gains_are_net_of_what_a_defense_does_to_clean_images():
    """Three times as many layers under JPEG on clean images too: of a poison's factor of 4 only 4/3 is the poison's."""
    frame = grown(jpeg=4)
    clean = (frame["method"] == "clean") & (frame["defense"] == "jpeg")
    frame.loc[clean, "ud_layers"] = [3.0, 3.3, 2.7]
    found = comparisons.defense_gains(frame).iloc[0]
    assert found["gain"] == pytest.approx(np.log(4) - np.log([3.0, 3.3, 2.7]).mean())
    assert found["on_clean"] == pytest.approx(np.log([3.0, 3.3, 2.7]).mean()) and found["seeds"] == "0-2"


def test_a_poison_whose_ud_is_zero_has_no_gain():
    frame = grown(jpeg=4, cutout=2)
    frame.loc[(frame["method"] == "em") & (frame["defense"] == "none"), "ud_layers"] = 0.0
    found = comparisons.defense_gains(frame).set_index("defense")
    assert found["methods"].to_dict() == {"cutout": 1, "jpeg": 1} and found["gain"]["jpeg"] == pytest.approx(np.log(4))


def test_where_noise_has_another_ud_than_clean_images_nothing_is_decided():
    frame = grown(jpeg=4, cutout=2)
    frame["ud_layers"] *= np.exp(np.random.default_rng(0).normal(0, 0.01, len(frame)))
    frame.loc[frame["method"] == "noise", "ud_layers"] *= 0.7
    row = claims.verdicts(grown(), defended=comparisons.defense_gains(frame)).set_index("claim").loc["C6"]
    assert row["verdict"] == NOT_TESTED and row["measured"].startswith("noise has a UD of 0.70 here")


def test_one_seed_has_a_gain_without_an_interval():
    frame = grown(jpeg=4, cutout=2)
    gains = comparisons.defense_gains(frame[frame["seed"] == 0])
    assert gains["gain"].tolist() == pytest.approx([np.log(2), np.log(4)]) and gains["gain_low"].isna().all()
    verdict = claims.verdicts(grown(), defended=gains).set_index("claim").loc["C6"]
    assert verdict["verdict"] == UNDECIDED and verdict["n"] == 1


def test_poisons_never_run_bare_have_no_gain():
    frame = pd.concat([block({"lsp": 0.1}), block({"em": 0.4}, defense="jpeg")], ignore_index=True)
    assert comparisons.defense_gains(frame).empty


def test_class_wise_noise_is_no_poison():
    frame = pd.concat([grown(jpeg=4), block({"noise_classwise": 9}, defense="jpeg"), block({"noise_classwise": 1})])
    frame = frame.drop_duplicates(["defense", "method", "seed"])
    assert comparisons.defense_gains(frame)["gain"].tolist() == pytest.approx([np.log(4)])


def test_a_seed_that_one_method_lacks_counts_for_none():
    frame = grown(jpeg=4)
    lacking = (frame["method"] == "em") & (frame["seed"] == 2) & (frame["defense"] == "jpeg")
    assert comparisons.defense_gains(frame[~lacking])["n"].tolist() == [2]


def test_without_a_defense_there_is_no_gain():
    assert comparisons.defense_gains(grown()).empty


@pytest.mark.parametrize(
    "factors, verdict",
    [
        ({"jpeg": 4, "cutout": 2}, HOLDS), ({"jpeg": 2, "cutout": 4}, FAILS), ({"jpeg": 0.5, "cutout": 0.2}, FAILS),
        ({"jpeg": 4, "cutout": 0.5}, FAILS), ({"jpeg": 4, "cutout": 1}, UNDECIDED),
        ({"jpeg": 4}, NOT_TESTED), ({"cutout": 4, "mixup": 2}, NOT_TESTED), ({"jpeg": 4, "a": 2, "b": 8}, FAILS),
    ],
)  # fmt: skip
def test_planted_gains_decide_c6(factors, verdict):
    frame = grown(**factors)
    rng = np.random.default_rng(0)
    frame["ud_layers"] *= np.exp(rng.normal(0, 0.01, len(frame)))
    gains = comparisons.defense_gains(frame)
    row = claims.verdicts(grown(), defended=gains).set_index("claim").loc["C6"]
    assert row["verdict"] == verdict and row["n"] == 3 and "over 2 poisons" in row["measured"]


def networks(vit, lenet=0.3, clean=0.95):
    """clean: the transformer's accuracy on clean images; the CNNs have .9."""
    parts = [block({"lsp": 0.2, "em": 0.5}, architecture="resnet8")]
    parts += [block({"lsp": lenet, "em": lenet}, architecture="lenet5"), block(vit, architecture="vit_tiny")]
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[(frame["architecture"] == "vit_tiny") & (frame["method"] == "clean"), "test_accuracy"] = clean
    frame["ud_layers"] *= np.exp(np.random.default_rng(0).normal(0, 0.01, len(frame)))
    return frame


def test_the_transformer_is_held_against_the_largest_cnn():
    found = comparisons.stronger(networks({"lsp": 0.6, "em": 0.6})).set_index("method")
    wanted = {"lsp": np.log(0.6 / 0.3), "em": np.log(0.6 / 0.5), comparisons.POOLED: np.log(2 * 1.2) / 2}
    assert found["more"].to_dict() == pytest.approx(wanted, abs=0.05)
    assert (found["n"] == 3).all() and found["p_holm"].notna().sum() == 2


@pytest.mark.parametrize(
    "vit, verdict",
    [
        ({"lsp": 0.9, "em": 0.9}, HOLDS), ({"lsp": 0.1, "em": 0.1}, FAILS), ({"lsp": 0.305, "em": 0.495}, UNDECIDED),
    ],
)  # fmt: skip
def test_planted_networks_decide_c7(vit, verdict):
    compared = comparisons.stronger(networks(vit))
    row = claims.verdicts(grown(), compared=compared).set_index("claim").loc["C7"]
    assert row["verdict"] == verdict and row["n"] == 3


def test_a_weaker_transformer_tests_nothing():
    """What the claim is about is the stronger network."""
    compared = comparisons.stronger(networks({"lsp": 0.9, "em": 0.9}, clean=0.85))
    row = claims.verdicts(grown(), compared=compared).set_index("claim").loc["C7"]
    assert row["verdict"] == NOT_TESTED
    assert row["measured"].startswith("vit_tiny is the weaker network (0.85 and 0.90 on clean images)")


def test_zeros_are_left_out():
    parts = [block({"lsp": 0.0, "em": 0.5}, architecture=name) for name in ("resnet8", "vit_tiny")]
    found = comparisons.stronger(pd.concat(parts, ignore_index=True))
    assert found["method"].tolist() == ["em", comparisons.POOLED] and found["more"].tolist() == pytest.approx([0, 0])


def test_a_verdict_is_about_one_place():
    """The first data set's; another's rows do not enter."""
    frames = [networks({"lsp": 0.9, "em": 0.9}), networks({"lsp": 0.1, "em": 0.1}).assign(dataset="toz")]
    compared = comparisons.stronger(pd.concat(frames, ignore_index=True))
    row = claims.verdicts(grown(), compared=compared).set_index("claim").loc["C7"]
    assert row["verdict"] == HOLDS and row["measured"].count("lsp") == 1


def test_c7_needs_half_of_the_methods():
    """One method far above, two a little below: the mean is above 0, most methods are not."""
    parts = [block({"lsp": 0.2, "em": 0.5, "ar": 0.5}, architecture="resnet8")]
    parts.append(block({"lsp": 2.0, "em": 0.45, "ar": 0.45}, architecture="vit_tiny"))
    parts[1].loc[parts[1]["method"] == "clean", "test_accuracy"] = 0.95
    compared = comparisons.stronger(pd.concat(parts, ignore_index=True))
    assert compared.set_index("method").loc[comparisons.POOLED, "more_low"] > 0
    assert claims.verdicts(grown(), compared=compared).set_index("claim").loc["C7", "verdict"] == UNDECIDED


def test_one_kind_of_network_is_not_compared():
    assert comparisons.stronger(block({"lsp": 0.2}, architecture="resnet8")).empty


def test_sal_by_epoch_is_a_geometric_mean_over_layers():
    """Ten layers at 1 beside five at 1 and five at .1: the mean log ratio is log(10) / 2 in every seed and epoch."""
    runs = [record("clean", 5, 0.9, s) for s in range(3)] + [record("tap", 10, 0.1, s) for s in range(3)]
    found = comparisons.sal_by_epoch(runs)
    assert found["epoch"].tolist() == [1, 2] and (found["n"] == 3).all()
    assert found[["sal_ratio", "sal_ratio_low", "sal_ratio_high"]].to_numpy() == pytest.approx(math.sqrt(10))


def test_plain_settings_come_first():
    names = ["rooms-jpeg", "rooms-vit_tiny", "mnist-jpeg"]
    assert comparisons.with_bases(names) == ["rooms", "mnist", *names] and comparisons.with_bases([]) == []


def test_bump_lines_are_ranks_where_a_method_has_a_value():
    wide = pd.DataFrame({"none": [0.2, 0.9, 0.5], "jpeg": [0.8, 0.1, np.nan]}, index=["lsp", "em", "ar"])
    _, ax = plt.subplots()
    lines = [line.get_xydata().tolist() for line in charts.bumps(ax, wide, label="toy").lines]
    assert lines == [[[0, 3], [1, 1]], [[0, 1], [1, 2]], [[0, 2]]]
    assert {text.get_text() for text in ax.texts} == {"lsp", "em", "ar"} and ax.yaxis_inverted()
    tied = charts.bumps(plt.subplots()[1], wide.assign(jpeg=0.5), label="toy")
    assert [text.get_text() for text in tied.texts] == ["lsp, em, ar"], "names that would lie on each other"
    plt.close("all")


# ---- Published values ----------------------------------------------------------------------------------------------


def test_published_values_belong_to_their_very_condition():
    assert published.values("cifar10", "resnet18", "none", "em") == {
        "published_accuracy": 0.2078,
        "published_ud": 0.139,
    }
    assert published.values("cifar10", "resnet18", "jpeg", "tap")["published_accuracy"] == 0.8408
    elsewhere = [("rooms", "resnet8", "none", "em"), ("cifar10", "resnet8", "none", "em")]
    elsewhere += [("cifar10", "resnet18", "orthogonal", "em")]
    assert all(math.isnan(v) for place in elsewhere for v in published.values(*place).values())


@pytest.mark.parametrize("defense", published.DEFENDED)
def test_every_published_defense_lists_the_nine_methods(defense):
    row = published.DEFENDED[defense]
    assert set(row) == set(published.CIFAR10) - {"sep"} and all(0 < v < 1 for v in row.values())


# ---- At equal training loss ----------------------------------------------------------------------------------------


def ended(method, learnable, seed, loss, trained=60):
    run = record(method, learnable, 0.5, seed, trained=trained)
    run["history"]["train_loss"] = [2.0, loss]
    return run


def test_a_poison_is_compared_with_the_clean_run_that_ends_nearest_to_its_loss():
    runs = [ended("clean", 5, s, 0.4) for s in (0, 1)] + [ended("clean", 2, s, 0.05, trained=150) for s in (0, 1)]
    runs += [ended("lsp", n, s, 0.05) for s, n in enumerate((1, 3))] + [ended("noise", 5, s, 0.45) for s in (0, 1)]
    found = comparisons.at_equal_loss(runs).set_index("method")
    assert list(found.index) == ["lsp", "noise"]
    assert found["clean_epochs"].to_dict() == {"lsp": "150", "noise": "60"}
    assert found["clean_loss"].to_dict() == pytest.approx({"lsp": 0.05, "noise": 0.4})
    assert (found["n"] == 2).all() and (found["seeds"] == 2).all()
    step = np.log(HIGH / LOW) / LAYERS  # one layer more above the threshold
    low, high = scipy_stats.t.interval(0.95, 1, 0, scipy_stats.sem([-step, step]))
    ends = found.loc["lsp", ["sal_ratio", "sal_ratio_low", "sal_ratio_high"]].astype(float).tolist()
    assert ends == pytest.approx([1, np.exp(low), np.exp(high)])
    assert found.loc["noise", "sal_ratio"] == pytest.approx(1)


@pytest.mark.parametrize("loss", [0.02, 0.9])
def test_losses_that_are_not_equal_are_not_compared(loss):
    """Clean images that ended higher, and lower: SAL would be compared at two heights of the loss."""
    runs = [ended("clean", 5, s, 0.2) for s in (0, 1)] + [ended("em", 1, 0, loss), ended("em", 3, 1, 0.19)]
    found = comparisons.at_equal_loss(runs)
    assert found["n"].tolist() == [1] and found["seeds"].tolist() == [2]
    assert found["sal_ratio"].tolist() == pytest.approx([(LOW / HIGH) ** (2 / LAYERS)])
    assert found["sal_ratio_low"].isna().all(), "one seed has no interval"
    none = comparisons.at_equal_loss(runs[:3])
    assert none["n"].tolist() == [0] and none["sal_ratio"].isna().all()
    assert comparisons.at_equal_loss(runs[2:]).empty, "no clean run to compare with"


# ---- Along training, and for how long ------------------------------------------------------------------------------


def test_sal_stands_beside_the_loss_of_its_epoch():
    runs = [ended(m, n, s, loss) for m, n, loss in (("clean", 5, 0.4), ("lsp", 2, 0.1)) for s in (0, 1)]
    runs[1]["history"]["train_loss"] = [8.0, 0.4]
    found = comparisons.along_training(runs).set_index(["method", "epoch"])
    assert found["n"].eq(2).all() and list(found.index) == [("clean", 1), ("clean", 2), ("lsp", 1), ("lsp", 2)]
    assert found["train_loss"].tolist() == pytest.approx([4.0, 0.4, 2.0, 0.1]), "a geometric mean over seeds"
    mean = {n: np.exp((n * np.log(HIGH) + (LAYERS - n) * np.log(LOW)) / LAYERS) for n in (5, 2)}
    assert found["sal"].tolist() == pytest.approx([mean[5], mean[5], mean[2], mean[2]])


def test_lengths_are_compared_by_the_methods_that_all_of_them_have():
    methods = ("clean", "noise", "lsp", "em")
    runs = [record(m, 5, 0.9, s, trained=60) for m in methods for s in (0, 1)]
    runs += [record(m, 5, 0.9, s, trained=20, fitted=0.5) for m in methods[:3] for s in (0, 1)]
    runs += [record(m, 5, 0.9, s, dataset="other") for m in methods for s in (0, 1)]
    found = comparisons.by_length(runs)
    assert set(found["dataset"]) == {"toy"}, "the other has one length"
    assert found["epochs"].tolist() == [20] * 3 + [60] * 3 and set(found["method"]) == set(methods[:3])
    assert found["fits"].tolist() == [False] * 3 + [True] * 3
    assert comparisons.by_length(runs[:8]).empty


def test_trails_end_in_their_largest_point():
    frame = pd.DataFrame({"method": ["lsp"] * 3, "loss": [1.0, 0.1, 0.01], "sal": [2.0, 1.0, 0.5]})
    ax = charts.trails(plt.figure().gca(), frame, x="loss", y="sal", labels=("loss", "SAL"))
    (line, end), (x, y) = ax.lines, (ax.get_xscale(), ax.get_yscale())
    assert line.get_xydata().tolist() == [[1, 2], [0.1, 1], [0.01, 0.5]] and x == y == "log"
    assert end.get_xydata().tolist() == [[0.01, 0.5]] and end.get_markersize() > line.get_markersize()


# ---- The paper and its code ----------------------------------------------------------------------------------------


def headline(**changes):
    """Records as of CIFAR-10 with ResNet-18."""
    recipe = {"epochs": 30, "batch_size": 128, "lr": 0.1, "warmup": 0.2}
    found = []
    for method, seed in ((m, s) for m in ("clean", "em") for s in (3, 4)):
        run = record(method, 5 if method == "clean" else 1 + seed, 0.5, seed)
        draw = 0 if method == "clean" else seed
        run["config"] |= {"dataset": "cifar10", "architecture": "resnet18", "poison_seed": draw, "recipe": recipe}
        run["config"] |= {"sal": {"images": 512, "steps": 20}, "probes": [1, 2], **changes}
        run["data"] = {"train_images": 10_000, "test_images": 5_000}
        found.append(run)
    return found


def test_our_setting_stands_beside_the_papers_as_its_records_tell():
    runs = headline()
    found = published.beside(runs, benchmark.by_method(benchmark.benchmark(runs))).set_index("what")
    assert list(found.index) == list(published.SETUPS) and found.loc["UD of em", "paper"] == "0.139"
    assert found.loc["training images", "here"] == "10,000" and found.loc["seeds", "here"] == "2 (3 to 4)"
    assert found.loc["epochs, batch", "here"] == "30, 128" and "2 draws" in found.loc["poison", "here"]
    assert re.fullmatch(r"0\.89 \[\S+, \S+\]", found.loc["UD of em", "here"]), "the geometric mean of 4/5 and 5/5"
    assert found.loc["UD of tap", "here"] == "none", "it was not run"


@pytest.mark.parametrize("changes", [{"dataset": "mnist"}, {"architecture": "resnet8"}, {"defense": "jpeg"}])
def test_other_settings_have_nothing_beside_them(changes):
    assert published.beside(headline(**changes), pd.DataFrame()).empty
