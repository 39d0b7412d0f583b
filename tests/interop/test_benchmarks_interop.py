"""The benchmarks time the same calculation on every side, and their tables are complete."""

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minigrad as mg

pytest.importorskip("torch", reason="needs the extra `interop`: pip install -e '.[interop]'")


@pytest.fixture(scope="module")
def load():
    """Import one of the benchmarks by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="module")
def ops(load):
    return load("ops")


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


# ----------------------------------------------------------------------------- a BERT beside PEFT


@pytest.fixture(scope="module")
def small(load, tmp_path_factory):
    """The benchmark of a BERT, and the folder of a small one."""
    pytest.importorskip("transformers")
    encoder = load("encoder")
    config = encoder.bert.Config(50, 16, 2, 4, 32, 48, **NO_DROPOUT)
    return SimpleNamespace(
        encoder=encoder, folder=encoder.base(tmp_path_factory.mktemp("bert"), config)
    )


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(params=[0, 1], ids=["LoRA", "DoRA"])
def case(request, small):
    return small.encoder.CASES[request.param]


@pytest.fixture
def sides(small, case):
    """Ours, and theirs by their forms of attention."""
    return small.encoder.sides(case, small.folder)


def test_a_bert_has_the_same_loss_and_gradients_on_both_sides(small, case, sides):
    small.encoder.agree(*sides)
    ours, theirs = sides
    assert any("magnitude" in name for name in ours.gradients()) == case.dora
    assert set(theirs) == {"sdpa", "eager"}
    assert all(np.any(g) for g in ours.gradients().values()), "some gradient proves nothing"


@pytest.mark.parametrize("place", [0, -2], ids=["adapter", "head"])
def test_sides_that_differ_are_not_timed(small, sides, place):
    ours, _ = sides
    ours.trained[place].data = 1.1 * ours.trained[place].data
    with pytest.raises(AssertionError, match=r"the (loss|gradient) of"):
        small.encoder.agree(*sides)


def test_a_bert_is_adapted_in_both_ways_and_read_in_both(small):
    cases = {(case.dora, tuple(case.lengths)) for case in small.encoder.CASES}
    assert len(cases) == len(small.encoder.CASES) == 4
    for lengths in (small.encoder.SIMILAR, small.encoder.MIXED):
        ids, labels = small.encoder.batch(small.folder, lengths)
        assert ids.shape == (16, max(lengths))
        np.testing.assert_array_equal(np.count_nonzero(ids, axis=1), lengths)
        assert set(labels) == {0, 1}


def test_looking_where_the_time_goes_changes_nothing(load, sides):
    ours, _ = sides
    before = {op: (op.forward, op.vjps) for op in mg.OPS.values()}
    loss = ours.backward()
    gradients = ours.gradients()
    with load("where").watched() as split:
        assert ours.backward() == loss
    for name, g in ours.gradients().items():
        np.testing.assert_array_equal(g, gradients[name])
    assert before == {op: (op.forward, op.vjps) for op in mg.OPS.values()}
    used = {"linear", "gelu", "layer_norm", "affine", "softmax", "matmul", "nll"}
    for seconds in split:
        assert used <= seconds.keys() <= mg.OPS.keys()
        assert min(seconds.values()) >= 0


def test_an_operation_within_a_rule_belongs_to_the_rule(load):
    x = mg.Tensor(np.linspace(-1, 1, 5), requires_grad=True)
    with load("where").watched() as split:
        y = mg.layer_norm(x)
        assert split.back == {}
        mg.grad(y.sum(), [x])
    assert split.forward.keys() == {"layer_norm", "sum"}
    assert split.back.keys() == {"layer_norm", "sum"}


def test_the_parts_of_a_step_add_up(small):
    encoder = small.encoder
    rows = list(encoder.by_operation(encoder.CASES[0], small.folder, times=2))
    *parts, rest, (name, _, _, whole, share, theirs) = rows
    assert [row[0] for row in parts] == [*encoder.LINES, "other operations"]
    assert (name, share) == ("all", "100%")
    rounding = 0.05 * len(rows)
    both = [float(row[3]) for row in (*parts, rest)]
    assert sum(both) == pytest.approx(float(whole), abs=rounding)
    assert sum(float(row[5]) for row in parts) == pytest.approx(float(theirs), abs=rounding)


def test_a_process_of_its_own_says_what_memory_it_needs(small):
    encoder = small.encoder
    ours, theirs, ratio = encoder.resident(encoder.CASES[1], small.folder)
    assert 20 < float(ours) < float(theirs)
    assert "≤0.7" in ratio


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_training_of_peft_sees_the_same_batches(load, small, method):
    accuracies, bert = load("accuracies"), small.encoder.bert
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, size=40)
    ids = bert.padded([rng.integers(1, 50, size=n) for n in lengths], 0)
    examples = small.encoder.minilm.Examples(ids, np.arange(40) % 2, lengths)
    # at so high a rate, the options of both optimizers must be the same
    how = dataclasses.replace(accuracies.recipe(method, seed=1), epochs=2, rate=0.02)
    base = bert.load(small.folder)
    ours, theirs, different, error = accuracies.compared(
        how, small.folder, base, 2, (examples, examples)
    )
    assert ours == theirs
    assert int(different) == 0
    assert float(error) < 1e-5
