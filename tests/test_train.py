"""``fit`` trains what the optimizer was given and nothing else; ``evaluate`` changes nothing."""

import contextlib
import itertools
import json
import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupting import (
    interrupted_by_a_timer,
    interrupted_everywhere,
    keeps_finally,
    needs_timers,
)
from numpy.testing import assert_allclose

import loradora as ld
import minigrad as mg
from loradora.optim import linear_decay
from loradora.train import POOL

rng = np.random.default_rng(0)
CENTRES = rng.normal(size=(3, 8))
LABELS = rng.integers(0, 3, 90)
X = (CENTRES[LABELS] + 0.3 * rng.normal(size=(90, 8))).astype(np.float32)

METHODS = {"LoRA": {}, "DoRA": {"use_dora": True}}
every_method = pytest.mark.parametrize("method", METHODS)


def base():
    return ld.MLP([8, 16, 3], rng=np.random.default_rng(1))


def adapted(method, model=None):
    config = ld.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", **METHODS[method])
    return ld.get_peft_model(model or base(), config, rng=np.random.default_rng(2))


def train(model, seed=3, steps=60, **options):
    optimizer = options.pop("optimizer", None) or ld.AdamW(model.parameters(), lr=0.02)
    options = {"rng": np.random.default_rng(seed), "batch_size": 32} | options
    return list(ld.fit(model, X, LABELS, optimizer=optimizer, steps=steps, **options))


# ----------------------------------------------------------------------------- what training does


@every_method
def test_the_loss_goes_down_and_the_base_stays_byte_by_byte(method):
    model = base()
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    peft = adapted(method, model)
    history = train(peft)
    assert np.mean([s.loss for s in history[-5:]]) < 0.3 * history[0].loss
    assert ld.evaluate(peft, X, LABELS).accuracy > ld.evaluate(model, X, LABELS).accuracy + 0.2
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    frozen = [p for p in peft.parameters() if not p.requires_grad]
    assert {p.data.tobytes() for p in frozen} == set(before.values())


@every_method
def test_no_gradient_is_computed_for_the_base(method, monkeypatch):
    peft = adapted(method)
    frozen = [p.data for p in peft.parameters() if not p.requires_grad]
    trained = [p.data for p in peft.trainable_parameters()]
    differentiated = []
    for op in mg.ops.OPS.values():
        rules = [
            rule and spy(rule, position, differentiated) for position, rule in enumerate(op.vjps)
        ]
        monkeypatch.setattr(op, "vjps", tuple(rules))
    train(peft, steps=3)
    assert any(a is p for a in differentiated for p in trained), "the spy sees what is trained"
    assert not any(a is p for a in differentiated for p in frozen)
    assert all(p.grad is None for p in peft.parameters() if not p.requires_grad)


def spy(rule, position, differentiated):
    """Return ``rule``, noting the array that it differentiates with respect to."""

    def noted(g, y, *args, **params):
        differentiated.append(args[position])
        return rule(g, y, *args, **params)

    return noted


def test_a_whole_model_is_trained_too():
    model = base()
    history = train(model)
    assert history[-1].loss < 0.2 * history[0].loss


@every_method
def test_a_seed_determines_the_whole_training(method):
    one, same, other = (adapted(method) for _ in range(3))
    assert train(one, seed=5) == train(same, seed=5)
    assert train(other, seed=6)[-1].loss != train(same, seed=5)[-1].loss
    for name, array in one.state_dict().items():
        if "base_layer" in name:
            assert array.tobytes() == other.state_dict()[name].tobytes()


@pytest.mark.parametrize("batch_size", [1, 7, 30, 90, 1000])
def test_every_example_is_seen_once_per_epoch_in_a_new_order(batch_size):
    seen = []

    class Recorder(ld.Module):
        def __init__(self):
            self.w = mg.Tensor(np.zeros((1, 2)), requires_grad=True)

        def forward(self, x):
            seen.extend(x[:, 0].astype(int))
            return x[:, :1] @ self.w

    x = np.arange(90.0)[:, None]
    model, labels = Recorder(), np.zeros(90, int)
    steps = 2 * -(-90 // batch_size)
    rng = np.random.default_rng(0)
    optimizer = ld.SGD(model.parameters(), lr=0)
    run = ld.fit(model, x, labels, optimizer=optimizer, steps=steps, batch_size=batch_size, rng=rng)
    assert len(list(run)) == steps
    first, second = seen[:90], seen[90:]
    assert sorted(first) == sorted(second) == list(range(90))
    assert first != second != sorted(second)


def batches_by_length(lengths, batch_size, epochs=1):
    """Return the numbers of the examples in each batch that ``fit`` makes of so many lengths."""
    batches, n = [], len(lengths)

    def noted(output, numbers):
        batches.append(numbers.astype(int).tolist())
        return mg.mse_loss(output[:, 0], numbers)

    model = ld.Linear(1, 1, rng=0)
    options = {"optimizer": ld.SGD(model.parameters(), lr=0), "loss": noted, "rng": 3}
    steps = epochs * -(-n // batch_size)
    x, numbers = np.zeros((n, 1)), np.arange(float(n))
    for _ in ld.fit(
        model, x, numbers, steps=steps, batch_size=batch_size, lengths=lengths, **options
    ):
        pass
    return batches


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 2**32))
def test_examples_of_similar_lengths_share_a_batch(n, batch_size, seed):
    """Each example comes once an epoch, and the batches of 16 do not overlap in length."""
    lengths = np.random.default_rng(seed).integers(1, 50, n)
    per_epoch = -(-n // batch_size)
    batches = batches_by_length(lengths, batch_size, epochs=2)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(itertools.chain(*epoch)) == list(range(n))
        assert [len(b) for b in epoch].count(batch_size) >= n // batch_size
        if per_epoch <= POOL:
            ranges = sorted((min(lengths[b]), max(lengths[b])) for b in epoch)
            assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ranges))
    if n > 20:
        assert batches[:per_epoch] != batches[per_epoch:]


