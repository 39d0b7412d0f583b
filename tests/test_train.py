"""``fit`` trains what the optimizer was given and nothing else; ``evaluate`` changes nothing."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import loradora as ld
import minigrad as mg
from loradora.optim import linear_decay

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
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1: try a smaller rate"):
        train(model, optimizer=optimizer)
    assert all(a.tobytes() == before[n].tobytes() for n, a in model.state_dict().items())


def test_a_rate_that_is_too_large_ends_in_an_error_not_in_nan():
    model = base()
    with pytest.raises(FloatingPointError, match="try a smaller rate"):
        train(model, optimizer=ld.SGD(model.parameters(), lr=1e20), steps=300)


REFUSED = {
    "fewer labels": ({"labels": LABELS[:-1]}, "as many labels as inputs, got 89 for 90"),
    "no examples": ({"x": X[:0], "labels": LABELS[:0]}, "got 0 for 0"),
    "no steps": ({"steps": 0}, "steps must be at least 1, not 0"),
    "an empty batch": ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
}


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


@pytest.mark.parametrize("name", ["fewer labels", "no examples", "an empty batch"])
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
