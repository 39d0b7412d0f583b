"""What makes the arithmetic cheap, stated without a clock.

A training step of a LoRA or a DoRA makes nothing of the size of W0, differentiates nothing that is
frozen, and uses only operations of the engine.  It leaves nothing behind except its optimizer's moments,
which belong to the trained tensors only.
"""

import gc
import re
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from test_ops import watch_rules

import loradora as ld
import minigrad as mg
from minigrad import hints
from minigrad.engine import ancestry

WIDE = 1024

METHODS = [
    pytest.param({}, id="LoRA"),
    pytest.param({"use_dora": True}, id="DoRA"),
]
VARIANTS = [
    pytest.param(ld.LoRALinear, {}, id="LoRA"),
    pytest.param(ld.DoRALinear, {}, id="DoRA"),
    pytest.param(ld.DoRALinear, {"detach_norm": False}, id="DoRA, exact"),
    pytest.param(ld.DoRALinear, {"norm_axis": 0}, id="DoRA, columns"),
    pytest.param(ld.DoRALinear, {"norm_axis": 0, "detach_norm": False}, id="DoRA, columns, exact"),
]


def adapted(sizes, seed=0, **options):
    """Return an MLP with an adapter in every layer, in the middle of its training: B is not zero."""
    rng = np.random.default_rng(seed)
    config = ld.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", **options)
    model = ld.get_peft_model(ld.MLP(sizes, rng=rng), config, rng=rng)
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            p.data = rng.standard_normal(p.shape, p.dtype) / 10
    return model


def batch(sizes, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, sizes[0]), np.float32)
    return x, rng.integers(sizes[-1], size=rows)