def test_batches_of_all_lengths_come_in_any_order_and_of_several_pools():
    lengths = np.arange(4000) % 100
    batches = batches_by_length(lengths, 10)
    starts = [lengths[b].min() for b in batches]
    assert starts != sorted(starts)
    spread = np.mean([np.ptp(lengths[b]) for b in batches])
    assert 2 < spread < 10  # of 100: one pool for all would have about 0, and none about 80
    assert np.mean(starts[:200]) == pytest.approx(np.mean(starts), abs=5)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (np.ones(89), ValueError, r"expected the lengths of 90 examples, \(90,\), got \(89,\)"),
        (np.ones((90, 1)), ValueError, r"got \(90, 1\)"),
        (7, ValueError, r"got \(\)"),
        (["long"] * 90, TypeError, "lengths: "),
        ([1.0] * 89 + [np.nan], ValueError, "lengths: there is NaN or infinity among them"),
    ],
)
def test_lengths_that_are_not_one_number_each_are_refused_at_the_call(lengths, error, message):
    model = base()
    optimizer = ld.SGD(model.parameters())
    with pytest.raises(error, match=message):
        ld.fit(model, X, LABELS, optimizer=optimizer, steps=1, lengths=lengths, rng=0)


def test_each_record_says_where_the_training_is():
    history = train(base(), steps=4, schedule=linear_decay)
    assert [(s.step, s.total, s.rate) for s in history] == [
        (1, 4, 1.0),
        (2, 4, 0.75),
        (3, 4, 0.5),
        (4, 4, 0.25),
    ]


def test_the_schedule_scales_the_steps():
    model = base()
    before = model.state_dict()
    train(model, schedule=lambda progress: 0.0)
    assert all(a.tobytes() == before[n].tobytes() for n, a in model.state_dict().items())


def test_fit_works_as_it_is_iterated_and_prints_nothing(capsys):
    model = base()
    optimizer = ld.SGD(model.parameters(), lr=0.1)
    run = ld.fit(model, X, LABELS, optimizer=optimizer, steps=2, rng=np.random.default_rng(0))
    before = model.layers[0].weight.data.copy()
    next(run)
    moved = model.layers[0].weight.data.copy()
    assert not np.array_equal(before, moved)
    next(run)
    assert not np.array_equal(moved, model.layers[0].weight.data)
    with pytest.raises(StopIteration):
        next(run)
    assert capsys.readouterr() == ("", "")


def test_fit_trains_in_training_mode():
    model = base().eval()
    train(model, steps=1)
    assert model.training
    assert model.layers[0].training


@pytest.mark.parametrize("whose", [lambda model: model, lambda model: model.base_model.layers[0]])
def test_a_model_evaluated_between_two_steps_is_trained_in_training_mode(whose):
    """As in Hugging Face's Trainer, which sets it before every step."""

    def trained(between):
        rng = np.random.default_rng(2)
        config = ld.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5)
        model = ld.get_peft_model(base(), config, rng=rng)
        optimizer = ld.SGD(model.parameters(), lr=0.5)
        losses = []
        for step in ld.fit(model, X, LABELS, optimizer=optimizer, steps=6, rng=3):
            between(model)
            losses.append(step.loss)
        assert all(m.training for _, m in model.named_modules()) == (between is nothing)
        return losses

    def nothing(model):
        pass

    assert trained(lambda model: whose(model).eval()) == trained(nothing)


def test_the_record_is_the_loss_before_the_step():
    model = base()
    expected = ld.evaluate(model, X, LABELS).loss
    assert train(model, steps=1, batch_size=90)[0].loss == pytest.approx(expected, rel=1e-5)


def test_gradients_of_earlier_passes_do_not_leak_into_a_step():
    clean, spoilt = base(), base()
    for p in spoilt.parameters():
        p.grad = np.full(p.shape, 1e3, p.dtype)
    assert train(clean, steps=2) == train(spoilt, steps=2)


# ----------------------------------------------------------------------------- what evaluation says


@pytest.mark.parametrize("batch_size", [1, 7, 90, 1000])
def test_evaluation_is_the_mean_over_all_examples(batch_size):
    model = base()
    logits = model(X).data.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = ld.evaluate(model, X, LABELS, batch_size)
    assert_allclose(found.loss, -np.log(p[np.arange(90), LABELS]).mean(), rtol=1e-5)
    assert found.accuracy == np.mean(logits.argmax(1) == LABELS)


def test_lists_and_tensors_do_for_arrays():
    def trained(x, labels):
        model = base()
        optimizer = ld.AdamW(model.parameters(), lr=0.02)
        losses = [s.loss for s in ld.fit(model, x, labels, optimizer=optimizer, steps=5, rng=0)]
        return losses, ld.evaluate(model, x, labels)

    expected = trained(X, LABELS)
    assert trained(X.tolist(), LABELS.tolist()) == expected
    assert trained(mg.Tensor(X), tuple(LABELS)) == expected


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_turns_dropout_off_and_restores_the_mode(mode):
    model = ld.Sequential(ld.Linear(8, 3), ld.Dropout(0.5)).train(mode)
    assert ld.evaluate(model, X, LABELS) == ld.evaluate(model, X, LABELS)
    assert [m.training for _, m in model.named_modules()] == [mode] * 3


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_restores_the_mode_after_an_error(mode):
    model = base().train(mode)
    with pytest.raises(ValueError, match="shapes"):
        ld.evaluate(model, X[:, :5], LABELS)
    assert [m.training for _, m in model.named_modules()] == [mode] * 5


@pytest.mark.parametrize("x", [X, X[:, :5]], ids=["at the end", "after an error"])
def test_evaluation_gives_every_module_its_own_mode_back(x):
    model = ld.Sequential(ld.Linear(8, 3), ld.Dropout(0.5), ld.Sequential(ld.Dropout(0.5)))
    model[1].eval()
    before = [m.training for _, m in model.named_modules()]
    assert before == [True, True, False, True, True]
    try:
        ld.evaluate(model, x, LABELS)
    except ValueError:
        assert x is not X
    assert [m.training for _, m in model.named_modules()] == before


@needs_timers
@pytest.mark.parametrize(
    "x",
    [
        pytest.param(X[:2], id="at the end"),
        pytest.param(X[:2, :5], id="after an error", marks=keeps_finally),
    ],
)
def test_an_interrupted_evaluation_gives_every_module_its_own_mode_back(x):
    model = ld.Sequential(*(ld.Dropout(0.5) for _ in range(20)), ld.Linear(8, 3))
    model[1].eval()
    before = [m.training for _, m in model.named_modules()]

    def work():
        with contextlib.suppress(ValueError):
            ld.evaluate(model, x, LABELS[:2])

    for _ in interrupted_by_a_timer(work, 1000):
        assert [m.training for _, m in model.named_modules()] == before
        assert mg.is_grad_enabled()


