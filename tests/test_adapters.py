"""LoRA and DoRA compute what their papers say, and their gradients are what calculus says.

They are compared with three things: finite differences, closed forms written out in plain NumPy, and the
definition of a norm.  DoRA is tested with the norm of rows and of columns, and with the norm held
constant and exactly differentiated.
"""

import ast
import contextlib
import copy
import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from interrupting import interrupted_by_a_timer, needs_timers
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora import norms
from loradora.adapters import ColumnDoRALinear, nonzero
from loradora.combining import LoRASum
from loradora.norms import LowRankNorm, direct_norm, factored_row_norm, squares


class Kind(NamedTuple):
    """A class of adapted layers, how it is made, and what it computes, in plain NumPy.

    ``closed_form(layer, W_bar)`` returns the weight W that the layer acts with and, from W̄, the
    gradients of what it trains, by name.
    """

    cls: type
    closed_form: Callable
    options: Mapping = MappingProxyType({})
    starts_as_configured: bool = True  # A and B as ``init_lora_weights`` says


def lora(layer, W_bar):
    W0, A, B, s = layer.base_layer.weight.data, layer.A.data, layer.B.data, layer.scaling
    return W0 + s * B @ A, {"A": s * B.T @ W_bar, "B": s * W_bar @ A.T}


def dora(layer, W_bar):
    axis, A, B, s = layer.norm_axis, layer.A.data, layer.B.data, layer.scaling
    V, _ = lora(layer, W_bar)
    norm = np.sqrt(np.sum(V**2, axis, keepdims=True))
    unit, c = V / norm, np.expand_dims(layer.m.data, axis) / norm
    along = np.sum(W_bar * unit, axis, keepdims=True)
    V_bar = c * W_bar  #                                                               eq. 11
    if not layer.detach_norm:
        V_bar = V_bar - c * unit * along  #                                            eq. 6
    m_bar = along.squeeze(axis)  #                                                     eq. 7
    return c * V, {"A": s * B.T @ V_bar, "B": s * V_bar @ A.T, "m": m_bar}


def lora_fa(layer, W_bar):
    W, found = lora(layer, W_bar)
    return W, {"B": found["B"]}


def vera(layer, W_bar):
    A, B, d, b = (p.data for p in (layer.A, layer.B, layer.d, layer.b))
    s = layer.scaling
    W = layer.base_layer.weight.data + s * b[:, None] * ((B * d) @ A)
    return W, {
        "b": s * np.sum(W_bar * ((B * d) @ A), axis=1),
        "d": s * np.einsum("oi,o,or,ri->r", W_bar, b, B, A),
    }


