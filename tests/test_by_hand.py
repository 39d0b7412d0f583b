"""The gradients derived on paper: equal to the engine's, and to what the definition says."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora import by_hand

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def problems(draw, zero_rows=True):
    """An adapted layer in float64 away from its start, an input and a cotangent; rows of V may be 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, width, out = draw(st.integers(0, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    r, alpha = draw(st.integers(1, 4)), draw(st.sampled_from([0.5, 1.0, 3.0]))
    base = ld.Linear(width, out, bias=draw(st.booleans()), rng=rng, dtype=np.float64)
    A, B = rng.normal(size=(r, width)), rng.normal(size=(out, r))
    if zero_rows and draw(st.booleans()):
        row = draw(st.integers(0, out - 1))
        B[row] = 0
        base.weight.data[row] = 0
    m = rng.normal(size=out)
    return base, A, B, m, alpha, rng.normal(size=(n, width)), rng.normal(size=(n, out))


def adapted(kind, base, A, B, alpha, m=None, **options):
    layer = kind(base, r=len(A), lora_alpha=alpha, **options)
    layer.A.data, layer.B.data = A, B
    if m is not None:
        layer.m.data = m
    return layer


def arguments(base, A, B, alpha):
    b = 0 if base.bias is None else base.bias.data
    return base.weight.data, b, alpha / len(A)


def assert_same(names, by_engine, by_us, size=1.0):
    """Compare to 1e-12 of the gradient, or of ``size``, that of the terms that it is the sum of."""
    for name, engine in zip(names, by_engine, strict=True):
        paper = getattr(by_us, name)
        assert paper.shape == engine.shape, name
        assert_allclose(paper, engine.data, rtol=1e-12, atol=1e-12 * size, err_msg=name)


def terms(W0, A, B, s, held):
    """Return the size of what the exact gradient of a DoRA is the difference of.

    These are the gradient with the norm held and an equal part along the row, as exact as the length of
    the row, which loses digits where s B A cancels W0.
    """
    V, parts = W0 + s * (B @ A), np.abs(W0) + np.abs(s * (B @ A))
    rows = np.any(V, axis=1)
    lost = np.max(np.sum(parts[rows] ** 2, axis=1) / np.sum(V[rows] ** 2, axis=1), initial=1)
    return lost * max(1, *(np.abs(g).max(initial=0) for g in held))


@given(problems())
def test_lora_on_paper_is_lora_by_the_engine(problem):
    base, A, B, _, alpha, x, G = problem
    W0, b, s = arguments(base, A, B, alpha)
    layer, x_ = adapted(ld.LoRALinear, base, A, B, alpha), mg.Tensor(x, requires_grad=True)
    y = layer(x_)
    assert_allclose(by_hand.lora_forward(x, W0, b, A, B, s), y.data, **EXACT)
    engine = mg.grad(y, [x_, layer.A, layer.B], G)
    assert_same("xAB", engine, by_hand.lora_gradients(G, x, W0, A, B, s))


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "exact"])
@given(problems())
def test_dora_on_paper_is_dora_by_the_engine(detach_norm, problem):
    base, A, B, m, alpha, x, G = problem
    W0, b, s = arguments(base, A, B, alpha)
    layer = adapted(ld.DoRALinear, base, A, B, alpha, m, detach_norm=detach_norm)
    x_ = mg.Tensor(x, requires_grad=True)
    y = layer(x_)
    on_paper = by_hand.dora_forward(x, W0, b, A, B, m, s)
    assert_allclose(
        on_paper, y.data, rtol=1e-11, atol=1e-11 * max(1, np.abs(y.data).max(initial=0))
    )
    engine = mg.grad(y, [x_, layer.A, layer.B, layer.m], G)
    paper = by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=detach_norm)
    held = by_hand.dora_gradients(G, x, W0, A, B, m, s)
    assert_same("xABm", engine, paper, terms(W0, A, B, s, held))


def nearly_cancelled():
    """Return a problem in which s B A leaves 1e-4 of W0, so that c is large and v̄ a small difference."""
    base = ld.Linear(1, 1, bias=False, dtype=np.float64)
    base.weight.data = np.array([[1.0001]])
    one, x, G = np.ones((1, 1)), np.array([[0.7], [1.45]]), np.array([[-1.21], [-2.42]])
    return base, one, -one, np.array([-0.51]), 1.0, x, G


@given(problems(zero_rows=False))
@example(nearly_cancelled())
def test_the_cotangent_of_V_is_that_of_the_textbook_formula(problem):
    """Up to 1e-12 of c q, because the exact v̄ is that less its part along the row."""
    base, A, B, m, alpha, x, G = problem
    W0, _, s = arguments(base, A, B, alpha)
    V = mg.Tensor(W0 + s * (B @ A), requires_grad=True)
    m_ = mg.Tensor(m, requires_grad=True)
    W = (m_ / mg.norm(V, axis=1))[:, None] * V
    engine = mg.grad(x @ W.T, [V, m_], G)
    paper = by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=False)
    held = by_hand.dora_gradients(G, x, W0, A, B, m, s)
    assert_same("Vm", engine, paper, max(1, np.abs(held.V).max(initial=0)))


@given(problems())
def test_exactly_V_is_pulled_across_its_rows_only(problem):
    base, A, B, m, alpha, x, G = problem
    W0, _, s = arguments(base, A, B, alpha)
    V = W0 + s * (B @ A)
    paper = by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=False)
    scale = np.linalg.norm(paper.V, axis=1) * np.linalg.norm(V, axis=1)
    assert np.all(abs(np.sum(paper.V * V, axis=1)) <= 1e-12 * (1 + scale))