def test_threads_may_evaluate_one_model_at_a_time_if_it_is_in_evaluation_mode():
    model = adapted("DoRA").eval()
    expected = ld.evaluate(model, X, LABELS)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ld.evaluate, model, X, LABELS) for _ in range(40)]
    assert {future.result() for future in futures} == {expected}


def test_evaluation_leaves_the_mode_of_other_adapters():
    model = adapted("LoRA")
    model.add_adapter("other", ld.LoraConfig(r=2, target_modules="all-linear"))
    model.train()
    ld.evaluate(model, X, LABELS)
    model.set_adapter("other")
    assert all(m.training for _, m in model.named_modules())


def test_evaluation_records_no_graph():
    class Watch(ld.Module):
        def __init__(self):
            self.inner = base()

        def forward(self, x):
            y = self.inner(x)
            assert not y.requires_grad
            return y

    ld.evaluate(Watch(), X, LABELS)
    assert base()(X).requires_grad, "recording is on again"


# ----------------------------------------------------------------------------- what is refused


def test_a_loss_that_is_not_finite_stops_the_training_before_the_step():
    model = base()
    optimizer = ld.SGD(model.parameters(), lr=0.1)
    model.layers[2].bias.data = np.array([np.nan, 0, 0], np.float32)
    before = model.state_dict()
    with pytest.raises(
        FloatingPointError, match=r"nan at step 1: .* in layers\.2\.bias before the"
    ):
        train(model, optimizer=optimizer)
    assert all(a.tobytes() == before[n].tobytes() for n, a in model.state_dict().items())


def test_a_rate_that_is_too_large_ends_in_an_error_not_in_nan():
    model = base()
    with pytest.raises(FloatingPointError, match="try a smaller rate"):
        train(model, optimizer=ld.SGD(model.parameters(), lr=1e20), steps=300)


def poisoned_inputs(model):
    x = X.copy()
    x[40, 3] = np.nan
    return {"x": x, "batch_size": 90}, "the loss is nan at step 1: .* in the inputs of this batch$"


def infinite_inputs(model):
    x = X.copy()
    x[0, 0] = np.inf
    return {"x": x, "batch_size": 90}, "at step 1: .* in the inputs of this batch$"


def poisoned_parameters(model):
    model.layers[0].weight.data = np.full((16, 8), np.nan, np.float32)
    return {}, r"NaN or infinity in layers\.0\.weight before the first step$"


def poisoned_targets(model):
    targets = np.full((90, 3), np.nan)
    return {"labels": targets, "loss": mg.mse_loss}, "in the labels of this batch$"


def huge_inputs(model):
    return {"x": X * np.float32(1e38)}, "inputs and parameters are finite, .* or smaller inputs$"


@pytest.mark.parametrize(
    "situation",
    [poisoned_inputs, infinite_inputs, poisoned_parameters, poisoned_targets, huge_inputs],
)
def test_the_rate_is_not_blamed_for_what_it_did_not_do(situation):
    model = base()
    wrong, message = situation(model)
    options = {"x": X, "labels": LABELS, "optimizer": ld.SGD(model.parameters()), **wrong}
    with pytest.raises(FloatingPointError, match=message):
        list(ld.fit(model, **options, steps=2, rng=0))


def test_the_rate_is_blamed_for_parameters_that_it_has_spoilt():
    model = base()

    def steep(output, targets):
        return mg.cross_entropy(output, targets) * 1e30

    optimizer = ld.SGD(model.parameters(), lr=1e30)
    with (
        np.errstate(all="ignore"),
        pytest.raises(
            FloatingPointError, match=r"training has put .* layers.*: try a smaller rate"
        ),
    ):
        list(ld.fit(model, X, LABELS, optimizer=optimizer, steps=5, loss=steep, rng=0))


REFUSED = {
    "fewer labels": ({"labels": LABELS[:-1]}, "as many labels as inputs, got 89 for 90"),
    "no examples": ({"x": X[:0], "labels": LABELS[:0]}, "got 0 for 0"),
    "labels of two axes": (
        {"labels": LABELS[:, None]},
        r"labels \(\.\.\.\), got \(32, 3\) and \(32, 1\): fit classifies by default; .*mse_loss",
    ),
    "labels that all count for nothing": (
        {"labels": np.full(90, -100)},
        "no label counts: all are -100",
    ),
    "no labels in any example": (
        {"labels": np.zeros((90, 0), int)},
        "no label counts: there is none",
    ),
    "a number for labels": ({"labels": 1}, r"got \(90, 8\) and \(\)"),
    "a negative start": ({"start": -1}, "start must lie between 0 and steps=1, not -1"),
    "a start after the end": ({"start": 2}, "start must lie between 0 and steps=1, not 2"),
    "a loss per example": (
        {"loss": lambda y, t: mg.cross_entropy(y, t, "none")},
        r"loss must be a single number, not of shape \(32,\)",
    ),
    "targets of another shape": (
        {"loss": mg.mse_loss},
        r"prediction has shape \(32, 3\), but target has \(32,\)",
    ),
    "a negative seed": ({"rng": -1}, "rng must be a Generator, a seed or None"),
    "no steps": ({"steps": 0}, "steps must be at least 1, not 0"),
    "an empty batch": ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
}


@pytest.mark.parametrize("integer", [np.int8, np.uint8])
def test_numbers_of_eight_bits_are_as_good_as_others(integer):
    ids = np.arange(400) % 7
    n, two = integer(100), integer(2)
    expected = ld.windows(ids, 100, 2)
    for found, array in zip(ld.windows(ids, n, two), expected):
        assert np.array_equal(found, array)
    x, labels = np.random.default_rng(0).normal(size=(300, 4)), np.arange(300) % 3
    model = ld.MLP([4, 3], rng=0)
    assert ld.evaluate(model, x, labels, n) == ld.evaluate(model, x, labels, 100)
    optimizer = ld.SGD(model.parameters(), lr=0.1)
    how = {"optimizer": optimizer, "steps": integer(120), "batch_size": n, "rng": 0}
    assert [step.step for step in ld.fit(model, x, labels, **how)] == list(range(1, 121))


