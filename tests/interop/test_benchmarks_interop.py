"""The table of speeds has every operation, and what it times is the same calculation on every side."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg

pytest.importorskip("torch", reason="needs the extra `interop`: pip install -e '.[interop]'")


@pytest.fixture(scope="module")
def ops():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        yield importlib.import_module("ops")


def test_every_operation_has_a_row(ops, monkeypatch):
    assert ops.without_row() == set()
    monkeypatch.setitem(mg.OPS, "arctan", mg.exp)
    assert ops.without_row() == {"arctan"}


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 2, 4)], ids=str)
def test_ours_and_numpy_by_hand_agree_with_pytorch(ops, shape):
    for row in ops.ROWS:
        arrays = row.draw(np.random.default_rng(0), shape)
        if arrays is not None:
            ops.Sides(row, arrays)  # raises if not