def from_contributing(name):
    """Return the class that CONTRIBUTING.md defines by this name, as it stands there."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        body = ast.parse(code).body
        imports = [part for part in body if isinstance(part, (ast.Import, ast.ImportFrom))]
        for part in body:
            if isinstance(part, ast.ClassDef) and part.name == name:
                names = {}
                exec(compile(ast.Module([*imports, part], []), "CONTRIBUTING.md", "exec"), names)
                return names[name]
    raise LookupError(name)


DETACHED = {"DoRA": {}, "DoRA of columns": {"norm_axis": 0}}
EXACT = {
    "exact DoRA": {"detach_norm": False},
    "exact DoRA of columns": {"detach_norm": False, "norm_axis": 0},
}
KINDS = {
    "LoRA": Kind(ld.LoRALinear, lora),
    **{name: Kind(ld.DoRALinear, dora, options) for name, options in {**DETACHED, **EXACT}.items()},
    "LoRA-FA": Kind(from_contributing("LoRAFALinear"), lora_fa),
    "VeRA": Kind(from_contributing("VeRALinear"), vera, starts_as_configured=False),
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_start = pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].starts_as_configured])
every_dora = pytest.mark.parametrize("kind", [*DETACHED, *EXACT])
norm_axes = pytest.mark.parametrize("norm_axis", [1, 0], ids=["rows", "columns"])


def fresh(kind, sizes=(3, 4), r=2, dtype=np.float64, seed=0, bias=True, **options):
    """Return an untrained layer of ``sizes`` (in, out)."""
    rng = np.random.default_rng(seed)
    base = ld.Linear(*sizes, bias=bias, rng=rng, dtype=dtype)
    return adapt(kind, base, **{"r": r, "lora_alpha": 3, "rng": rng, **options})


def adapt(kind, base, **options):
    return KINDS[kind].cls(base, **KINDS[kind].options, **options)


def trained(kind, *args, seed=0, **options):
    """Return a layer whose adapter is anywhere: A, B and m are random, m of either sign."""
    layer = fresh(kind, *args, seed=seed, **options)
    rng = np.random.default_rng(seed + 1)
    for p in layer.trainable_parameters():
        p.data = rng.normal(size=p.shape).astype(p.dtype)
    return layer


def inputs(layer, batch=(5,), seed=0):
    """Return an input x of shape (*batch, in) and an upstream gradient G of shape (*batch, out)."""
    rng = np.random.default_rng(seed + 2)
    out_features, in_features = layer.base_layer.weight.shape
    dtype = layer.A.dtype
    return (
        rng.normal(size=(*batch, in_features)).astype(dtype),
        rng.normal(size=(*batch, out_features)).astype(dtype),
    )


def gradients(layer, x, G):
    """Return y and the gradients of x and of everything trained, by name."""
    x = mg.Tensor(x, requires_grad=True)
    wanted = {"x": x} | {n: p for n, p in layer.named_parameters() if p.requires_grad}
    y = layer(x)
    return y.data, dict(zip(wanted, (g.data for g in mg.grad(y, list(wanted.values()), G))))


def closed_forms(kind, layer, x, G):
    """Return y and all gradients by the formulas of the papers, in plain NumPy; W is formed."""
    rows, G_rows = x.reshape(-1, x.shape[-1]), G.reshape(-1, G.shape[-1])
    W, found = KINDS[kind].closed_form(layer, G_rows.T @ rows)
    return x @ W.T + layer.base_layer.bias.data, {"x": G @ W, **found}


@st.composite
def problems(draw):
    """Draw sizes, rank, batch shape and seed: 1-D, 2-D and 3-D inputs and empty batches."""
    size = st.integers(1, 4)
    return {
        "sizes": (draw(size), draw(size)),
        "r": draw(st.integers(1, 5)),
        "use_rslora": draw(st.booleans()),
        "lora_alpha": draw(st.sampled_from([1, 3, 0.5])),
        "seed": draw(st.integers(0, 2**16)),
    }, draw(st.sampled_from([(), (1,), (3,), (0,), (2, 2), (2, 0)]))


# ----------------------------------------------------------------------------- three witnesses


def condition(layer):
    """Return how much larger the terms of V are than V itself, by whose length DoRA divides."""
    W0, BA = layer.base_layer.weight.data, layer.scaling * layer.B.data @ layer.A.data
    if not isinstance(layer, ld.DoRALinear):
        return 1
    terms, V = ((a * a).sum(axis=layer.norm_axis) for a in (np.abs(W0) + np.abs(BA), W0 + BA))
    return (terms / V).max()


@every_kind
@given(problem=problems())
def test_outputs_and_gradients_follow_the_closed_forms(kind, problem):
    options, batch = problem
    layer = trained(kind, **options)
    x, G = inputs(layer, batch)
    y, found = gradients(layer, x, G)
    expected_y, expected = closed_forms(kind, layer, x, G)
    size = max(1, *(np.abs(g).max(initial=0) for g in (expected_y, *expected.values())))
    size *= condition(layer)
    assert_allclose(y, expected_y, rtol=1e-12, atol=1e-12 * size)
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        assert found[name].shape == g.shape
        assert_allclose(found[name], g, rtol=1e-12, atol=1e-12 * size, err_msg=name)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in DETACHED])
@given(problem=problems())
def test_finite_differences_agree(kind, problem):
    options, batch = problem
    layer = trained(kind, **options)
    x, _ = inputs(layer, batch)
    with norms_that_differences_can_see(layer):
        mg.gradcheck(lambda x, *_: layer(x), x, *layer.trainable_parameters(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", DETACHED)
@given(problem=problems())
def test_finite_differences_agree_when_they_too_hold_the_norm_constant(kind, problem):
    options, batch = problem
    layer = trained(kind, **options)
    x, G = inputs(layer, batch)
    W0, b, s = layer.base_layer.weight.data, layer.base_layer.bias.data, layer.scaling
    with norms_that_differences_can_see(layer):
        norm = np.linalg.norm(W0 + s * layer.B.data @ layer.A.data, axis=layer.norm_axis)

    def held(x, A, B, m):
        c = m / norm
        W = (c[:, None] if layer.norm_axis == 1 else c) * (W0 + s * (B @ A))
        return x @ W.T + b

    arrays = {"x": x} | {n: p.data for n, p in layer.named_parameters() if p.requires_grad}
    mg.gradcheck(held, *arrays.values(), rtol=1e-5, atol=1e-7)
    tensors = [mg.Tensor(a, requires_grad=True) for a in arrays.values()]
    expected = mg.grad(held(*tensors), tensors, G)
    found = gradients(layer, x, G)[1]
    for name, g in zip(arrays, expected):
        size = max(1, np.abs(g.data).max(initial=0))
        assert_allclose(found[name], g.data, rtol=1e-12, atol=1e-12 * size, err_msg=name)


@contextlib.contextmanager
def norms_that_differences_can_see(layer):
    """Leave out norms near 0: a difference steps across them, or drowns in rounding."""
    if isinstance(layer, ld.DoRALinear):
        assume(layer.norm().data.min() > 0.05)
        assume(condition(layer) < 100)
    yield


@pytest.mark.parametrize("kind", DETACHED)
def test_the_default_is_not_the_derivative_and_finite_differences_say_so(kind):
    layer = trained(kind)
    x, _ = inputs(layer)
    with pytest.raises(mg.GradcheckError, match=r"argument [12]"):
        mg.gradcheck(lambda x, *_: layer(x), x, *layer.trainable_parameters())


@norm_axes
@given(problem=problems())
def test_holding_the_norm_constant_changes_the_gradients_of_A_and_B_alone(norm_axis, problem):
    options, batch = problem
    held = trained("DoRA", norm_axis=norm_axis, **options)
    exact = trained("exact DoRA", norm_axis=norm_axis, **options)
    x, G = inputs(held, batch)
    (y, found), (exact_y, exact_found) = gradients(held, x, G), gradients(exact, x, G)
    for name in ("m", "x"):
        size = max(1, np.abs(found[name]).max(initial=0))
        assert_allclose(found[name], exact_found[name], rtol=1e-12, atol=1e-12 * size)
    assert_allclose(y, exact_y, rtol=1e-12, atol=1e-12)


def test_holding_the_norm_constant_does_change_the_gradients_of_A_and_B():
    held, exact = trained("DoRA"), trained("exact DoRA")
    x, G = inputs(held)
    found, exact_found = gradients(held, x, G)[1], gradients(exact, x, G)[1]
    for name in ("A", "B"):
        assert np.abs(found[name] - exact_found[name]).max() > 0.01 * np.abs(found[name]).max()


@pytest.mark.parametrize("kind", EXACT)
@given(seed=st.integers(0, 2**16))
def test_the_exact_gradient_of_V_is_orthogonal_to_V(kind, seed):
    """With r = in and A the identity, the gradient of B is s times that of V."""
    layer = trained(kind, (3, 4), r=3, seed=seed)
    layer.A.data = np.eye(3)
    V = layer.base_layer.weight.data + layer.scaling * layer.B.data
    V_bar = gradients(layer, *inputs(layer, seed=seed))[1]["B"]
    lengths = np.linalg.norm(V, axis=layer.norm_axis) * np.linalg.norm(V_bar, axis=layer.norm_axis)
    assert np.all(np.abs(np.sum(V_bar * V, layer.norm_axis)) <= 1e-12 * (1 + lengths))


# ----------------------------------------------------------------------------- the start


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(
    ("kind", "scheme"),
    [(k, True) for k in KINDS] + [(k, "gaussian") for k in KINDS if KINDS[k].starts_as_configured],
)
@given(problem=problems())
def test_at_the_start_the_layer_is_the_base_bit_by_bit(kind, dtype, scheme, problem):
    options, batch = problem
    layer = fresh(kind, dtype=dtype, init_lora_weights=scheme, **options)
    x, _ = inputs(layer, batch)
    expected = layer.base_layer(x).data
    for mode in (True, False):
        assert layer.train(mode)(x).data.tobytes() == expected.tobytes()


@every_kind
@pytest.mark.parametrize(("sizes", "rows"), [((784, 10), 1), ((784, 64), 8), ((300, 256), 64)])
def test_at_the_start_a_large_layer_is_the_base_bit_by_bit(kind, sizes, rows):
    """A product of more rows, computed together, would differ in the last bit."""
    layer = fresh(kind, sizes, r=8, dtype=np.float32)
    x, _ = inputs(layer, (rows,))
    assert layer(x).data.tobytes() == layer.base_layer(x).data.tobytes()


@every_dora
def test_a_new_weight_has_new_norms(kind):
    """What was cached for the old one is dropped, in training and in evaluation."""
    for mode in (True, False):
        layer = trained(kind).train(mode)
        x, G = inputs(layer)
        layer(x)
        layer.base_layer.weight.data = 2 * layer.base_layer.weight.data
        expected, _ = closed_forms(kind, layer, x, G)
        assert_allclose(layer(x).data, expected, rtol=1e-11, atol=1e-11)


@every_kind
def test_the_base_and_the_layer_share_one_read_only_array(kind):
    base = ld.Linear(3, 4)
    layer = adapt(kind, base, r=2, lora_alpha=4)
    for shared, own in ((layer.base_layer.weight, base.weight), (layer.bias, base.bias)):
        assert shared.data is own.data
        assert not own.data.flags.writeable
        assert not shared.requires_grad
        assert own.requires_grad


@every_kind
def test_training_leaves_W0_as_it_was_byte_by_byte(kind):
    layer = fresh(kind, (6, 5), dtype=np.float32)
    W0, b = layer.base_layer.weight.data.tobytes(), layer.bias.data.tobytes()
    optimizer = ld.AdamW(layer.parameters(), lr=0.1)
    x, G = inputs(layer)
    for _ in range(20):
        optimizer.zero_grad()
        layer(x).backward(G)
        optimizer.step()
    assert layer.base_layer.weight.data.tobytes() == W0
    assert layer.bias.data.tobytes() == b
    assert layer.base_layer.weight.grad is None
    with pytest.raises(ValueError, match="read-only"):
        layer.base_layer.weight.data[0] = 1


# ----------------------------------------------------------------------------- the norm

EXPONENTS = {
    np.float64: [-200, -160, -5, 0, 5, 140],
    np.float32: [-30, -21, -5, 0, 4, 17],
    np.float16: [-3, 0, 1],
}
RTOL = {np.float64: 1e-13, np.float32: 1e-5, np.float16: 5e-2}


def both(W0, A, B, s):
    """Return the norms of the rows of W0 + s B A in the factored form, and by definition."""
    with np.errstate(all="ignore"):
        found = factored_row_norm(W0, A, B, s, squares(W0))
        return found.data, direct_norm(W0, A, B, s).data


@pytest.mark.parametrize("dtype", RTOL)
@given(data=st.data())
def test_factored_norm_is_its_definition(dtype, data):
    """Also for entries whose squares overflow or vanish, and for rows of zeros."""
    out, r, n = (data.draw(st.integers(1, 6)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    powers = st.sampled_from(EXPONENTS[dtype])
    W0 = (
        rng.normal(size=(out, n))
        * 10.0 ** np.array(data.draw(st.lists(powers, min_size=out, max_size=out)))[:, None]
    )
    W0[rng.random(out) < 0.2] = 0
    B = rng.normal(size=(out, r))
    B[rng.random(out) < 0.2] = 0
    W0, A, B = W0.astype(dtype), rng.normal(size=(r, n)).astype(dtype), B.astype(dtype)
    s = data.draw(st.sampled_from([1.0, 0.5, 4 / math.sqrt(3)]))
    found, expected = both(W0, A, B, s)
    assert found.dtype == dtype
    # where the terms of b A cancel, the definition has rounded, too
    rounding = 8 * np.finfo(dtype).eps * direct_norm(abs(W0), abs(A), abs(B), s).data
    assert (abs(found - expected) <= RTOL[dtype] * expected + rounding).all(), (found, expected)


@pytest.mark.parametrize("dtype", RTOL)
@given(data=st.data())
def test_factored_norm_survives_cancellation(dtype, data):
    """B A ≈ −W0/s: small integers make all products exact, so every digit must be right."""
    integers = st.integers(0, 2**16)
    rng = np.random.default_rng(data.draw(integers))
    A, B = rng.integers(-4, 5, (2, 6)), rng.integers(-4, 5, (5, 2))
    little = rng.integers(-1, 2, (5, 6)) * (rng.random((5, 6)) < data.draw(st.floats(0, 1)))
    found, expected = both(
        (little - 2 * B @ A).astype(dtype), A.astype(dtype), B.astype(dtype), 2.0
    )
    assert_allclose(expected, np.sqrt(np.sum(little**2, 1)), rtol=RTOL[dtype], atol=0)
    assert_allclose(found, expected, rtol=RTOL[dtype], atol=0)


@given(seed=st.integers(0, 2**16), part=st.floats(-4, 0))
def test_factored_norm_where_the_rows_of_a_cancel_each_other(seed, part):
    """More rows in A than columns: bA is a small difference of large numbers, exact in integers."""
    rng = np.random.default_rng(seed)
    p, q, b, c, small = (rng.integers(-99, 100, 20) for _ in range(5))
    A = np.array([[p[0]], [q[0]], [1]])
    B = np.stack([b, c, small - b * p[0] - c * q[0]], axis=1)
    W0 = rng.normal(size=(20, 1)) * 10**part
    found, expected = both(*(a.astype(np.float32) for a in (W0, A, B)), 1.0)
    assert_allclose(found, expected, rtol=1e-5, atol=0)


@given(seed=st.integers(0, 2**16), part=st.floats(-4, -0.5))
def test_factored_norm_cancels_as_the_definition_does_in_float32(seed, part):
    """B A = −W0/s · (1 + 10^part): what is left has lost as many digits as W0 + s B A has."""
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(2, 40)).astype(np.float32), rng.normal(size=(9, 2)).astype(np.float32)
    W0 = (-B.astype(np.float64) @ A * (1 + 10**part)).astype(np.float32)
    found, expected = both(W0, A, B, 1.0)
    rounding = np.finfo(np.float32).eps * np.linalg.norm(W0, axis=1)
    assert np.all(np.abs(found - expected) <= 1e-5 * expected + rounding)


@given(seed=st.integers(0, 2**16), r=st.sampled_from([2, 4, 16]))
def test_gradients_of_the_factored_norm_survive_cancellation_in_float32(seed, r):
    """W0 = −B A + a little: exact in integers, so V has all its digits, and so has V̄ in Bᵀ V̄ and V̄ Aᵀ."""
    rng = np.random.default_rng(seed)
    A, B = rng.integers(-4, 5, (r, 64)), rng.integers(-4, 5, (5, r))
    W0 = (-B @ A + rng.integers(-1, 2, (5, 64)) / 1024).astype(np.float32)
    tensors = [mg.Tensor(a.astype(np.float32), requires_grad=True) for a in (A, B)]
    G = rng.normal(size=5).astype(np.float32)
    found = mg.grad(factored_row_norm(W0, *tensors, 1.0, squares(W0)), tensors, G)
    V = W0.astype(np.float64) + B @ A
    V_bar = G[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)
    for g, expected in zip(found, (B.T @ V_bar, V_bar @ A.T)):
        assert_allclose(g.data, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_factored_norm_is_differentiated_through_cancellation_and_rows_of_zeros():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 4)), rng.normal(size=(4, 2))
    W0 = rng.normal(size=(4, 4))
    W0[1] = 1e-3 * W0[1] - B[1] @ A
    W0[2], B[2] = 0, 0
    W0[3] *= 1e-170
    B[3] *= 1e-170
    G = rng.normal(size=4)
    tensors = [mg.Tensor(A, requires_grad=True), mg.Tensor(B, requires_grad=True)]
    found = mg.grad(factored_row_norm(W0, *tensors, 1.0, squares(W0)), tensors, G)
    expected = mg.grad(mg.norm(W0 + tensors[1] @ tensors[0], axis=1), tensors, G)
    for g, e in zip(found, expected):
        assert_allclose(g.data, e.data, rtol=1e-9)
    assert_array_equal(found[1].data[2], 0)


def test_a_row_without_length_hides_no_nan_in_another():
    base = ld.Linear(3, 2)
    base.weight.data = np.float32([[0, 0, 0], [1, 2, 2]])
    layer = ld.DoRALinear(base, r=1, lora_alpha=1)
    assert_array_equal(nonzero(layer.norm()).data, [np.inf, 3])
    layer.B.data = np.float32([[0], [np.nan]])
    assert_array_equal(nonzero(layer.norm()).data, [np.inf, np.nan])


@every_dora
@pytest.mark.parametrize("B", ["B is zero, too", "B is not zero"])
def test_a_row_without_length_has_scale_0_and_no_gradient_is_nan(kind, B):
    layer = fresh(kind, (3, 4), bias=False)
    base = ld.Linear(3, 4, bias=False, dtype=np.float64)
    weight = base.weight.data.copy()
    weight[2], weight[:, 1] = 0, 0
    base.weight.data = weight
    layer = adapt(kind, base, r=2, lora_alpha=4)
    empty = 2 if layer.norm_axis == 1 else 1
    assert layer.m.data[empty] == 0
    layer.m.data = np.ones(layer.m.shape)
    if B == "B is not zero":  # but A is: V stays W0
        layer.A.data = np.zeros(layer.A.shape)
        layer.B.data = np.ones(layer.B.shape)
    x, G = inputs(layer)
    y, found = gradients(layer, x, G)
    assert layer.norm().data[empty] == 0
    assert (layer.m / nonzero(layer.norm())).data[empty] == 0
    assert all(np.all(np.isfinite(a)) for a in (y, *found.values()))
    assert found["m"][empty] == 0
    merged = layer.merge().weight.data
    assert np.all(np.isfinite(merged))
    assert not np.any(merged[2])
    assert_allclose(merged @ x.T, y.T, atol=1e-12)


def test_a_row_without_length_learns_once_B_gives_it_a_direction():
    base = ld.Linear(3, 2, dtype=np.float64)
    base.weight.data = np.zeros((2, 3))
    layer = ld.DoRALinear(base, r=1, lora_alpha=1, rng=np.random.default_rng(0))
    layer.B.data = np.ones((2, 1))
    found = gradients(layer, *inputs(layer))[1]
    assert np.all(found["m"] != 0)


@every_dora
@pytest.mark.parametrize("sizes", [(5, 4), (100, 90)], ids=["formed", "factored"])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_entries_whose_squares_leave_float32_do_no_harm(kind, size, sizes):
    base = ld.Linear(*sizes, rng=np.random.default_rng(0))
    base.weight.data = base.weight.data * np.float32(size)
    layer = adapt(kind, base, r=2, lora_alpha=4)
    x, G = inputs(layer)
    y, found = gradients(layer, x, G)
    assert np.all(layer.m.data > 0)
    assert_array_equal(y, base(x).data)
    assert all(np.all(np.isfinite(g)) for g in found.values())


@every_dora
@pytest.mark.parametrize("sizes", [(5, 4), (100, 90)], ids=["formed", "factored"])
def test_a_norm_that_overflows_is_infinite_without_a_warning(kind, sizes):
    layer = trained(kind, sizes, dtype=np.float32)
    layer.A.data, layer.B.data = (np.full_like(p.data, 1e30) for p in (layer.A, layer.B))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.all(np.isinf(layer.norm().data))


def test_the_norm_of_many_float16_entries_does_not_overflow():
    base = ld.Linear(9000, 1, dtype=np.float16)
    base.weight.data = np.full((1, 9000), 64, np.float16)
    assert_allclose(ld.DoRALinear(base, r=1, lora_alpha=1).m.data, 64 * math.sqrt(9000), rtol=1e-3)


# ----------------------------------------------------------------------------- the cache


@pytest.fixture
def calls(monkeypatch):
    """Return the list of calls that compute the norm of a layer."""
    found, compute = [], LowRankNorm.__call__

    def spy(self, *args):
        found.append(args)
        return compute(self, *args)

    monkeypatch.setattr(LowRankNorm, "__call__", spy)
    return found


@pytest.mark.parametrize("kind", DETACHED)
def test_evaluation_computes_the_norm_once(kind, calls):
    layer = trained(kind).eval()
    x, _ = inputs(layer)
    calls.clear()
    outputs = [layer(x).data for _ in range(5)]
    assert len(calls) == 1
    assert_array_equal(outputs[0], outputs[-1])
    assert_allclose(in_training(layer, x), outputs[0], rtol=1e-12)


def in_training(layer, x):
    """Return what the layer computes in training mode, where nothing is cached."""
    return copy.deepcopy(layer).train()(x).data


CHANGES = {
    "by assignment": lambda p: setattr(p, "data", p.data + 1),
    "in place": lambda p: np.add(p.data, 1, out=p.data),
    "of one entry": lambda p: p.data.__setitem__((0, 0), 7),
}


@pytest.mark.parametrize("kind", DETACHED)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["A", "B"])
def test_the_cached_norm_is_never_stale_after_a_change(kind, change, name):
    layer = trained(kind).eval()
    x, _ = inputs(layer)
    layer(x)
    CHANGES[change](getattr(layer, name))
    assert_allclose(layer(x).data, in_training(layer, x), rtol=1e-12)


@pytest.mark.parametrize("kind", DETACHED)
def test_the_cached_norm_is_never_stale_after_a_step_or_a_load(kind):
    layer = trained(kind).eval()
    x, G = inputs(layer)
    state = trained(kind, seed=5).state_dict()
    layer(x).backward(G)
    for change in (
        ld.SGD(layer.parameters(), lr=0.1).step,
        lambda: layer.load_state_dict(state),
        lambda: setattr(layer.base_layer.weight, "data", 2 * layer.base_layer.weight.data),
    ):
        layer(x)
        change()
        assert_allclose(layer(x).data, in_training(layer, x), rtol=1e-12)


@every_dora
def test_the_cached_norm_knows_the_scaling(kind):
    layer = trained(kind).eval()
    x, _ = inputs(layer)
    with mg.no_grad():
        layer(x)
        layer.scaling *= 3
        assert_allclose(layer(x).data, in_training(layer, x), rtol=1e-12)


@every_dora
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"]
)
def test_what_the_norm_relies_on_cannot_be_written_to_in_a_copy_either(kind, copied):
    layer = copied(trained(kind, (100, 90)))
    layer(inputs(layer)[0])
    with pytest.raises(ValueError, match="read-only"):
        layer.base_layer.weight.data[0] = 0
    layer.base_layer.weight.data = 2 * layer.base_layer.weight.data
    layer(inputs(layer)[0])
    with pytest.raises(ValueError, match="read-only"):
        layer.base_layer.weight.data[0] = 0


@pytest.mark.parametrize("kind", DETACHED)
def test_a_weight_whose_norm_is_remembered_in_evaluation_cannot_be_written_to(kind):
    layer = trained(kind).eval()
    layer.base_layer.weight.data = 2 * layer.base_layer.weight.data
    layer(inputs(layer)[0])
    with pytest.raises(ValueError, match="read-only"):
        layer.base_layer.weight.data[0] = 0


@pytest.mark.parametrize("kind", EXACT)
def test_the_exact_norm_is_computed_once_too_where_nobody_differentiates_it(kind, calls):
    layer = trained(kind).eval()
    x, G = inputs(layer)
    calls.clear()
    with mg.no_grad():
        layer(x)
        layer(x)
    assert len(calls) == 1
    _, found = gradients(layer, x, G)
    _, expected = gradients(layer.train(), x, G)
    for name, g in expected.items():
        assert_allclose(found[name], g, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["LoRA", *DETACHED, *EXACT])
@pytest.mark.parametrize("batch", [(2,), (3, 2)])
def test_a_thawed_weight_gets_its_gradient(kind, batch):
    """The norm counts as constant in W0, too, if it is held constant."""
    layer = trained(kind, sizes=(3, 16))
    x, G = inputs(layer, batch)
    before = layer(x).data
    layer.base_layer.weight.requires_grad = True
    layer(x).backward(G)
    assert_allclose(layer(x).data, before, rtol=1e-12)
    weight = layer.base_layer.weight
    if kind not in EXACT:
        W_bar = G.reshape(-1, 16).T @ x.reshape(-1, 3)
        c = np.ones(1)
        if isinstance(layer, ld.DoRALinear):
            c = np.expand_dims(layer.m.data / layer.norm().data, layer.norm_axis)
        assert_allclose(weight.grad, c * W_bar, rtol=1e-12)


@pytest.mark.parametrize(("r", "size"), [(64, 1.0), (128, 1.0), (256, 1.0)])
def test_a_large_rank_alone_does_not_call_for_the_definition(r, size, monkeypatch):
    """Rows far from cancelling are computed from r columns, however many these are."""
    rng = np.random.default_rng(0)
    W0 = rng.normal(size=(64, 512)) / np.sqrt(512)
    A, B = rng.normal(size=(r, 512)) / np.sqrt(512), rng.normal(size=(64, r)) * size / np.sqrt(r)
    expected = np.linalg.norm(W0 + B @ A, axis=1)
    of_rows = squares(W0)
    monkeypatch.setattr(norms, "direct_norm", None)
    assert_allclose(factored_row_norm(W0, A, B, 1.0, of_rows).data, expected, rtol=1e-10)


@norm_axes
@pytest.mark.parametrize(
    ("sizes", "r", "form"),
    [
        ((64, 128), 4, "direct_norm"),  # 8192 entries
        ((64, 129), 4, "factored_row_norm"),
        ((256, 256), 128, "direct_norm"),  # as many as A and B have together
        ((256, 256), 127, "factored_row_norm"),
    ],
)
def test_v_is_formed_where_it_is_small_or_no_larger_than_its_factors(
    norm_axis, sizes, r, form, monkeypatch
):
    layer = trained("DoRA", sizes, r=r, norm_axis=norm_axis)
    W0, A, B, s = layer.base_layer.weight.data, layer.A.data, layer.B.data, layer.scaling
    expected = np.linalg.norm(W0 + s * B @ A, axis=norm_axis)
    for other in {"direct_norm", "factored_row_norm"} - {form}:
        monkeypatch.setattr(norms, other, None)
    assert_allclose(layer.norm().data, expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", RTOL)
def test_while_b_is_zero_the_factored_norm_is_that_of_w0_to_the_last_bit(dtype):
    rng = np.random.default_rng(0)
    W0 = rng.normal(size=(100, 200)).astype(dtype)
    A, B = rng.normal(size=(3, 200)).astype(dtype), np.zeros((100, 3), dtype)
    found, expected = both(W0, A, B, 2.0)
    assert found.tobytes() == expected.tobytes() == mg.norm(W0, axis=1).data.tobytes()


@every_dora
def test_the_cached_norm_is_no_parameter(kind):
    layer = trained(kind)
    names = list(layer.state_dict())
    layer.eval()(inputs(layer)[0])
    assert list(layer.state_dict()) == names


# ----------------------------------------------------------------------------- shapes and dtypes


@every_kind
@pytest.mark.parametrize("batch", [(), (1,), (0,), (3,), (2, 3), (2, 0, 3)])
def test_leading_axes_are_kept(kind, batch):
    layer = trained(kind, (3, 4))
    x, _ = inputs(layer, batch)
    assert layer(x).shape == (*batch, 4)
    assert layer.merge()(x).shape == (*batch, 4)


@every_kind
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_everything_keeps_the_dtype_of_the_layer(kind, dtype):
    layer = trained(kind, dtype=dtype, lora_dropout=0.5, autocast_adapter_dtype=False)
    x, G = inputs(layer)
    y, found = gradients(layer, x, G)
    merged = layer.merge()
    assert {a.dtype for a in (y, *found.values(), merged.weight, merged.bias)} == {np.dtype(dtype)}


@every_kind
def test_over_a_float16_base_the_adapter_is_float32_and_everything_else_float16(kind):
    layer = trained(kind, dtype=np.float16, lora_dropout=0.5)
    x, G = (a.astype(np.float16) for a in inputs(layer))
    y, found = gradients(layer, x, G)
    merged, g_x = layer.merge(), found.pop("x")
    halves = y, g_x, layer.base_layer.weight, layer(x), layer(list(x)), merged.weight, merged.bias
    assert {a.dtype for a in halves} == {np.dtype(np.float16)}
    assert {a.dtype for a in found.values()} == {np.dtype(np.float32)}
    assert {p.dtype for p in layer.trainable_parameters()} == {np.dtype(np.float32)}


@every_kind
def test_a_float64_array_does_not_widen_a_float32_layer(kind):
    layer = trained(kind, dtype=np.float32)
    assert layer(np.ones((2, 3))).dtype == np.float32
    assert layer([[1, 2, 3]]).dtype == np.float32


@every_kind
def test_an_input_of_another_length_is_refused(kind):
    with pytest.raises(ValueError, match=r"\(2, 7\)"):
        trained(kind)(np.ones((2, 7)))


# ----------------------------------------------------------------------------- dropout


@every_kind
def test_dropout_thins_the_input_of_the_correction_as_in_peft(kind):
    layer = trained(kind, (30, 4), lora_dropout=0.4)
    x, _ = inputs(layer, (6,))
    dropped = copy.deepcopy(layer.lora_dropout)(x).data
    W0, b = layer.base_layer.weight.data, layer.bias.data
    W, _ = KINDS[kind].closed_form(layer, np.zeros(W0.shape))
    expected = x @ W0.T + b + dropped @ (W - W0).T
    assert np.any(dropped == 0)
    assert_allclose(layer(x).data, expected, rtol=1e-12, atol=1e-12)


@every_kind
def test_dropout_is_reproducible_by_its_generator_and_off_in_evaluation(kind):
    x = np.ones((4, 3))
    one, same, other = (trained(kind, lora_dropout=0.5, seed=0) for _ in range(3))
    assert_array_equal(one(x).data, same(x).data)
    assert not np.array_equal(one(x).data, other(x).data), "a second draw"
    assert_array_equal(one.eval()(x).data, trained(kind).eval()(x).data)
    assert_array_equal(one.eval()(x).data, one(x).data)


@every_kind
def test_dropout_leaves_a_fresh_layer_at_the_base(kind):
    layer = fresh(kind, lora_dropout=0.5)
    x, _ = inputs(layer)
    assert_allclose(layer(x).data, layer.base_layer(x).data, rtol=1e-14, atol=1e-15)


# ----------------------------------------------------------------------------- merging


@every_kind
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@given(seed=st.integers(0, 2**16))
def test_merged_is_live(kind, dtype, rtol, seed):
    layer = trained(kind, (7, 6), dtype=dtype, seed=seed)
    x, _ = inputs(layer)
    live, merged = layer(x).data, layer.merge()
    assert type(merged) is ld.Linear
    assert np.abs(merged(x).data - live).max() <= rtol * (1 + np.abs(live).max())


@every_kind
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", [(7, 6), (64, 48), (100, 90)], ids=str)
def test_at_the_start_merged_is_the_base_bit_by_bit(kind, dtype, sizes):
    layer = fresh(kind, sizes, dtype=dtype)
    assert layer.merge().weight.data.tobytes() == layer.base_layer.weight.data.tobytes()


@every_kind
def test_merging_changes_nothing_and_shares_nothing(kind):
    layer = trained(kind)
    before = layer.state_dict()
    first = layer.merge()
    first.weight.data[:], first.bias.data[:] = 0, 0
    assert_state_equal(layer.state_dict(), before)
    second = layer.merge()
    assert np.any(second.weight.data)


def assert_state_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("cls", [ld.LowRankLinear, ld.LoRALinear, ld.DoRALinear])
def test_a_forward_of_its_own_is_not_merged_by_the_weight_of_another(cls):
    class Doubled(cls):
        def forward(self, x):
            return 2 * self.base_layer(x)

    layer = Doubled(ld.Linear(3, 4), r=2, lora_alpha=1)
    layer(np.ones((1, 3)))
    with pytest.raises(NotImplementedError, match="Doubled does not define its weight"):
        layer.merge()


@every_kind
def test_a_gradient_flows_through_the_weight(kind):
    """A tied decoder, tanh(enc(x)) @ enc.weight, trains through the weight as well."""
    layer = trained(kind)
    W_bar = np.random.default_rng(3).normal(size=(4, 3))
    W, expected = KINDS[kind].closed_form(layer, W_bar)
    assert_allclose(layer.weight.data, W, rtol=1e-12)
    trainable = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    found = mg.grad(layer.weight, list(trainable.values()), W_bar)
    for name, gradient in zip(trainable, found, strict=True):
        assert_allclose(gradient.data, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_tied_decoder_has_the_gradient_of_differences():
    layer = trained("exact DoRA")
    x, _ = inputs(layer)

    def decoded(*_):
        return mg.tanh(layer(x)) @ layer.weight

    mg.gradcheck(decoded, *layer.trainable_parameters())


def test_a_gradient_flows_through_the_bias_and_through_a_sum():
    layer = fresh("LoRA", lora_bias=True)
    assert_allclose(mg.grad(layer.bias.sum(), layer.B_bias).data, [layer.scaling] * 4)
    without = fresh("LoRA", bias=False, lora_bias=True)
    assert_allclose(mg.grad(without.bias.sum(), without.B_bias).data, [layer.scaling] * 4)
    both = LoRASum([trained("LoRA"), trained("LoRA", seed=0)])
    for part in both.layers:
        assert_allclose(
            mg.grad(both.weight.sum(), part.B).data,
            part.scaling * np.ones((4, 3)) @ part.A.data.T,
        )


def test_merged_rows_have_the_length_m_also_under_cancellation():
    rng = np.random.default_rng(0)
    W0 = rng.normal(size=(200, 300)).astype(np.float32)
    layer = adapt("DoRA", linear_of(W0), r=4, lora_alpha=4, rng=rng)
    B, A = rng.normal(size=(200, 4)), rng.normal(size=(4, 300))
    near = W0.copy()
    near[:] = -(B @ A) / layer.scaling + 0.2 * W0  # V is a fifth as long as its terms
    layer = adapt("DoRA", linear_of(near), r=4, lora_alpha=4, rng=rng)
    layer.B.data, layer.A.data = B.astype(np.float32), A.astype(np.float32)
    lengths = np.sqrt(np.sum(layer.merge().weight.data.astype(np.float64) ** 2, axis=1))
    assert_allclose(lengths, layer.m.data, rtol=4e-7)


def linear_of(W0):
    """Return a Linear with this weight and no bias."""
    base = ld.Linear(W0.shape[1], W0.shape[0], bias=False, dtype=W0.dtype)
    base.weight.data = W0
    return base


class Doubling(ld.Linear):
    """A Linear with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Normed(ld.Linear):
    """A Linear whose weight is computed."""

    @property
    def weight(self):
        return self.direction / mg.norm(self.direction, axis=1, keepdims=True)

    @weight.setter
    def weight(self, value):
        self.direction = value