@pytest.mark.parametrize("name", REFUSED)
def test_fit_refuses(name):
    wrong, message = REFUSED[name]
    model = base()
    options = {
        "x": X,
        "labels": LABELS,
        "optimizer": ld.SGD(model.parameters()),
        "steps": 1,
        "rng": np.random.default_rng(0),
        **wrong,
    }
    with pytest.raises(ValueError, match=message):
        list(ld.fit(model, **options))


@pytest.mark.parametrize(
    "name",
    [
        "fewer labels",
        "no examples",
        "an empty batch",
        "labels that all count for nothing",
        "no labels in any example",
    ],
)
def test_evaluate_refuses(name):
    wrong, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ld.evaluate(base(), **{"x": X, "labels": LABELS, **wrong})


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_refused(label):
    labels = LABELS.copy()
    labels[7] = label
    with pytest.raises(IndexError, match=str(label)):
        ld.evaluate(base(), X, labels)


@pytest.mark.parametrize(
    ("label", "error"), [(3, IndexError), (-1, IndexError), (0.5, TypeError)], ids=str
)
def test_one_wrong_label_is_refused_before_anything_changes(label, error):
    x, labels = np.ones((64, 4), np.float32), np.zeros(64, type(label))
    labels[-1] = label
    model = ld.MLP([4, 3])
    before = model.state_dict()
    optimizer = ld.SGD(model.parameters(), lr=0.1)
    rng = np.random.default_rng(0)
    with pytest.raises(error, match="label"):
        next(ld.fit(model, x, labels, optimizer=optimizer, steps=16, batch_size=4, rng=rng))
    assert all(np.array_equal(before[n], p.data) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [float, np.float32, bool])
def test_labels_that_are_no_integers_hear_that_fit_classifies(dtype):
    model = base()
    optimizer = ld.SGD(model.parameters())
    with pytest.raises(TypeError, match=r"fit classifies by default; .* loss=mg\.mse_loss"):
        next(ld.fit(model, X, LABELS.astype(dtype), optimizer=optimizer, steps=1, rng=0))
    with pytest.raises(
        TypeError, match=r"labels are class numbers .* evaluate counts right classes"
    ):
        ld.evaluate(model, X, LABELS.astype(dtype))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": 0.5}, "start must be an integer, not 0.5"),
        ({"start": True}, "start must be an integer, not True"),
        ({"loss": lambda y, t: 1.0}, "loss must be a Tensor, not a float"),
        ({"rng": "x"}, "rng must be a Generator, a seed or None"),
    ],
)
def test_fit_refuses_what_is_of_another_type(wrong, message):
    model = base()
    options = {"optimizer": ld.SGD(model.parameters()), "steps": 1, "rng": 0, **wrong}
    with pytest.raises(TypeError, match=message):
        next(ld.fit(model, X, LABELS, **options))


NO_EXAMPLES = {
    "a generator": ((row for row in X), "got generator of dtype object"),
    "a map": (map(list, X), "got map"),
    "a set": ({1.0, 2.0}, "got set"),
    "a dict": ({0: X[0]}, "got dict"),
    "a string": ("digits", "got str"),
    "strings": (["a", "b"], "dtype <U1"),
    "complex numbers": (X * 1j, "dtype complex"),
    "nothing": (None, "got NoneType"),
    "a masked array": (np.ma.masked_array(X, X > 0), "MaskedArray"),
}


@pytest.mark.parametrize("place", ["x", "labels"])
@pytest.mark.parametrize("name", NO_EXAMPLES)
def test_what_holds_no_real_numbers_is_refused_by_its_name(name, place):
    wrong, message = NO_EXAMPLES[name]
    model = base().eval()
    given = {"x": X, "labels": LABELS, place: wrong}
    with pytest.raises(TypeError, match=f"{place}: .*{message}"):
        ld.fit(model, **given, optimizer=ld.SGD(model.parameters()), steps=1, rng=0)
    with pytest.raises(TypeError, match=f"{place}: .*{message}"):
        ld.evaluate(model, **given)
    assert not model.training


@pytest.mark.parametrize("place", ["x", "labels"])
def test_ragged_lists_are_refused_by_their_name(place):
    model = base()
    given = {"x": X, "labels": LABELS, place: [[1, 2], [3]]}
    with pytest.raises(ValueError, match=f"{place}: lists in a list, .*must be equally long"):
        ld.fit(model, **given, optimizer=ld.SGD(model.parameters()), steps=1, rng=0)


def test_labels_in_a_tensor_hear_that_it_has_no_integers():
    model, labels = base(), mg.Tensor(LABELS)
    with pytest.raises(TypeError, match="an array or a list; a Tensor has no integers"):
        ld.fit(model, X, labels, optimizer=ld.SGD(model.parameters()), steps=1, rng=0)
    with pytest.raises(TypeError, match="an array or a list; a Tensor has no integers"):
        mg.cross_entropy(mg.Tensor(np.ones((90, 3))), labels)


def test_an_optimizer_over_another_model_is_refused_at_the_first_step():
    model = base()
    before = model.state_dict()
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient"):
        next(
            ld.fit(
                adapted("LoRA", model),
                X,
                LABELS,
                optimizer=ld.SGD(model.parameters()),
                steps=1,
                rng=0,
            )
        )
    assert all(a.tobytes() == before[n].tobytes() for n, a in model.state_dict().items())


# ----------------------------------------------------------------------------- another loss


