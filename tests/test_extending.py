"""README's examples of a new method and a new data set, applied to a copy of the package as a reader would."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ul
from tests.imports import ROOT

PLACES = {
    "in METHODS": "METHODS: dict[str, Method] = {\n",
    "in DATASETS": "DATASETS: dict[str, DataSet] = {\n",
    "before SOURCES": "SOURCES: dict[str, Source] = {\n",
    "in SOURCES": "SOURCES: dict[str, Source] = {\n",
}
HEAD = re.compile(r"^# (ul/\S+?\.py)(?:,| \()([^)\n]+)\)?$", re.M)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of `ul` with every block of README's section put where its first line says."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "ul", folder / "ul", ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "README.md").read_text().split("## Add a method")[1].split("\n## ")[0]
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        _, *parts = HEAD.split(block)
        for file, where, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            put(folder / file, where.strip(), text.strip("\n"))
    return folder


def put(path, where, text):
    if where == "new":
        path.write_text(text + "\n")
        return
    mark, source = PLACES[where], path.read_text()
    assert source.count(mark) == 1, (path, mark)
    before = where.startswith("before")
    path.write_text(source.replace(mark, f"{text}\n\n\n{mark}" if before else f"{mark}{text}\n"))


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_examples_are_short():
    section = (ROOT / "README.md").read_text().split("## Add a method")[1].split("\n## ")[0]
    method, data = section.split("A data set is")
    for part in (method, data):
        lines = "".join(re.findall(r"```python\n(.*?)```", part, re.S)).splitlines()
        assert sum(bool(line.strip()) and not line.startswith("#") for line in lines) <= 20


def test_the_new_method_keeps_its_budget(extended):
    code = """
import torch
from ul.base import parameters
from ul import data, poisons
images, labels = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), torch.arange(40) % 4
clean = data.Split(images, {"label": labels}, "toy/train")
poison = poisons.make("stripes", clean, seed=0, device=torch.device("cpu"))
poisons.check(clean, poison, "stripes", 8 / 255)
print("stripes" in parameters.CHOICES["method"], int((poison.images.int() - clean.images.int()).abs().max()))
"""
    assert run(code, extended) == ["True", "8"]


@pytest.fixture(scope="module")
def fashion(extended):
    """The folder with files of the new data set."""
    (extended / "fashion").mkdir()
    images, label = np.arange(5 * 8 * 8 * 3, dtype=np.uint8).reshape(5, 8, 8, 3), np.arange(5)
    for part in ("train", "test"):
        np.savez(extended / "fashion" / f"{part}.npz", images=images, label=label)
    return extended


def test_the_new_data_set_is_read(fashion):
    code = """
from ul.base import parameters
from ul import data
split = data.load("fashion", "train", root=".", limit=3)
known = "fashion" in parameters.OWN_CHOICES["02_cross_task"]["dataset"]
print(known, *split.images.shape, split.targets["label"].dtype, data.classes(split))
"""
    assert run(code, fashion) == ["True", "3", "3", "8", "8", "torch.int64", "10"]


@pytest.mark.parametrize(
    ("words", "told"),
    [(("info", "fashion"), "fashion: target label, 10 classes"), (("verify", "fashion"), "fashion/test: 5 images read"),
     (("check-poison", "fashion/train.npz", "--clean", "fashion"), "fashion/train.npz: 5 images")],
)  # fmt: skip
def test_commands_know_the_new_data_set(fashion, words, told):
    done = ul(*words, "--root", ".", cwd=fashion)
    assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr
