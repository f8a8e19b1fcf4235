"""Claim C2's verdict for planted evidence."""

import pandas as pd
import pytest

from ul.base.errors import InputError
from ul.tables import rules, study_claims


def row(
    method="em", architecture="lenet5", *, drawn=1.0, ends=2.0, beyond=0.2, share=0.2, gap=0.5, weights=44426, half=0.1
) -> dict:
    """Evidence of one poison, every interval `half` wide to both sides."""
    values = {"ends": ends, "beyond": beyond, "share": share}
    out = {
        "study": f"{architecture}-{method}-{share}",
        "dataset": "mnist",
        "architecture": architecture,
        "drawn": drawn,
        "method": method,
        "n": 6,
        "seeds": "0-5",
        "weights": weights,
        "gap": gap,
    }
    for name, value in values.items():
        out |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return out


def verdict(*rows: dict) -> str:
    return study_claims.parted(pd.DataFrame(rows))["verdict"]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, rules.HOLDS),
        ({"ends": 0.8}, rules.FAILS),
        ({"ends": 1.05}, rules.UNDECIDED),
        ({"beyond": -0.2}, rules.FAILS),
        ({"beyond": 0.05}, rules.UNDECIDED),
        ({"beyond": 0.0, "share": 0.0}, rules.UNDECIDED),
        ({"share": 0.7}, rules.FAILS),
        ({"share": 0.45}, rules.UNDECIDED),
    ],
)
def test_each_part_of_the_rule_decides(change, wanted):
    assert verdict(row(**change)) == wanted


def test_one_failure_decides_and_others_do_not_count():
    fails = {"share": 0.9}
    assert verdict(row(), row("lsp", "linear", **fails)) == rules.FAILS
    noise, toothless, tiny = row("noise", **fails), row("ops", gap=0.1, **fails), row("ops", weights=120, **fails)
    assert verdict(row(), noise, toothless, tiny) == rules.HOLDS
    assert verdict(row(), row(drawn=0.5, **fails), row(architecture="resnet8", **fails)) == rules.HOLDS
    assert verdict(noise) == rules.NOT_TESTED


def test_the_studies_tables_are_read_together(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        pd.DataFrame([row(name)]).to_csv(tmp_path / name / "evidence.csv", index=False)
        pd.DataFrame([row("other")]).to_csv(tmp_path / name / "effects.csv", index=False)
    assert list(study_claims.evidence(str(tmp_path))["method"]) == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no evidence\.csv; run `dvc repro` first"):
        study_claims.evidence(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="missing is missing"):
        study_claims.evidence(str(tmp_path / "missing"))
