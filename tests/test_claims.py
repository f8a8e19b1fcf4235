"""The paper's claims: rules over intervals, and verdicts on planted frames."""

import math

import pytest

from tests.test_benchmark_tables import SIX, frame_of, ranked
from ul.base.stats import Interval
from ul.tables import claims, rules
from ul.tables.rules import FAILS, HOLDS, NOT_TESTED, UNDECIDED, Side


@pytest.mark.parametrize(
    "low, high, above, verdict",
    [
        (1.1, 1.3, True, HOLDS), (0.7, 0.9, True, FAILS), (0.9, 1.1, True, UNDECIDED),
        (1.1, 1.3, False, FAILS), (0.7, 0.9, False, HOLDS), (0.9, 1.1, False, UNDECIDED),
        (1.0, 1.0, True, UNDECIDED), (1.0, 1.2, True, UNDECIDED), (0.8, 1.0, False, UNDECIDED),
        (math.nan, math.nan, True, UNDECIDED), (math.nan, math.nan, False, UNDECIDED),
    ],
)  # fmt: skip
def test_side_of_an_interval(low, high, above, verdict):
    assert rules.side(Interval((low + high) / 2, low, high, 3), 1, above=above) == verdict


@pytest.mark.parametrize(
    "found, verdict",
    [
        ([HOLDS, HOLDS], HOLDS), ([HOLDS, UNDECIDED], UNDECIDED), ([UNDECIDED, FAILS], FAILS),
        ([HOLDS], NOT_TESTED), ([UNDECIDED], NOT_TESTED), ([FAILS], FAILS), ([], NOT_TESTED),
    ],
)  # fmt: skip
def test_a_rule_over_methods(found, verdict):
    sides = {name: Side(kind) for name, kind in zip("ab", found, strict=False)}
    assert rules.all_of(sides, ["a", "b"]) == verdict


@pytest.mark.parametrize(("p", "verdict"), [(0.04, UNDECIDED), (0.012, FAILS)])
def test_one_of_four_that_fails_by_chance_decides_nothing(p, verdict):
    """Four times .04 is no evidence, four times .012 is."""
    sides = {name: Side(HOLDS, q) for name, q in zip("abc", (0.3, 0.5, 0.9), strict=True)} | {"d": Side(FAILS, p)}
    assert rules.all_of(sides, list("abcd")) == verdict


@pytest.mark.parametrize(
    "found, verdict",
    [
        ([HOLDS] * 3, HOLDS), ([HOLDS] * 3 + [FAILS], HOLDS), ([HOLDS] * 2 + [UNDECIDED], UNDECIDED),
        ([HOLDS] * 2 + [FAILS], FAILS), ([HOLDS] * 2, NOT_TESTED), ([FAILS] * 2, NOT_TESTED),
    ],
)  # fmt: skip
def test_a_rule_for_three_methods(found, verdict):
    assert rules.several(dict(enumerate(found))) == verdict


BELOW, AT, ABOVE = [0.2, 0.21, 0.22], [0.8, 1.0, 1.25], [1.6, 1.65, 1.7]
FLAT = [1.0, 1.0, 1.0]


def verdict_of(claim, *, noise=FLAT, accuracy=None, **ud):
    values = {"clean": FLAT, "noise": noise, **ud}
    usual = {m: [0.9 if m in ("clean", "noise") else 0.1 + 0.01 * s for s in range(3)] for m in values}
    frame = frame_of(values, usual | (accuracy or {}))
    return claims.verdicts(frame).set_index("claim").loc[claim]


@pytest.mark.parametrize("claim", ["C3", "C5"])
@pytest.mark.parametrize(
    "changed, verdict",
    [
        ({}, HOLDS), ({"em": ABOVE}, FAILS), ({"tap": BELOW}, FAILS), ({"ar": AT}, UNDECIDED),
        ({"ops": None}, NOT_TESTED), ({"ops": None, "em": ABOVE}, FAILS), ({"em": [0, 0, 0]}, UNDECIDED),
    ],
)  # fmt: skip
def test_planted_frames_decide_c3_and_c5(claim, changed, verdict):
    ud = {"em": BELOW, "ops": BELOW, "ar": BELOW, "lsp": BELOW, "tap": ABOVE} | changed
    row = verdict_of(claim, **{m: v for m, v in ud.items() if v})
    assert row["verdict"] == verdict and row["n"] == 3 and row["seeds"] == "0-2"
    assert ("no run of ops yet" in row["measured"]) == (ud["ops"] is None)


