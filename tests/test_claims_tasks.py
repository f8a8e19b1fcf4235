"""Claim C1 by its rule, on planted protections."""

import pandas as pd
import pytest

from tests.test_claims import FLAT, frame_of
from ul.tables import claims

OWN = ("single", "class_object", True, False)
DENSE = [("multi", name, False, True) for name in ("depth_euclidean", "keypoints2d", "normal")]
NARROW = 0.05


def table(methods, dense=(0.0, 0.1, 0.6), width=NARROW):
    """Protection of the own task by method, and of the three dense tasks for all."""
    rows = []
    for method, own in methods.items():
        for (regime, task, is_own, is_dense), value in zip([OWN, *DENSE], [own, *dense], strict=True):
            rows.append({
                "regime": regime, "method": method, "task": task, "own": is_own, "dense": is_dense, "n": 3,
                "protection": value, "protection_low": value - width, "protection_high": value + width,
            })  # fmt: skip
    return pd.DataFrame(rows)


def verdict(protection):
    frame = frame_of({"clean": FLAT, "noise": FLAT})
    return claims.verdicts(frame, protection).set_index("claim").loc["C1"]


@pytest.mark.parametrize(
    ("methods", "options", "expected"),
    [({"em": 0.9, "lsp": 0.9, "ar": 0.9, "ops": 0.1}, {}, claims.HOLDS),
     ({"em": 0.9, "lsp": 0.9, "ar": 0.1, "ops": 0.1}, {}, claims.FAILS),
     ({"em": 0.9, "lsp": 0.9, "ar": 0.5}, {}, claims.UNDECIDED),
     ({"em": 0.9, "lsp": 0.9, "ar": 0.9}, {"dense": (0.0, 0.4, 0.6)}, claims.FAILS),
     ({"em": 0.9, "lsp": 0.9, "ar": 0.9}, {"dense": (0.0, 0.18, 0.6)}, claims.UNDECIDED),
     ({"em": 0.9, "noise": 0.9, "lsp": 0.9}, {}, claims.NOT_TESTED)],
)  # fmt: skip
def test_three_poisons_must_take_their_task_and_leave_two_dense_ones(methods, options, expected):
    found = verdict(table(methods, **options))
    assert found["verdict"] == expected
    assert all(f"{m} own" in found["measured"] for m in methods if m != "noise") and found["n"] == 3


def test_without_the_study_it_is_not_tested():
    assert verdict(None)["verdict"] == claims.NOT_TESTED