def both_gradients(problem):
    """Return V, m, and the exact gradient and the one with the norm held."""
    base, A, B, m, alpha, x, G = problem
    W0, _, s = arguments(base, A, B, alpha)
    exact, held = (
        by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=d) for d in (False, True)
    )
    return W0 + s * (B @ A), m, exact, held


@given(problems())
@example(nearly_cancelled())
def test_what_the_paper_drops_is_the_pull_of_m_along_the_row(problem):
    V, m, exact, held = both_gradients(problem)
    n = mg.norm(V, axis=1).data
    safe = np.where(n > 0, n, np.inf)
    dropped = (m / safe * exact.m)[:, None] * (V / safe[:, None])
    size = max(1, np.abs(held.V).max(initial=0))
    assert_allclose(held.V - exact.V, dropped, rtol=1e-12, atol=1e-12 * size)
    assert_array_equal(held.m, exact.m)
    assert_array_equal(held.x, exact.x)


@given(problems())
def test_what_the_paper_drops_is_as_long_as_c_times_the_gradient_of_m(problem):
    V, m, exact, held = both_gradients(problem)
    n = np.linalg.norm(V, axis=1)
    rows = n > 0
    length = np.linalg.norm((held.V - exact.V)[rows], axis=1)
    size = max(1, np.abs(held.V).max(initial=0))
    assert_allclose(length, abs(m[rows] / n[rows] * exact.m[rows]), rtol=1e-9, atol=1e-12 * size)


@given(problems())
def test_a_step_against_the_held_gradient_of_V_never_raises_the_loss(problem):
    """⟨held v̄, exact v̄⟩ is c²(‖q‖² − ⟨q, v̂⟩²), which is not negative: it is ‖exact v̄‖²."""
    _, _, exact, held = both_gradients(problem)
    size = max(1, np.sum(held.V**2))
    products = np.sum(held.V * exact.V, axis=1)
    assert_allclose(products, np.sum(exact.V**2, axis=1), rtol=1e-9, atol=1e-12 * size)


@given(problems())
def test_magnitude_and_direction_share_the_gradient_of_W_without_overlap(problem):
    """Pythagoras, row by row: ‖q‖² = m̄² + (‖v̄‖/c)², for rows that have a direction."""
    base, A, B, m, alpha, x, G = problem
    W0, _, s = arguments(base, A, B, alpha)
    exact = by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=False)
    n = np.linalg.norm(W0 + s * (B @ A), axis=1)
    rows = n > 0
    c = m[rows] / n[rows]
    across = np.linalg.norm(exact.V[rows], axis=1)
    q = np.linalg.norm((G.T @ x)[rows], axis=1)
    assert_allclose(c**2 * (q**2 - exact.m[rows] ** 2), across**2, rtol=1e-9, atol=1e-9)


@given(problems())
def test_at_the_start_only_B_and_m_have_gradients(problem):
    base, A, B, _, alpha, x, G = problem
    W0, _, s = arguments(base, A, B, alpha)
    B, m = np.zeros_like(B), np.linalg.norm(W0, axis=1)
    assert not by_hand.lora_gradients(G, x, W0, A, B, s).A.any()
    for detach_norm in (True, False):
        dora = by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=detach_norm)
        assert not dora.A.any()


def test_the_engine_agrees_in_a_layer_of_ordinary_size():
    rng = np.random.default_rng(0)
    base = ld.Linear(256, 128, rng=rng, dtype=np.float64)
    A, B, m = rng.normal(size=(8, 256)), rng.normal(size=(128, 8)), rng.uniform(0.5, 2, 128)
    x, G = rng.normal(size=(32, 256)), rng.normal(size=(32, 128))
    for detach_norm in (True, False):
        layer = adapted(ld.DoRALinear, base, A, B, 16, m, detach_norm=detach_norm)
        engine = mg.grad(layer(x), [layer.A, layer.B, layer.m], G)
        paper = by_hand.dora_gradients(
            G, x, base.weight.data, A, B, m, 2.0, detach_norm=detach_norm
        )
        for name, e in zip("ABm", engine, strict=True):
            size = abs(e.data).max()
            assert abs(getattr(paper, name) - e.data).max() <= 1e-12 * size, name


def test_single_precision_stays_single():
    rng = np.random.default_rng(0)
    G, x, W0, A, B = (
        rng.normal(size=shape).astype(np.float32)
        for shape in [(5, 3), (5, 4), (3, 4), (2, 4), (3, 2)]
    )
    m = np.ones(3, np.float32)
    for gradients in (
        by_hand.lora_gradients(G, x, W0, A, B, 2.0),
        by_hand.dora_gradients(G, x, W0, A, B, m, 2.0),
    ):
        assert {g.dtype for g in gradients} == {np.dtype(np.float32)}
    assert by_hand.dora_forward(x, W0, 0, A, B, m, 2.0).dtype == np.float32


def test_nan_is_passed_on():
    W0 = np.array([[np.nan, 1.0], [1.0, 0.0]])
    A, B, m, x = np.ones((1, 2)), np.zeros((2, 1)), np.ones(2), np.ones((1, 2))
    y = by_hand.dora_forward(x, W0, 0, A, B, m, 1.0)
    assert_array_equal(np.isnan(y), [[True, False]])