def test_tap_may_equal_noise_in_c3_and_must_lie_above_clean_in_c5():
    ud = {"em": BELOW, "ops": BELOW, "ar": BELOW, "lsp": BELOW, "tap": [0.98, 1.0, 1.02]}
    assert verdict_of("C3", **ud)["verdict"] == HOLDS and verdict_of("C5", **ud)["verdict"] == UNDECIDED


@pytest.mark.parametrize("claim", ["C3", "C5"])
def test_a_poison_that_does_not_protect_is_not_counted(claim):
    ud = {"em": BELOW, "ops": ABOVE, "ar": BELOW, "lsp": BELOW, "tap": ABOVE}
    row = verdict_of(claim, accuracy={"ops": [0.85, 0.86, 0.87]}, **ud)
    assert row["verdict"] == NOT_TESTED and row["measured"].endswith("not counted here: ops")


@pytest.mark.parametrize(("method", "accuracy"), [("clean", 0.9), ("lsp", 0.94), ("noise", 0.5)])
def test_networks_that_are_not_trained_to_fit_decide_nothing(method, accuracy):
    frame = frame_of({"clean": FLAT, "noise": FLAT, **dict.fromkeys(("em", "ops", "ar", "lsp"), BELOW), "tap": ABOVE})
    assert set(claims.verdicts(frame).set_index("claim").loc[["C3", "C5"], "verdict"]) == {HOLDS}
    frame.loc[frame["method"] == method, "train_accuracy"] = accuracy
    rows = claims.verdicts(frame).set_index("claim").loc[["C3", "C4", "C5"]]
    assert (rows["verdict"] == NOT_TESTED).all()
    assert rows["measured"].str.endswith(f"(training accuracy {accuracy:.2f} on {method})").all()


@pytest.mark.parametrize("noise", [[0.5, 0.52, 0.51], [0.0, 0.1, 0.1], [1.4, 1.4, 1.41]])
def test_where_noise_has_another_ud_than_clean_images_no_ud_counts(noise):
    ud = {"em": BELOW, "ops": BELOW, "ar": BELOW, "lsp": BELOW, "tap": ABOVE}
    row = verdict_of("C5", noise=noise, **ud)
    assert row["verdict"] == NOT_TESTED and "so the setting shows none" in row["measured"]


@pytest.mark.parametrize(
    "orders, verdict",
    [([SIX] * 3, HOLDS), ([SIX[::-1]] * 3, FAILS), ([SIX, SIX[::-1], SIX], UNDECIDED)],
)
def test_planted_orders_decide_c4(orders, verdict):
    found = claims.verdicts(protected(*orders)).set_index(["claim", "part"]).loc["C4"]
    assert found["verdict"].to_dict() == {"layers": verdict, "weights": verdict} and (found["n"] == 3).all()


def protected(*orders):
    """`ranked` with accuracies low enough to protect, in the same order."""
    frame = ranked(*orders)
    poisons = ~frame["method"].isin(["clean", "noise"])
    return frame.assign(test_accuracy=frame["test_accuracy"].where(~poisons, frame["test_accuracy"] / 2))


def test_c4_with_four_methods_is_undecided():
    frame = protected(SIX, SIX, SIX)
    found = claims.verdicts(frame[~frame["method"].isin(["ar", "em"])]).set_index("claim").loc["C4"].iloc[0]
    assert found["verdict"] == UNDECIDED and "over 4 methods" in found["measured"]


def test_all_claims_are_listed_with_their_rules():
    found = claims.verdicts(frame_of({"clean": FLAT, "noise": FLAT, "em": BELOW}))
    assert found["claim"].tolist() == ["C1", "C1", "C2", "C3", "C4", "C4", "C5", "C6", "C7", "C8"]
    assert found["claim"].drop_duplicates().tolist() == list(claims.CLAIMS)
    assert found.columns.tolist() == claims.COLUMNS
    assert (found[["text", "source", "rule"]].map(len) > 5).all(axis=None)
    untested = found.set_index("claim").loc[["C1", "C2", "C6", "C7", "C8"]]
    assert (untested["verdict"] == NOT_TESTED).all() and (untested["n"] == 0).all()


def test_runs_that_the_rules_were_made_from_decide_nothing():
    table = claims.verdicts(frame_of({"clean": FLAT, "noise": FLAT, **dict.fromkeys(SIX, BELOW)}))
    found = claims.undecided_by(table)
    assert set(found["verdict"]) == {rules.NOT_RUN} and found["seen"].tolist() == table["verdict"].tolist()
    assert table["verdict"].nunique() > 1, "what was seen differs from row to row"
    assert found.drop(columns=["seen", "verdict"]).equals(table.drop(columns="verdict"))