class Called(ld.Linear):
    """A Linear whose call differs from that of a Linear."""

    def __call__(self, x):
        return mg.relu(super().__call__(x))


def patched():
    layer = ld.Linear(3, 4)
    layer.forward = lambda x: mg.relu(mg.linear(x, layer.weight, layer.bias))
    return layer


@every_kind
@pytest.mark.parametrize(
    "base", [Doubling(3, 4), Normed(3, 4), Called(3, 4), patched()], ids=lambda b: type(b).__name__
)
def test_a_linear_with_a_formula_of_its_own_is_refused(kind, base):
    with pytest.raises(
        TypeError, match=rf"the {type(base).__name__} has a forward, weight or bias"
    ):
        adapt(kind, base, r=1, lora_alpha=1)
    model = ld.Sequential(ld.Linear(3, 3), base)
    config = ld.LoraConfig(r=1, target_modules="all-linear")
    with pytest.raises(
        TypeError, match=rf"1 \({type(base).__name__}\) has a forward|knows a layer"
    ):
        ld.get_peft_model(model, config)
    assert base.bias.data.flags.writeable


class Labelled(ld.Linear):
    """A Linear with something extra, which computes the same as a Linear."""

    label = "mine"


@every_kind
def test_a_subclass_that_computes_what_a_linear_does_stays_what_it_is(kind):
    base = Labelled(3, 4, rng=0)
    base.note, base.extra = "kept", mg.Tensor([1.0], requires_grad=True)
    layer = adapt(kind, base, r=1, lora_alpha=1)
    assert not any(p.requires_grad for p in layer.base_layer.parameters())
    merged = layer.merge()
    assert (type(merged), merged.label, merged.note) == (Labelled, "mine", "kept")
    assert_array_equal(merged.weight.data, base.weight.data)