@pytest.mark.parametrize("shape", [(90, 1), (90, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, int])
def test_regression_is_one_argument_away(shape, dtype):
    model = ld.MLP([8, 16, shape[1]], rng=np.random.default_rng(1))
    targets = (10 * X[:, : shape[1]]).astype(dtype)
    optimizer = ld.AdamW(model.parameters(), lr=0.02)
    run = ld.fit(model, X, targets, optimizer=optimizer, steps=400, loss=mg.mse_loss, rng=0)
    losses = [step.loss for step in run]
    assert losses[-1] < 0.05 * losses[0]
    assert {p.dtype.name for p in model.parameters()} == {"float32"}


def test_a_loss_of_ones_own_gets_outputs_and_labels():
    weights = np.array([1.0, 2.0, 3.0], np.float32)

    def weighted(logits, labels):
        return (mg.cross_entropy(logits, labels, "none") * weights[labels]).mean()

    model = base()
    expected = weighted(model(X), LABELS).item()
    assert train(model, steps=1, batch_size=90, loss=weighted)[0].loss == pytest.approx(expected)


# ----------------------------------------------------------------------------- clipping


class Watched(ld.SGD):
    """Remembers the gradients that it gets."""

    def step(self, factor=1.0):
        self.seen = [p.grad for group in self.param_groups for p in group["params"]]
        super().step(factor)


@every_method
@given(bound=st.floats(0.01, 3), seed=st.integers(0, 9), count=st.integers(1, 6))
def test_the_gradients_of_a_step_have_at_most_the_norm_given(method, bound, seed, count):
    """They are those of a step without clipping, times min(1, bound/norm)."""

    def gradients(**options):
        model = adapted(method)
        optimizer = Watched(model.trainable_parameters()[:count], lr=0.5)
        (record,) = train(model, seed, steps=1, optimizer=optimizer, **options)
        return optimizer.seen, record

    (free, unclipped), (seen, record) = gradients(), gradients(clip_grad_norm=bound)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in free))
    assert record.grad_norm == pytest.approx(norm, rel=1e-12)
    assert record[:4] == unclipped[:4]
    for g, whole in zip(seen, free, strict=True):
        assert_allclose(g, whole * min(1, bound / (norm + 1e-6)), rtol=1e-6)


def test_what_the_optimizer_does_not_move_is_neither_clipped_nor_counted():
    model = base()
    moved, other = model.layers[0].weight, model.layers[2].weight
    (free,) = train(model, steps=1, optimizer=ld.SGD([moved], lr=0), clip_grad_norm=np.inf)
    expected = other.grad.copy()
    model.zero_grad()
    (clipped,) = train(model, steps=1, optimizer=ld.SGD([moved], lr=0), clip_grad_norm=1e-3)
    assert np.array_equal(other.grad, expected)
    assert clipped.grad_norm == free.grad_norm
    assert np.linalg.norm(expected) > 0.01


def test_without_a_bound_no_norm_is_computed_and_with_an_infinite_one_nothing_changes():
    assert {step.grad_norm for step in train(base(), steps=3)} == {None}
    measured = train(base(), steps=3, clip_grad_norm=np.inf)
    assert all(step.grad_norm > 0 for step in measured)
    assert [step[:4] for step in measured] == [step[:4] for step in train(base(), steps=3)]


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        (0, ValueError, "=0 would leave nothing of any gradient; None clips none"),
        (-1.0, ValueError, "must not be negative, not -1.0"),
        (-np.inf, ValueError, "must be finite, not -inf"),
        (np.nan, ValueError, "must be finite, not nan"),
        (True, TypeError, "must be a number, not True"),
        ("1", TypeError, "must be a number, not '1'"),
        ([1, 2], TypeError, r"must be a number, not \[1, 2\]"),
        (np.ones(2), TypeError, "must be a number, not array"),
    ],
)
def test_a_bound_that_is_no_positive_number_is_refused_at_the_call(bound, error, message):
    optimizer = ld.SGD((model := base()).parameters())
    with pytest.raises(error, match=f"clip_grad_norm ?{message}"):
        ld.fit(model, X, LABELS, optimizer=optimizer, steps=1, clip_grad_norm=bound, rng=0)


def test_a_gradient_that_is_not_finite_is_not_stepped_on_and_named():
    def steep(output, _):
        return mg.sqrt(output).sum()

    model = ld.Linear(8, 3, rng=0)
    for p in model.parameters():
        p.data = np.zeros(p.shape, p.dtype)  # the root of 0 is finite, and its slope is not
    before, optimizer = model.state_dict(), ld.SGD(model.parameters())
    options = {"optimizer": optimizer, "steps": 1, "loss": steep, "rng": 0}
    message = "not finite at step 1, though the loss is: NaN or infinity in those of weight, bias$"
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=message):
        next(ld.fit(model, X, LABELS, clip_grad_norm=1.0, **options))
    assert all(np.array_equal(before[n], p.data) for n, p in model.named_parameters())
    assert optimizer.steps_taken == 0


def test_gradients_may_be_too_large_together():
    def steep(output, _):
        return (output * 1.5e308).sum() * 0.5

    model = ld.Linear(8, 3, rng=0, dtype=np.float64)
    x = np.full((1, 8), 2.0)
    model.weight.data = np.zeros((3, 8))
    model.bias.data = np.zeros(3)
    options = {"optimizer": ld.SGD(model.parameters()), "steps": 1, "loss": steep, "rng": 0}
    with pytest.raises(FloatingPointError, match=r"though the loss is: too large together$"):
        next(ld.fit(model, x, [0], clip_grad_norm=1.0, **options))


# ----------------------------------------------------------------------------- a label for each place


def by_place(classes=5, dtype=np.float64):
    """Return a model that computes logits for each id by itself, and notes the dtype of its input."""

    class Model(ld.Module):
        def __init__(self):
            self.table = ld.Embedding(7, 4, rng=0, dtype=dtype)
            self.head = ld.Linear(4, classes, rng=1, dtype=dtype)
            self._seen = set()

        def forward(self, ids):
            self._seen.add(ids.dtype)
            return self.head(self.table(ids))

    return Model()


