"""Records on disk: whole or not at all, the same bytes for the same content."""

import hashlib
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from ul.base import records
from ul.base.errors import InputError


def test_records_come_back(tmp_path):
    record = {"config": {"method": "em", "seed": 0, "out": None}, "accuracy": 0.5, "sal": [[1e-9, 2.0], [0.25, 3e8]]}
    assert records.load(records.save(record, tmp_path / "deep" / "er" / "a.json")) == record


def test_order_of_keys_does_not_show(tmp_path):
    first = records.save({"a": 1, "b": {"x": 1, "y": 2}}, tmp_path / "1.json").read_bytes()
    assert first == records.save({"b": {"y": 2, "x": 1}, "a": 1}, tmp_path / "2.json").read_bytes()
    assert first.endswith(b"}\n")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda x: {"a": x}, lambda x: {"a": [1.0, {"b": (x,)}]}])
def test_numbers_that_are_none_are_refused(tmp_path, bad, wrap):
    with pytest.raises(ValueError, match="JSON"):
        records.save(wrap(bad), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [(1 / 3, 0.333333), (2e-12 / 3, 6.66667e-13), (123456789.0, 123457000.0), (-0.12345678, -0.123457), (7, 7),
     (123456789, 123456789), (np.float64(1 / 3), 0.333333), (True, True), ((0.1 + 0.2,), [0.3]), ("0.1234567",) * 2],
)  # fmt: skip
def test_floats_keep_six_digits(value, kept):
    assert records.rounded({"x": value}) == {"x": kept}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.json is missing; run"),
        ("{", "not a JSON record"),
        ("", "not a JSON record"),
        ("\xff", "a JSON record"),
    ],
)
def test_unreadable_records_name_the_mend(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"{message}.*dvc repro"):
        records.load(tmp_path / "a.json")


@pytest.mark.parametrize("existing", [b"old", None])
def test_interrupted_writes_leave_what_was_there(tmp_path, monkeypatch, existing):
    path = tmp_path / "a.json"
    if existing:
        path.write_bytes(existing)
    seen = []

    def fail(source, target):
        seen.append(source.read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        records.save({"a": 1}, path)
    assert json.loads(seen[0]) == {"a": 1}  # whole before it takes its name
    assert [p.name for p in tmp_path.iterdir()] == (["a.json"] if existing else [])
    assert not existing or path.read_bytes() == existing


def test_digest_depends_on_values_shapes_and_types():
    base = np.arange(6, dtype=np.int64)
    bytes_of = b"".join(n.to_bytes(8, "little") for n in range(6))
    assert records.digest(base) == hashlib.sha256(b"int64(6,)" + bytes_of).hexdigest()[:16]
    others = [base[::-1].copy(), base.reshape(2, 3), base.astype(np.int32), base[:5]]
    assert len({records.digest(x) for x in [base, *others]}) == 5
    assert records.digest(base, base + 1) != records.digest(base + 1, base)
    assert records.digest(np.arange(12).reshape(3, 4).T) == records.digest(np.arange(12).reshape(3, 4).T.copy())


def test_versions_are_those_installed():
    found = records.versions()
    assert found["numpy"] == np.__version__ and found["pandas"] == pd.__version__
    assert found["python"] == sys.version.split()[0]


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("total", [1, 7, 25])
def test_progress_yields_every_item(tmp_path, monkeypatch, capsys, noted, total):
    monkeypatch.delenv(records.PROGRESS, raising=False)
    log = tmp_path / "log"
    if noted:
        monkeypatch.setenv(records.PROGRESS, str(log))
    assert list(records.progress((i * i for i in range(total)), "squares", total)) == [i * i for i in range(total)]
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = log.read_text().splitlines() if noted else []
    assert lines[-1:] == ([f"squares: {total}/{total}"] if noted else [])
    assert len(lines) <= 14
    assert ("squares" in shown.err) != noted


def test_notes_without_a_progress_file_go_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(records.PROGRESS, raising=False)
    monkeypatch.chdir(tmp_path)
    records.note("line")
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


# ---- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 5), ()])
def test_arrays_come_back_through_json(dtype, shape):
    array = (9 * np.random.default_rng(0).random(shape)).astype(dtype)
    text = json.dumps(records.packed(array))
    back = records.unpacked(json.loads(text))
    assert "\n" not in text and back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_arrays_are_packed_in_the_order_of_their_indices():
    turned = np.arange(12, dtype=np.int16).reshape(3, 4).T
    assert records.packed(turned) == records.packed(turned.copy()) != records.packed(turned.T)
    np.testing.assert_array_equal(records.unpacked(records.packed(turned)), turned)


GOOD = records.packed(np.arange(6, dtype=np.float32).reshape(2, 3))
NONSENSE = {
    "no record": "text", "a list": [1], "nothing": None, "empty": {}, "no dtype": GOOD | {"dtype": [1]},
    "unknown dtype": GOOD | {"dtype": "float31"}, "objects": GOOD | {"dtype": "O"}, "short": GOOD | {"shape": [2, 4]},
    "long": GOOD | {"shape": [2]}, "no shape": GOOD | {"shape": "two"}, "not base64": GOOD | {"base64": "%%%"},
    "cut": GOOD | {"base64": GOOD["base64"][:-1]}, "no text": GOOD | {"base64": 7},
    "half a number": GOOD | {"base64": "AAAA"}, "a wider type": GOOD | {"dtype": "complex128"},
    "no bytes": {"dtype": "float32", "shape": [2, 3]},
}  # fmt: skip


@pytest.mark.parametrize("found", NONSENSE.values(), ids=NONSENSE)
def test_what_is_no_packed_array_is_refused_in_one_line(found):
    with pytest.raises(InputError, match=r"^no packed array \(\w+: .*\); run `dvc repro` again$") as caught:
        records.unpacked(found)
    assert len(str(caught.value).splitlines()) == 1


# ---- studies -----------------------------------------------------------------------------------------------------


def made():
    return {"b": (1 / 3, {"z": 1, "a": np.float64(2)}), "a": [2e-12 / 3, None, "x"]}


def test_a_study_is_the_same_made_written_or_read(tmp_path):
    """Keys in one order, numbers as the file has them, lists for tuples."""
    path = str(tmp_path / "deep" / "study.json")
    alone, written = records.study(made), records.study(made, record=path)
    read = records.study(None, recorded=path)  # nothing is made
    texts = {json.dumps(found) for found in (alone, written, read, records.load(path))}
    assert texts == {'{"a": [6.66667e-13, null, "x"], "b": [0.333333, {"a": 2.0, "z": 1}]}'}


def test_a_study_is_not_written_where_no_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records.study(made)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_cannot_be_written_or_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        records.study(lambda: {"a": math.nan}, record=str(tmp_path / "a.json"))
    with pytest.raises(InputError, match=r"a\.json is missing; run `dvc repro`"):
        records.study(made, recorded=str(tmp_path / "a.json"))
    assert list(tmp_path.iterdir()) == []


def test_a_reason_is_one_line():
    assert records.reason(ValueError("no\n  luck\t here")) == "ValueError: no luck here"
    assert records.reason(KeyError("a")) == "KeyError: 'a'" and records.reason(RuntimeError()) == "RuntimeError:"