def step(model, optimizer, x, labels):
    loss = mg.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def peak(work):
    """Return the largest number of bytes that ``work`` held at once beyond those held before."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def recorded(y):
    """Return the nodes of the results that y was computed through, oldest first."""
    return [node for node in ancestry(y) if node.op is not None]


# ----------------------------------------------------------------------------- nothing like W0


@pytest.mark.parametrize("options", METHODS)
def test_a_training_step_makes_nothing_of_the_size_of_w0(options):
    sizes = [WIDE, WIDE, WIDE]
    model = adapted(sizes, **options)
    optimizer = ld.AdamW(model.trainable_parameters())
    x, labels = batch(sizes)
    for _ in range(2):  # the first step makes the moments
        assert peak(lambda: step(model, optimizer, x, labels)) < WIDE * WIDE  # not even of bools


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_layer_makes_nothing_of_the_size_of_w0_forward_or_back(kind, options):
    layer = kind(ld.Linear(WIDE, WIDE), r=2, lora_alpha=4, **options)
    layer.B.data = np.full_like(layer.B.data, 0.1)
    x = mg.Tensor(np.ones((2, WIDE), np.float32), requires_grad=True)
    assert peak(lambda: layer(x).sum().backward()) < WIDE * WIDE
    layer.eval()
    with mg.no_grad():
        assert peak(lambda: layer(x)) < WIDE * WIDE


def test_an_adapter_shares_the_weight_of_its_base():
    base = ld.MLP([WIDE, WIDE])
    config = ld.LoraConfig(r=2, target_modules=["0"])
    models = []
    assert peak(lambda: models.append(ld.get_peft_model(base, config))) < WIDE * WIDE
    weights = [p.data for name, p in models[0].named_parameters() if name.endswith(".weight")]
    assert np.shares_memory(*weights, base.parameters()[0].data)


# ----------------------------------------------------------------------------- nothing frozen


@pytest.mark.parametrize("options", METHODS)
def test_no_rule_is_called_for_what_is_frozen(options, monkeypatch):
    differentiated = watch_rules(monkeypatch, mg.OPS.values())
    sizes = [6, 5, 4]
    model = adapted(sizes, **options)
    x, labels = batch(sizes)
    mg.cross_entropy(model(x), labels).backward()
    by_name = dict(model.named_parameters())
    called = {name for name, p in by_name.items() if any(a is p.data for a in differentiated)}
    assert called == {name for name, p in by_name.items() if p.requires_grad}
    assert not any(a is x for a in differentiated)


# ----------------------------------------------------------------------------- the engine's operations


@pytest.mark.parametrize("options", METHODS)
def test_every_operation_of_a_training_step_is_one_of_the_engines(options):
    sizes = [6, 5, 4]
    x, labels = batch(sizes)
    loss = mg.cross_entropy(adapted(sizes, **options)(x), labels)
    used = {tensor.op.name: tensor.op for tensor in recorded(loss)}
    assert all(op is mg.OPS[name] for name, op in used.items())
    assert ("div" in used) == ("use_dora" in options)


def test_no_operation_is_defined_outside_of_the_engine():
    functions = [f for op in mg.OPS.values() for f in (op.forward, op.each, *op.vjps) if f]
    assert {f.__module__ for f in functions} == {"minigrad.ops"}


ROOT = Path(__file__).parent.parent

#: Where operations are used, and how that is written there.
USES = {
    "a layer, or training": ("loradora/*.py", r"mg\.{0}\(|^from minigrad import .*\b{0}\b"),
    "a loss, or what else is composed": ("minigrad/functional.py", r'ops\.{0}\(|OPS\["{0}"\]'),
    "a lesson": ("examples/*.py", r"mg\.{0}\(|^from minigrad.ops import .*\b{0}\b"),
    "a page": ("*.md", r"mg\.{0}\("),
    "the rule of an operation": ("minigrad/ops.py", r"\b{0}\.of\("),
    "an operator, or a method of ndarray": ("minigrad/tensor.py", r"\bops\.{0}\b"),
    "an answer to a name of another library": ("minigrad/hints.py", r"mg\.{0}\("),
}


def users_of(name):
    """Return who uses an operation."""
    used = [
        user
        for user, (files, pattern) in USES.items()
        for file in ROOT.glob(files)
        if re.search(pattern.format(name), file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return used + ["a synonym"] * (name in hints.SYNONYMS.values())


def test_there_is_no_operation_that_nobody_uses():
    """What can be composed of other operations is; for the rest there is a hint."""
    absent = ["cos", "cumsum", "sin"]
    assert [name for name in [*sorted(mg.OPS), *absent] if not users_of(name)] == absent


@pytest.mark.parametrize("mode", ["training", "evaluation", "merged"])
@pytest.mark.parametrize(("kind", "options"), VARIANTS[1:])
def test_the_norm_is_the_engines_norm_of_v(kind, options, mode, monkeypatch):
    layer = kind(ld.Linear(6, 12), r=2, lora_alpha=4, **options)
    layer.B.data = np.full_like(layer.B.data, 0.1)
    layer.train(mode == "training")
    arguments, forward = [], mg.norm.forward
    monkeypatch.setattr(mg.norm, "forward", lambda x, *a: arguments.append(x) or forward(x, *a))
    if mode == "merged":
        layer.merge()
    else:
        layer(np.ones((3, 6), np.float32))
    (found,) = arguments
    V = layer.base_layer.weight.data + layer.scaling * layer.B.data @ layer.A.data
    np.testing.assert_allclose(found if found.shape == V.shape else found.T, V, rtol=1e-5)


@pytest.mark.parametrize("options", METHODS)
def test_evaluation_records_nothing(options):
    sizes = [6, 5, 4]
    model = adapted(sizes, **options).eval()
    with mg.no_grad():
        y = model(batch(sizes)[0])
    assert not y.requires_grad
    assert ancestry(y) == [y]


# ----------------------------------------------------------------------------- nothing left behind


@pytest.mark.parametrize("options", METHODS)
def test_the_graph_is_gone_after_backward(no_gc, options):
    sizes = [6, 5, 4]
    model = adapted(sizes, **options)
    x, labels = batch(sizes)
    loss = mg.cross_entropy(model(x), labels)
    graph = [weakref.ref(node) for node in recorded(loss)[:-1]]
    assert graph
    loss.backward()
    assert [memory() for memory in graph] == [None] * len(graph)


@pytest.mark.parametrize("options", METHODS)
def test_steps_leave_no_tensor_behind(no_gc, options):
    sizes = [6, 5, 4]
    model = adapted(sizes, **options)
    optimizer = ld.AdamW(model.trainable_parameters())

    def alive():
        return sum(type(o) is mg.Tensor for o in gc.get_objects())

    before = alive()
    for _ in range(3):
        step(model, optimizer, *batch(sizes))
    assert alive() == before


@pytest.mark.parametrize("options", METHODS)
def test_the_optimizer_keeps_moments_for_trained_tensors_only(options):
    sizes = [6, 5, 4]
    model = adapted(sizes, **options)
    optimizer = ld.AdamW(model.parameters())  # the frozen ones, too
    step(model, optimizer, *batch(sizes))
    assert list(optimizer.state) == model.trainable_parameters()
    for p, state in optimizer.state.items():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == p.shape
    assert [p.grad for p in model.parameters() if not p.requires_grad] == [None] * 4