@st.composite
def sequences(draw):
    """Return ids and labels of one shape, (N,) or (N, T) or more; some labels count."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.integers(0, 5, shape)
    some = rng.random(shape) < draw(st.sampled_from([0, 0.3, 0.9]))
    some.flat[rng.integers(some.size)] = False
    labels[some] = -100
    dtypes = st.sampled_from([np.int8, np.int16, np.int64, *([] if some.any() else [np.uint8])])
    return rng.integers(0, 7, shape).astype(draw(dtypes)), labels.astype(draw(dtypes))


@given(sequences(), st.integers(1, 5))
def test_evaluation_is_the_mean_over_all_labels_that_count(given, batch_size):
    ids, labels = given
    model = by_place()
    counted = labels != -100
    logits = model(ids).data[counted]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = ld.evaluate(model, ids, labels, batch_size)
    right = np.take_along_axis(p, labels[counted][:, None], -1)
    assert found.loss == pytest.approx(-np.log(right).mean(), rel=1e-12)
    assert found.accuracy == np.mean(logits.argmax(-1) == labels[counted])


@given(sequences())
def test_a_step_on_sequences_is_one_on_the_labels_that_count(given):
    ids, labels = given
    counted = labels != -100

    def trained(x, labels):
        model = by_place()
        optimizer = ld.SGD(model.parameters(), lr=0.5)
        options = {"steps": 2, "batch_size": len(x), "rng": 0}
        return list(ld.fit(model, x, labels, optimizer=optimizer, **options)), model.state_dict()

    (records, state) = trained(ids, labels)
    (expected, flat) = trained(ids[counted], labels[counted])
    assert_allclose([r.loss for r in records], [r.loss for r in expected], rtol=1e-12)
    for name, array in state.items():
        assert_allclose(array, flat[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, list])
def test_ids_reach_the_model_as_they_are(dtype):
    """This includes a model that is adapted, switched off, merged, or saved and loaded."""
    ids = np.arange(60) % 5
    x, y = ld.windows(ids if dtype is list else ids.astype(dtype), 8)
    x, y = (x.tolist(), y.tolist()) if dtype is list else (x, y)
    base = by_place()
    config = ld.LoraConfig(r=2, target_modules=["head"], modules_to_save=["table"])
    model = ld.get_peft_model(base, config, rng=0)
    optimizer = ld.AdamW(model.trainable_parameters(), lr=0.05)
    losses = [s.loss for s in ld.fit(model, x, y, optimizer=optimizer, steps=60, rng=0)]
    assert losses[-1] < 0.1 * losses[0]
    trained = ld.evaluate(model, x, y)
    assert trained.accuracy == 1
    with model.disable_adapter():
        assert ld.evaluate(model, x, y) == ld.evaluate(base, x, y) != trained
    merged = model.merge_and_unload()
    assert ld.evaluate(merged, x, y).loss == pytest.approx(trained.loss, rel=1e-9)
    expected = {np.dtype(int if dtype is list else dtype)}
    assert base._seen == expected
    assert merged._seen == expected


def test_a_model_of_ids_is_read_from_its_file(tmp_path):
    model, again = by_place(), by_place()
    model.head.weight.data *= 2
    ld.save_model(tmp_path / "model.npz", model)
    ld.load_model(tmp_path / "model.npz", again)
    x, y = ld.windows(np.arange(60) % 5, 8)
    assert ld.evaluate(again, x, y) == ld.evaluate(model, x, y)


@pytest.mark.parametrize("method", [ld.fit, ld.evaluate])
@pytest.mark.parametrize(
    ("classes", "wrong", "error", "message"),
    [
        (5, [0], ValueError, r"labels \(\.\.\.\), got \((4|32), 8, 5\) and \((4|32), 1\)"),
        (1, [0] * 8, ValueError, "one logit tells no classes apart"),
        (5, [0] * 7 + [5], IndexError, "label 5 is out of range for 5 classes"),
        (5, [-100] * 7 + [-1], IndexError, "label -1 is out of range for 5 classes"),
        (5, [-100] * 7 + [-101], IndexError, "label -101 is out of range for 5 classes"),
        (5, [0.0] * 8, TypeError, "labels are class numbers"),
    ],
)
def test_one_wrong_label_in_a_sequence_is_refused(method, classes, wrong, error, message):
    """The error comes before anything changes, even if the fault is in the last example."""
    model = by_place(classes)
    before = model.state_dict()
    ids = np.zeros((40, 8), int)
    labels = np.zeros((40, len(wrong)), type(wrong[-1]))
    labels[-1 if len(wrong) == 8 else ...] = wrong

    def use():
        if method is ld.evaluate:
            ld.evaluate(model, ids, labels, 4)
        else:
            optimizer = ld.SGD(model.parameters())
            list(ld.fit(model, ids, labels, optimizer=optimizer, steps=9, rng=0))

    with pytest.raises(error, match=message):
        use()
    assert all(np.array_equal(before[n], p.data) for n, p in model.named_parameters())


def test_a_batch_in_which_no_label_counts_is_the_cause_of_its_loss():
    ids, labels = np.zeros((2, 8), int), np.zeros((2, 8), int)
    labels[0] = -100
    model = by_place()
    options = {"optimizer": ld.SGD(model.parameters()), "steps": 2, "batch_size": 1, "rng": 0}
    message = "the loss is nan at step .: no label of this batch counts, all are -100: leave such"
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=message):
        list(ld.fit(model, ids, labels, **options))


def test_many_labels_in_float16_have_a_mean_though_their_sum_is_infinite():
    narrow, wide = by_place(dtype=np.float16), by_place(dtype=np.float64)
    for p, q in zip(narrow.parameters(), wide.parameters(), strict=True):
        q.data = p.data.astype(np.float64)
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 7, (1000, 64)), rng.integers(0, 5, (1000, 64))
    expected = ld.evaluate(wide, ids, labels).loss
    assert expected * ids.size > 65504
    assert ld.evaluate(narrow, ids, labels).loss == pytest.approx(expected, rel=1e-3)


# ----------------------------------------------------------------------------- windows of a text


@given(
    ids=st.lists(st.integers(0, 64), min_size=2, max_size=40),
    dtype=st.sampled_from([list, np.uint8, np.int32, np.int64]),
    data=st.data(),
)
def test_windows_are_the_slices_of_a_text_and_what_comes_next(ids, dtype, data):
    length = data.draw(st.integers(1, len(ids) - 1))
    stride = data.draw(st.integers(1, 50))
    given = ids if dtype is list else np.array(ids, dtype)
    x, y = ld.windows(given, length, stride)
    starts = range(0, len(ids) - length, stride)
    assert x.tolist() == [ids[i : i + length] for i in starts]
    assert y.tolist() == [ids[i + 1 : i + 1 + length] for i in starts]
    assert x.dtype == y.dtype == np.asarray(given).dtype


@given(count=st.integers(1, 5), length=st.integers(1, 7), rest=st.data())
def test_windows_that_do_not_overlap_count_each_id_once(count, length, rest):
    left_over = rest.draw(st.integers(0, length - 1))
    ids = np.arange(1 + count * length + left_over)
    _, y = ld.windows(ids, length, stride=length)
    assert y.ravel().tolist() == list(range(1, 1 + count * length))


def test_windows_are_views_that_cannot_be_written_to():
    ids = np.arange(100)
    for view in ld.windows(ids, 8):
        assert np.shares_memory(view, ids)
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 1
    assert ids.flags.writeable


@pytest.mark.parametrize(
    ("ids", "length", "error", "message"),
    [
        ([], 4, ValueError, "the text is empty"),
        (np.zeros(0, int), 4, ValueError, "the text is empty"),
        ([1, 2, 3, 4], 4, ValueError, "too short, 4 ids: a window of 4 takes 5"),
        ([1], 1, ValueError, "too short, 1 ids: a window of 1 takes 2"),
        ("Call me Ishmael", 4, TypeError, "integers, not a str: give each character a number"),
        (b"Call me Ishmael", 4, TypeError, "integers, not a bytes: give each character a number"),
        (list("Call me"), 4, TypeError, "integers, not a text: give each character a number"),
        (np.arange(9.0), 4, TypeError, "integers, not float64"),
        (np.ones(9, bool), 4, TypeError, "integers, not bool"),
        (mg.Tensor(np.ones(9)), 4, TypeError, "integers, not float64"),
        (np.ma.masked_array([1, 2, 3], [0, 0, 1]), 1, TypeError, "ids: .* MaskedArray"),
        (np.ones((3, 3), int), 1, ValueError, r"of one text, \(T,\), got \(3, 3\)"),
        (7, 1, ValueError, r"of one text, \(T,\), got \(\)"),
        (None, 1, TypeError, "ids: .* NoneType"),
        (np.arange(9), 0, ValueError, "length must be at least 1, not 0"),
        (np.arange(9), 2.0, TypeError, "length must be an integer, not 2.0"),
        (np.arange(9), True, TypeError, "length must be an integer, not True"),
    ],
)
def test_what_has_no_windows_is_refused(ids, length, error, message):
    with pytest.raises(error, match=message):
        ld.windows(ids, length)


@pytest.mark.parametrize("method", [ld.fit, ld.evaluate])
def test_windows_are_never_copied_whole(method):
    ids = (np.arange(200_000) % 5).astype(np.uint8)
    model = by_place(dtype=np.float32)
    x, y = ld.windows(ids, 64, 1 if method is ld.fit else 60)

    def use():
        if method is ld.evaluate:
            ld.evaluate(model, x, y, batch_size=20)
        else:
            optimizer = ld.SGD(model.parameters())
            list(ld.fit(model, x, y, optimizer=optimizer, steps=2, rng=0))

    tracemalloc.start()
    try:
        use()
        assert tracemalloc.get_traced_memory()[1] < 2**21  # an order of 200,000 is 1.6e6 bytes
    finally:
        tracemalloc.stop()
    assert method is ld.evaluate or x.nbytes > 2**23


@pytest.mark.parametrize("stride", [0, -1, 1.5])
def test_windows_do_not_stand_still(stride):
    with pytest.raises((ValueError, TypeError), match="stride must be"):
        ld.windows(np.arange(9), 2, stride)


# ----------------------------------------------------------------------------- interruption


def test_a_seed_is_the_generator_that_it_makes():
    assert train(base(), rng=7) == train(base(), rng=np.random.default_rng(7))


def test_one_number_is_drawn_from_the_generator():
    rng, expected = np.random.default_rng(0), np.random.default_rng(0)
    train(base(), steps=20, rng=rng)
    expected.integers(2**63)
    assert rng.bit_generator.state == expected.bit_generator.state


@pytest.mark.parametrize("lengths", [None, np.arange(90)[::-1] // 7], ids=["alike", "different"])
@pytest.mark.parametrize("start", range(10))
def test_shuffling_and_schedule_go_on_from_any_step(start, lengths):
    def seen(start):
        batches = []

        def noted(output, labels):
            batches.append(labels)
            return mg.mse_loss(output[:, 0], labels)

        model, targets = base(), np.arange(90.0)
        optimizer = ld.SGD(model.parameters(), lr=0)
        options = {"steps": 9, "batch_size": 25, "schedule": linear_decay, "loss": noted, "rng": 4}
        options["lengths"] = lengths
        steps = list(ld.fit(model, X, targets, optimizer=optimizer, start=start, **options))
        return [b.tolist() for b in batches], [(s.step, s.total, s.rate) for s in steps]

    whole, rest = seen(0), seen(start)
    assert rest == (whole[0][start:], whole[1][start:])


#: Trains to the step given, or from it to the end, in a process of its own.
INTERRUPTED = """
import json, sys
from pathlib import Path
import numpy as np
import loradora as ld
from loradora.optim import cosine_decay

