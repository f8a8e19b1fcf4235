"""Claims C1 and C8 by their rules, on planted protections."""

import math

import pandas as pd
import pytest

from tests.test_claims import FLAT, frame_of
from ul.tables import claims, rules, study_claims

TASKS = ("depth_euclidean", "keypoints2d", "class_scene")
DERIVED = ("keypoints2d", "edge_texture", "autoencoding")
THREE = {"em": 0.9, "lsp": 0.9, "ar": 0.9}


def table(methods, others=(0.0, 0.1, 0.6), *, width=0.05, regime="multi", target="class_object", tasks=TASKS):
    """Protection, beyond noise too, of the own task by method, and of three other tasks for all."""
    rows = []
    for method, own in methods.items():
        for task, value in zip((target, *tasks), (own, *others), strict=True):
            row = {"regime": regime, "method": method, "task": task, "own": task == target, "n": 3, "seeds": "0-2"}
            for name in ("protection", "beyond_noise"):
                row |= {name: value, f"{name}_low": value - width, f"{name}_high": value + width}
            rows.append(row)
    return pd.DataFrame(rows)


def found(protection, claim="C1"):
    frame = frame_of({"clean": FLAT, "noise": FLAT})
    return claims.verdicts(frame, protection).set_index(["claim", "part"]).loc[claim]


@pytest.mark.parametrize(
    ("methods", "options", "expected"),
    [(THREE, {}, rules.HOLDS),
     (THREE | {"ops": 0.1}, {}, rules.HOLDS),
     ({"em": 0.9, "lsp": 0.9, "ar": 0.1}, {}, rules.NOT_TESTED),
     ({"em": 0.9, "lsp": 0.9, "ar": 0.5}, {}, rules.UNDECIDED),
     (THREE, {"others": (0.0, 0.4, 0.6)}, rules.FAILS),
     (THREE, {"others": (0.0, 0.18, 0.6)}, rules.UNDECIDED),
     (THREE, {"others": (0.6, 0.0, 0.0)}, rules.FAILS),
     (THREE, {"others": (0.18, 0.0, 0.0)}, rules.UNDECIDED),
     (THREE, {"others": (0.6, 0.0, 0.0), "target": "label", "tasks": DERIVED}, rules.HOLDS),
     (THREE, {"others": (0.0, 0.0, 0.0), "tasks": DERIVED}, rules.NOT_TESTED),
     ({"em": 0.9, "noise": 0.9, "lsp": 0.9}, {}, rules.NOT_TESTED)],
)  # fmt: skip
def test_three_poisons_must_take_their_task_and_leave_two_others(methods, options, expected):
    """On views one of these is depth; a poison that does not take its own task is not what the claim is about."""
    row = found(table(methods, **options)).loc[study_claims.TOGETHER]
    assert row["verdict"] == expected
    assert all(f"{m} own" in row["measured"] for m in methods if m != "noise") and row["n"] == 3
    kind = "other labels derived" if options.get("target") == "label" else "views"
    assert row["measured"].startswith(f"{kind}: ")


@pytest.mark.parametrize(("regime", "part"), [("single", study_claims.ALONE), ("multi", study_claims.TOGETHER)])
def test_a_verdict_is_of_one_regime(regime, part):
    """Own task and others are compared within it: what only another regime shows leaves it open."""
    rows = found(table(THREE, regime=regime))
    assert rows["verdict"].to_dict() == {
        name: rules.HOLDS if name == part else rules.NOT_TESTED for name in study_claims.REGIMES
    }


def test_what_noise_does_as_well_is_not_the_poisons():
    protection = table(THREE).assign(protection=0.9, protection_low=0.85, protection_high=0.95)
    assert found(protection).loc[study_claims.TOGETHER, "verdict"] == rules.HOLDS
    nowhere = table(THREE).assign(beyond_noise=math.nan, beyond_noise_low=math.nan, beyond_noise_high=math.nan)
    assert found(nowhere).loc[study_claims.TOGETHER, "verdict"] == rules.NOT_TESTED


@pytest.mark.parametrize(
    ("joint", "headed", "expected"),
    [
        (THREE, dict.fromkeys(THREE, 0.3), rules.HOLDS),
        (THREE, dict.fromkeys(THREE, 0.8), rules.FAILS),
        (THREE, dict.fromkeys(THREE, 0.48), rules.UNDECIDED),
        (THREE | {"em": 0.2}, dict.fromkeys(THREE, 0.3), rules.NOT_TESTED),
        (THREE | {"em": 0.2, "tap": 0.9}, dict.fromkeys([*THREE, "tap"], 0.3), rules.HOLDS),
    ],
)
def test_planted_heads_decide_c8(joint, headed, expected):
    protection = pd.concat([table(joint), table(headed, regime="transfer")], ignore_index=True)
    assert found(protection, "C8")["verdict"].tolist() == [expected]


def test_without_the_study_it_is_not_tested():
    assert (found(None)["verdict"] == rules.NOT_TESTED).all()