@every_kind
def test_an_adapted_layer_whose_forward_was_replaced_is_not_merged(kind):
    layer = trained(kind)
    layer.forward = lambda x: 2 * mg.linear(x, layer.weight)
    with pytest.raises(TypeError, match=f"cannot merge a {type(layer).__name__} whose forward"):
        layer.merge()


@pytest.mark.parametrize("name", ["norm", "as_input", "V", "bias"])
def test_a_part_of_the_formula_of_its_own_is_not_merged_either(name):
    cls = type("Varied", (ld.DoRALinear,), {name: getattr(ld.DoRALinear, name)})
    layer = cls(ld.Linear(3, 4), r=1, lora_alpha=1)
    with pytest.raises(NotImplementedError, match="Varied does not define its weight"):
        layer.merge()


class Doubles:
    """A mixin that changes what comes after it."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "cls",
    [
        type("Called", (ld.LoRALinear,), {"__call__": lambda self, x: 2 * self.forward(x)}),
        type("Mixed", (Doubles, ld.LoRALinear), {}),
        type("Mixed", (Doubles, ld.DoRALinear), {}),
        type("Below", (type("Mixed", (Doubles, ld.LoRALinear), {}),), {}),
    ],
)
def test_what_changes_the_formula_from_outside_is_not_merged_or_added_either(cls, tmp_path):
    dora = issubclass(cls, ld.DoRALinear)
    config = ld.LoraConfig(r=1, target_modules=["0"], use_dora=dora)
    model = ld.get_peft_model(ld.Sequential(ld.Linear(3, 4)), config, layer=cls)
    with pytest.raises(NotImplementedError, match=f"{cls.__name__} does not define its weight"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match=r"PEFT has no \w+, and would misread"):
        model.save_pretrained(tmp_path)
    model.add_adapter("b", config, layer=cls)
    with pytest.raises(ValueError, match=r"do not add up|need not add up"):
        model.set_adapter(["default", "b"])


def test_a_layer_may_take_more_than_x():
    class Gained(ld.LoRALinear):
        def forward(self, x, gain=1.0):
            return gain * super().forward(x)

    layer = Gained(ld.Linear(3, 4), r=1, lora_alpha=1)
    assert_allclose(layer(np.ones(3), gain=2.0).data, 2 * layer(np.ones(3)).data)


def test_the_weight_over_a_float16_base_is_float16():
    for layer in (trained("LoRA", dtype=np.float16), trained("DoRA", dtype=np.float16)):
        assert layer.weight.dtype == np.float16
        assert (layer(np.ones(3)) @ layer.weight).dtype == np.float16
    both = LoRASum([trained("LoRA", dtype=np.float16) for _ in range(2)])
    assert both.weight.dtype == both(np.ones(3)).dtype == np.float16


def test_an_adapter_over_a_base_that_was_frozen_stays_frozen_with_it():
    base = ld.Linear(3, 4).requires_grad_(False)
    layers = [ld.LoRALinear(base, r=1, lora_alpha=1) for _ in range(2)]
    base.requires_grad_(True)
    for layer in layers:
        assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]


@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_merge_with_nan_is_refused_and_names_the_tensor(kind, value):
    for name, p in trained(kind).named_parameters():
        if p.requires_grad:
            layer = trained(kind)
            tensor = dict(layer.named_parameters())[name]
            tensor.data.flat[0] = value
            before = layer.state_dict()
            with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
                layer.merge()
            assert_state_equal(layer.state_dict(), before)


@every_kind
def test_a_merge_with_nan_is_refused_for_a_frozen_adapter_too(kind):
    layer = trained(kind)
    layer.A.data[0, 0] = np.nan
    layer.requires_grad_(False)
    with pytest.raises(ValueError, match="A holds NaN or infinity"):
        layer.merge()


def test_the_corrections_of_several_loras_add_up():
    rng = np.random.default_rng(0)
    base = ld.Linear(3, 4, rng=rng, dtype=np.float64)
    loras = [ld.LoRALinear(base, r=r, lora_alpha=4, rng=rng) for r in (2, 1, 3)]
    total = LoRASum(loras)
    for p in total.trainable_parameters():
        p.data = rng.normal(size=p.shape)
    V = base.weight.data + sum(t.scaling * t.B.data @ t.A.data for t in loras)
    x, G = inputs(loras[0])
    y, found = gradients(total, x, G)
    assert_allclose(y, x @ V.T + base.bias.data, rtol=1e-12)
    assert_allclose(total.merge()(x).data, y, rtol=1e-12)
    for i, layer in enumerate(loras):
        _, alone = gradients(layer, x, G)
        for name in ("A", "B"):
            assert_allclose(found[f"layers.{i}.{name}"], alone[name], rtol=1e-12)


def test_lora_bias_is_scaled_and_differentiated():
    layer = trained("LoRA", lora_bias=True)
    x, G = inputs(layer)
    y, found = gradients(layer, x, G)
    plain = trained("LoRA")
    assert_allclose(y - layer.scaling * layer.B_bias.data, plain(x).data, rtol=1e-12, atol=1e-12)
    assert_allclose(found["B_bias"], layer.scaling * G.sum(0), rtol=1e-12)
    assert_allclose(layer.merge()(x).data, y, rtol=1e-12)


def test_a_lora_bias_cannot_be_merged_into_a_layer_without_a_bias():
    layer = trained("LoRA", bias=False, lora_bias=True)
    layer(np.ones((1, 3)))
    with pytest.raises(ValueError, match="lora_bias into a layer without a bias"):
        layer.merge()


# ----------------------------------------------------------------------------- initialisation


def assert_uniform(values, bound):
    """The extremes and the second moment of a uniform distribution on ±bound."""
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.99 * bound
    assert abs(values.mean()) < 0.03 * bound
    assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.03)


@every_start
def test_by_default_A_is_uniform_and_B_zero(kind):
    layer = fresh(kind, (400, 30), r=50)
    assert_uniform(layer.A.data, 1 / math.sqrt(400))
    assert not np.any(layer.B.data)


@every_start
def test_gaussian_A_has_standard_deviation_1_over_r_and_B_is_zero(kind):
    A = fresh(kind, (400, 30), r=50, init_lora_weights="gaussian").A.data * 50
    assert_allclose([A.mean(), A.std(), (A**4).mean()], [0, 1, 3], atol=0.2)
    assert abs(A.std() - 1) < 0.02
    assert not np.any(fresh(kind, init_lora_weights="gaussian").B.data)


@every_start
def test_without_initialisation_B_is_random_and_the_adapter_acts_at_once(kind):
    layer = fresh(kind, (400, 300), r=50, init_lora_weights=False)
    assert_uniform(layer.A.data, 1 / math.sqrt(400))
    assert_uniform(layer.B.data, 1 / math.sqrt(50))
    if isinstance(layer, ld.DoRALinear):
        assert_allclose(layer.m.data, layer.norm().data)
        assert_allclose((layer.m / layer.norm()).data, 1, rtol=1e-12)


@every_start
def test_orthogonal_factors_are_not_zero_but_their_product_is(kind):
    layer = fresh(kind, (40, 30), r=6, init_lora_weights="orthogonal")
    assert min(np.abs(layer.A.data).mean(), np.abs(layer.B.data).mean()) > 0.01
    assert np.abs(layer.B.data @ layer.A.data).max() < 1e-15


def test_orthogonal_needs_an_even_rank():
    with pytest.raises(ValueError, match="even r, not 3"):
        fresh("LoRA", r=3, init_lora_weights="orthogonal")


@every_start
@pytest.mark.parametrize("scheme", ["pissa", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_and_olora_take_a_part_out_of_W0_and_keep_the_function(kind, scheme, use_rslora):
    rng = np.random.default_rng(0)
    base = ld.Linear(7, 6, rng=rng, dtype=np.float64)
    W0 = base.weight.data.copy()
    layer = adapt(kind, base, r=3, lora_alpha=2, use_rslora=use_rslora, init_lora_weights=scheme)
    x = rng.normal(size=(5, 7))
    assert_allclose(layer(x).data, base(x).data, rtol=1e-12, atol=1e-13)
    assert_array_equal(base.weight.data, W0)
    part = layer.scaling * layer.B.data @ layer.A.data
    assert_allclose(layer.base_layer.weight.data, W0 - part, rtol=1e-12, atol=1e-15)
    if scheme == "pissa":
        U, S, Vt = np.linalg.svd(W0)
        assert_allclose(part, U[:, :3] * S[:3] @ Vt[:3], atol=1e-13)
    else:
        assert_allclose(layer.B.data.T @ layer.B.data, np.eye(3), atol=1e-13)
        assert_array_equal(layer.A.data, np.triu(layer.A.data))


@pytest.mark.parametrize("scheme", ["pissa", "olora"])
@pytest.mark.parametrize("options", [{"r": 4}, {"lora_alpha": 0}, {"lora_alpha": -1}])
def test_pissa_and_olora_need_a_rank_that_W0_has_and_a_positive_scaling(scheme, options):
    with pytest.raises(ValueError, match=f"'{scheme}' takes"):
        fresh("LoRA", (3, 4), init_lora_weights=scheme, **options)


def test_a_seed_determines_the_start():
    for scheme in (True, False, "gaussian", "orthogonal"):
        one, same, other = (
            fresh("LoRA", seed=seed, init_lora_weights=scheme).state_dict() for seed in (0, 0, 1)
        )
        assert_state_equal(one, same)
        assert not np.array_equal(one["A"], other["A"])


# ----------------------------------------------------------------------------- what is refused

REFUSED = [
    ({"r": 0}, ValueError, "r must be at least 1, not 0"),
    ({"r": -1}, ValueError, "r must be at least 1, not -1"),
    ({"r": True}, TypeError, "r must be an integer, not True"),
    ({"r": 2.0}, TypeError, r"r must be an integer, not 2\.0"),
    ({"r": "4"}, TypeError, "r must be an integer, not '4'"),
    ({"r": 2**70}, ValueError, "r must be at most .*, not 1180591620717411303424"),
    ({"r": "4" * 10**6}, TypeError, r"^r must be an integer, not '4{1,50}\.\.\.4{1,50}'$"),
    ({"lora_alpha": math.nan}, ValueError, "lora_alpha must be finite, not nan"),
    ({"lora_alpha": math.inf}, ValueError, "lora_alpha must be finite, not inf"),
    ({"lora_alpha": True}, TypeError, "lora_alpha must be a number, not True"),
    ({"lora_alpha": None}, TypeError, "lora_alpha must be a number, not None"),
    ({"lora_alpha": "4"}, TypeError, "lora_alpha must be a number, not '4'"),
    ({"lora_alpha": 10**400}, ValueError, "lora_alpha must be finite"),
    ({"lora_dropout": "x"}, TypeError, "dropout rate must be a number, not 'x'"),
    ({"lora_dropout": -0.1}, ValueError, r"dropout rate must lie in \[0, 1\), not -0\.1"),
    ({"lora_dropout": 1.0}, ValueError, r"dropout rate must lie in \[0, 1\), not 1\.0"),
    ({"lora_dropout": math.nan}, ValueError, r"dropout rate must lie in \[0, 1\), not nan"),
    ({"init_lora_weights": "eva"}, ValueError, "init_lora_weights must be one of .* not 'eva'"),
    ({"init_lora_weights": 1}, ValueError, "init_lora_weights must be one of .* not 1"),
    ({"init_lora_weights": "x" * 10**6}, ValueError, r"not 'x{1,50}\.\.\.x{1,50}'$"),
    ({"base": ld.ReLU()}, TypeError, "adapts a Linear layer, not a ReLU"),
    ({"base": np.ones((3, 3))}, TypeError, r"adapts a Linear layer, not a numpy\.ndarray"),
]


@pytest.mark.parametrize("cls", [ld.LoRALinear, ld.DoRALinear])
@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED, ids=lambda v: str(v)[:30])
def test_bad_options_are_refused_by_name_and_value(cls, wrong, error, message):
    options = {"base": ld.Linear(3, 4), "r": 2, "lora_alpha": 4, **wrong}
    with pytest.raises(error, match=message):
        cls(options.pop("base"), **options)


@pytest.mark.parametrize("cls", [ld.LoRALinear, ld.DoRALinear])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    ("lora_alpha", "dtype", "cast"),
    [
        (1e308, np.float32, True),
        (-1e308, np.float32, True),
        (1e39, np.float32, True),
        (2 * 10**38 * 3, np.float32, True),
        (1e-45, np.float32, True),
        (5e-324, np.float64, True),
        (1e39, np.float16, True),
        (1e6, np.float16, False),
        (-1e6, np.float16, False),
        (1e-8, np.float16, False),
    ],
)
def test_a_scaling_that_the_dtype_cannot_hold_is_refused(cls, use_rslora, lora_alpha, dtype, cast):
    options = {"use_rslora": use_rslora, "autocast_adapter_dtype": cast}
    base = ld.Linear(3, 4, dtype=dtype)
    held = np.dtype(np.float32 if cast and dtype == np.float16 else dtype)
    message = f"lora_alpha=.* with r=1 scales by .*, which {held} cannot hold"
    with pytest.raises(ValueError, match=message):
        cls(base, r=1, lora_alpha=lora_alpha, **options)
    assert base.weight.data.flags.writeable


@pytest.mark.parametrize(
    ("lora_alpha", "dtype"),
    [(0, np.float32), (1e30, np.float32), (-1e-30, np.float32), (1e6, np.float16), (1e300, float)],
)
def test_a_scaling_that_it_can_hold_is_not(lora_alpha, dtype):
    layer = ld.LoRALinear(ld.Linear(3, 4, dtype=dtype), r=2, lora_alpha=lora_alpha)
    assert layer.scaling == lora_alpha / 2
    assert np.isfinite(layer(np.ones(3, dtype)).data).all()


@pytest.mark.parametrize("norm_axis", [2, -1, None])
def test_an_unknown_norm_axis_is_refused(norm_axis):
    with pytest.raises(ValueError, match=f"norm_axis must be 1 .* not {norm_axis}"):
        fresh("DoRA", norm_axis=norm_axis)


class RowsOnly(ld.DoRALinear):
    """A variant of the DoRA of rows."""


class ColumnsInside(ld.DoRALinear):
    """A variant that sets the other axis too late."""

    def __init__(self, base, **options):
        super().__init__(base, norm_axis=0, **options)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(RowsOnly, {"norm_axis": 0}), (ColumnsInside, {}), (ColumnDoRALinear, {"norm_axis": 1})],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_class_of_another_norm_axis_is_refused(cls, options):
    with pytest.raises(ValueError, match=f"norm_axis must be [01] .* in {cls.__name__}, not [01]"):
        cls(ld.Linear(3, 4), r=2, lora_alpha=1, **options)


def test_norm_axis_0_is_a_class_of_its_own():
    layer = ld.DoRALinear(ld.Linear(3, 4), r=2, lora_alpha=1, norm_axis=0)
    assert type(layer) is ColumnDoRALinear
    assert layer.m.shape == (3,)
    assert type(copy.copy(layer)) is ColumnDoRALinear


def test_dora_on_top_of_lora_is_refused():
    with pytest.raises(TypeError, match="not a LoRALinear"):
        ld.DoRALinear(fresh("LoRA"), r=2, lora_alpha=4)


@needs_timers
def test_an_interrupt_in_the_norm_of_a_dora_leaves_the_warnings_of_numpy_as_they_were():
    layer = ld.DoRALinear(ld.Linear(40, 30, rng=0), r=2, lora_alpha=4, rng=0)
    x, before = np.ones((2, 40), np.float32), np.geterr()
    for _ in interrupted_by_a_timer(lambda: layer(x), 1500):
        assert np.geterr() == before