folder, model_kind, optimizer_kind, start, stop = sys.argv[1:]
folder, start, stop, adapted = Path(folder), int(start), int(stop), model_kind == "adapter"

def base():
    rng = np.random.default_rng(0)
    layers = ld.Linear(6, 16, rng=rng), ld.ReLU(), ld.Dropout(0.3, rng=rng), ld.Linear(16, 3, rng=rng)
    return ld.Sequential(*layers)

def dropouts(model):
    return [m for _, m in model.named_modules() if isinstance(m, ld.Dropout)]

rng = np.random.default_rng(1)
x, labels = rng.normal(size=(50, 6)), rng.integers(0, 3, 50)
if adapted and start:
    model = ld.PeftModel.from_pretrained(base(), folder / "model.npz", is_trainable=True, rng=rng)
elif adapted:
    config = ld.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.2, use_dora=True)
    model = ld.get_peft_model(base(), config, rng=rng)
else:
    model = base()
make = {"AdamW": ld.AdamW, "SGD": lambda p, lr: ld.SGD(p, lr, momentum=0.9)}[optimizer_kind]
optimizer = make(model.trainable_parameters(), lr=0.05)
if start:
    if not adapted:
        ld.load_model(folder / "model.npz", model)
    with np.load(folder / "optimizer.npz") as state:
        optimizer.load_state_dict(state)
    taken, states = json.loads((folder / "rest.json").read_text())
    assert taken == start
    for m, state in zip(dropouts(model), states, strict=True):
        m.rng.bit_generator.state = state

options = {"steps": 20, "batch_size": 8, "schedule": cosine_decay, "start": start, "rng": 5}
options["clip_grad_norm"] = 0.8  # of norms from 0.4 to 2.8
losses = []
for step in ld.fit(model, x, labels, optimizer=optimizer, **options):
    losses.append(step.loss)
    if step.step == stop:
        break
np.savez(folder / "optimizer.npz", **optimizer.state_dict())
states = [m.rng.bit_generator.state for m in dropouts(model)]
(folder / "rest.json").write_text(json.dumps([stop, states]))
if adapted:
    model.save_adapter(folder / "model.npz")
