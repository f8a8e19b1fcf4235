"""The paper's claims: rules over intervals, and verdicts on planted frames."""

import math

import pytest

from tests.test_benchmark_tables import SIX, frame_of, ranked
from ul.base.stats import Interval
from ul.tables import claims
from ul.tables.claims import FAILS, HOLDS, NOT_TESTED, UNDECIDED


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
    assert claims.side(Interval((low + high) / 2, low, high, 3), 1, above=above) == verdict


@pytest.mark.parametrize(
    "found, verdict",
    [
        ([HOLDS, HOLDS], HOLDS), ([HOLDS, UNDECIDED], UNDECIDED), ([UNDECIDED, FAILS], FAILS),
        ([HOLDS], NOT_TESTED), ([UNDECIDED], NOT_TESTED), ([FAILS], FAILS), ([], NOT_TESTED),
    ],
)  # fmt: skip
def test_a_rule_over_methods(found, verdict):
    assert claims.all_of(dict(zip("ab", found, strict=False)), ["a", "b"]) == verdict


BELOW, AT, ABOVE = [0.2, 0.21, 0.22], [0.8, 1.0, 1.25], [1.6, 1.65, 1.7]
FLAT = [1.0, 1.0, 1.0]


def verdict_of(claim, *, noise=FLAT, **ud):
    frame = frame_of({"clean": FLAT, "noise": noise, **ud})
    return claims.verdicts(frame).set_index("claim").loc[claim]


@pytest.mark.parametrize("claim", ["C3", "C5"])
@pytest.mark.parametrize(
    "changed, verdict",
    [
        ({}, HOLDS), ({"em": ABOVE}, FAILS), ({"tap": BELOW}, FAILS), ({"ar": AT}, UNDECIDED), ({"tap": AT}, UNDECIDED),
        ({"ops": None}, NOT_TESTED), ({"ops": None, "em": ABOVE}, FAILS), ({"em": [0, 0, 0]}, HOLDS),
    ],
)  # fmt: skip
def test_planted_frames_decide_c3_and_c5(claim, changed, verdict):
    ud = {"em": BELOW, "ops": BELOW, "ar": BELOW, "lsp": BELOW, "tap": ABOVE} | changed
    row = verdict_of(claim, **{m: v for m, v in ud.items() if v})
    assert row["verdict"] == verdict and row["n"] == 3
    assert ("no run of ops yet" in row["measured"]) == (ud["ops"] is None)


def test_c3_compares_with_noise_and_c5_with_clean():
    ud = {"em": BELOW, "ops": BELOW, "ar": BELOW, "lsp": BELOW, "tap": ABOVE, "noise": [0.1, 0.105, 0.11]}
    assert verdict_of("C3", **ud)["verdict"] == FAILS and verdict_of("C5", **ud)["verdict"] == HOLDS
    assert "lsp" not in verdict_of("C3", **ud)["measured"] and "lsp" in verdict_of("C5", **ud)["measured"]


@pytest.mark.parametrize(
    "orders, verdict",
    [([SIX] * 3, HOLDS), ([SIX[::-1]] * 3, FAILS), ([SIX, SIX[::-1], SIX], UNDECIDED)],
)
def test_planted_orders_decide_c4(orders, verdict):
    found = claims.verdicts(ranked(*orders)).set_index("claim").loc["C4"]
    assert found["verdict"] == verdict and found["n"] == 3


def test_c4_with_five_methods_is_undecided():
    frame = ranked(SIX, SIX, SIX)
    found = claims.verdicts(frame[frame["method"] != "ar"]).set_index("claim").loc["C4"]
    assert found["verdict"] == UNDECIDED and "over 5 methods" in found["measured"]


def test_all_seven_claims_are_listed_with_their_rules():
    found = claims.verdicts(frame_of({"clean": FLAT, "noise": FLAT, "em": BELOW}))
    assert found["claim"].tolist() == [f"C{i}" for i in range(1, 8)]
    assert found.columns.tolist() == ["claim", "text", "source", "rule", "measured", "interval", "n", "verdict"]
    assert (found[["text", "source", "rule"]].map(len) > 5).all(axis=None)
    untested = found.set_index("claim").loc[["C1", "C2", "C6", "C7"]]
    assert (untested["verdict"] == NOT_TESTED).all() and (untested["n"] == 0).all()