else:
    ld.save_model(folder / "model.npz", model)
parameters = {n: p.data.tobytes().hex() for n, p in model.named_parameters()}
print(json.dumps([losses, parameters]))
"""


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("model", ["whole", "adapter"])
def test_an_interrupted_training_goes_on_bit_by_bit_in_another_process(model, optimizer, tmp_path):
    """Interrupted in the middle of an epoch (of 7 batches), at its end, and several times."""

    def run(name, start, stop):
        (tmp_path / name).mkdir(exist_ok=True)
        arguments = [str(tmp_path / name), model, optimizer, str(start), str(stop)]
        command = [sys.executable, "-W", "error", "-c", INTERRUPTED, *arguments]
        root = Path(ld.__file__).parent.parent
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    losses, parameters = run("whole", 0, 20)
    for stops in ([3], [7], [5, 18]):
        name, found = str(stops), []
        for start, stop in zip([0, *stops], [*stops, 20], strict=True):
            more, reached = run(name, start, stop)
            found += more
        assert found == losses
        assert reached == parameters


OPTIMIZERS = {
    "AdamW": lambda params: ld.AdamW(params, lr=0.1),
    "SGD": lambda params: ld.SGD(params, lr=0.1),
    "momentum": lambda params: ld.SGD(params, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_an_interrupt_anywhere_a_training_knows_how_far_it_came_and_goes_on_bit_by_bit(name):
    """In the third step of five, in a training that was continued once before."""

    def begun():
        model = ld.Linear(8, 3, rng=1)
        optimizer = OPTIMIZERS[name](model.parameters())
        return model, optimizer, go_on(model, optimizer, 0)

    def go_on(model, optimizer, start):
        options = {"steps": 5, "batch_size": 20, "schedule": linear_decay, "rng": 4}
        options["clip_grad_norm"] = 0.5  # of norms from 0.4 to 1.2
        return ld.fit(model, X, LABELS, optimizer=optimizer, start=start, **options)

    def state(model, optimizer):
        entries = [*model.state_dict().values(), *optimizer.state_dict().values()]
        return [array.tobytes() for array in entries]

    model, optimizer, training = begun()
    states = [state(model, optimizer)]
    for _ in training:
        states.append(state(model, optimizer))

    def prepare():
        model, optimizer, training = begun()
        next(training)
        training.close()
        training = go_on(model, optimizer, training.taken)
        next(training)
        return (model, optimizer, training), lambda: next(training)

    reached = []
    for model, optimizer, training in interrupted_everywhere(prepare):
        reached.append(training.taken)
        assert state(model, optimizer) == states[training.taken]
        for _ in go_on(model, optimizer, training.taken):
            pass
        assert state(model, optimizer) == states[5]
    assert set(reached) == {2, 3}
    assert reached == sorted(reached)


def test_a_training_counts_the_steps_that_were_taken():
    optimizer = ld.SGD((model := base()).parameters())
    options = {"optimizer": optimizer, "steps": 9, "rng": 0}
    training = ld.fit(model, X, LABELS, **options)
    assert training.taken == 0
    for step in training:
        assert training.taken == step.step
        if step.step == 6:
            break
    again = ld.fit(model, X, LABELS, start=training.taken, **options)
    assert again.taken == 6
    assert [step.step for step in again] == [7, 8, 9]
    assert again.taken == 9
    assert optimizer.steps_taken == 9


def test_one_logit_is_no_classifier():
    model, x, labels = ld.MLP([2, 1], rng=0), np.ones((3, 2)), np.zeros(3, int)
    with pytest.raises(ValueError, match="one logit tells no classes apart"):
        ld.evaluate(model, x, labels)
    optimizer = ld.SGD(model.parameters())
    with pytest.raises(ValueError, match="one logit tells no classes apart"):
        next(ld.fit(model, x, labels, optimizer=optimizer, steps=1, rng=0))


@pytest.mark.parametrize(
    "wrong", [{"steps": -3}, {"batch_size": 0}, {"start": 9}, {"labels": [0.5] * 3}, {"rng": "x"}]
)
def test_what_is_wrong_is_said_at_the_call_not_when_it_is_iterated(wrong):
    model = ld.MLP([2, 2], rng=0)
    given = {"x": np.ones((3, 2)), "labels": [0, 1, 0], "steps": 5, "rng": 0}
    with pytest.raises((TypeError, ValueError)):
        ld.fit(model, optimizer=ld.SGD(model.parameters()), **given | wrong)


def test_a_training_that_was_never_iterated_warns():
    model = base()
    options = {"optimizer": ld.SGD(model.parameters()), "steps": 1, "rng": 0}
    with pytest.warns(UserWarning, match="not iterated, so nothing was trained"):
        ld.fit(model, X, LABELS, **options)  # and is gone at once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(ld.fit(model, X, LABELS, **options))) == 1


def test_after_a_training_no_gradient_is_left_to_be_taken_for_a_new_one():
    model = base()
    optimizer = ld.SGD(model.parameters())
    for _ in ld.fit(model, X, LABELS, optimizer=optimizer, steps=2, rng=0):
        assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient"):
        optimizer.step()


def test_a_generator_cannot_say_in_what_order_a_training_began():
    model = base()
    options = {"optimizer": ld.SGD(model.parameters()), "steps": 5, "start": 2}
    for rng in (np.random.default_rng(0), None):
        with pytest.raises(TypeError, match="needs the seed that it was given at first"):
            ld.fit(model, X, LABELS, rng=rng, **options)


def test_a_training_can_be_closed_early():
    model = base()
    with contextlib.closing(
        ld.fit(model, X, LABELS, optimizer=ld.SGD(model.parameters()), steps=5, rng=0)
    ) as steps:
        assert next(steps).step == 1
    assert list(steps) == []


@pytest.mark.parametrize(
    "wrong", [{"optimizer": ld.AdamW}, {"optimizer": "adamw"}, {"schedule": [1]}]
)
def test_what_is_no_optimizer_or_schedule_is_refused_at_the_call(wrong):
    model = base()
    options = {"optimizer": ld.SGD(model.parameters()), "steps": 5, "rng": 0}
    with pytest.raises(TypeError, match=r"expected an optimizer|must be a function"):
        ld.fit(model, X, LABELS, **options | wrong)
