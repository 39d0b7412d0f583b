"""Every op in the registry keeps the same promises; a new one is found here by itself.

Gradients are compared with central differences written here, independent of ``minigrad.gradcheck``: in
float64, with the step 6e-6·max(1, |x|), the full Jacobian, to a relative 1e-6 and an absolute 1e-8 of
the largest output.  Shape and dtype are compared first, because NumPy would broadcast a wrong shape.
"""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CASES, COMPOSED

import minigrad as mg
from loradora.adapters import frozen_product, plus_product, rescale
from minigrad import OPS, Tensor

STEP, RTOL, ATOL = 6e-6, 1e-6, 1e-8


def call(name, args, params):
    """Apply an op, or a composition of ops, to the drawn arguments."""
    if name in ("concatenate", "stack"):
        return getattr(mg, name)(list(args), **params)
    return (OPS.get(name) or getattr(mg, name))(*args, **params)


def is_variable(a):
    return isinstance(a, np.ndarray) and a.dtype == np.float64


def of_its_variables(name, args, params):
    """Return the call as a function of its variables alone, and these."""
    positions = [i for i, a in enumerate(args) if is_variable(a)]

    def f(*variables):
        filled = dict(enumerate(args)) | dict(zip(positions, variables, strict=True))
        return call(name, list(filled.values()), params)

    return f, [args[i] for i in positions]


def leaves(args, dtype=np.float64):
    """Return the arguments with a leaf in place of each variable, and the leaves."""
    made = [Tensor(a.astype(dtype), requires_grad=True) if is_variable(a) else a for a in args]
    return made, [a for a in made if isinstance(a, Tensor)]


def upstream_for(y, seed):
    """Return a gradient in which no two entries are equal and the signs are mixed."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, y.shape) * rng.choice([-1, 1], y.shape)


def differences(name, args, params, position):
    """Return dy/dx of shape (*y.shape, *x.shape) for the argument at ``position``."""

    def value(x):
        return call(name, [*args[:position], x, *args[position + 1 :]], params).data

    x = args[position]
    jacobian = np.zeros((*value(x).shape, *x.shape))
    for at in np.ndindex(x.shape):
        step = STEP * max(1, abs(x[at]))
        above, below = x.copy(), x.copy()
        above[at] += step
        below[at] -= step
        jacobian[(..., *at)] = (value(above) - value(below)) / (above[at] - below[at])
    return jacobian


def every(table):
    """Run a test for each name in a table of strategies, with calls that it draws and a seed."""

    def decorate(test):
        @pytest.mark.parametrize("name", sorted(table))
        @given(data=st.data(), seed=st.integers(0, 2**16))
        def run(name, data, seed):
            args, params = data.draw(table[name].draws)
            test(name, args, params, seed)

        run.__name__ = run.__qualname__ = test.__name__
        run.__doc__ = test.__doc__
        return run

    return decorate


EVERYTHING = CASES | COMPOSED


def test_every_op_has_a_case_and_every_case_an_op():
    missing, idle = set(OPS) - set(CASES), set(CASES) - set(OPS)
    assert not missing, f"tests/strategies.py has no case for: {', '.join(sorted(missing))}"
    assert not idle, f"there is no such op: {', '.join(sorted(idle))}"


@every(EVERYTHING)
def test_values_are_those_of_numpy(name, args, params, seed):
    y = call(name, leaves(args)[0], params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of means over nothing
        expected = EVERYTHING[name].value(*args, **params)
    assert not np.isnan(expected).any() or 0 in np.shape(args[0]), "drawn outside of its domain"
    assert y.shape == np.shape(expected)
    np.testing.assert_allclose(y.data, expected, rtol=1e-12, atol=1e-12)


@every(EVERYTHING)
def test_gradients_are_those_of_finite_differences(name, args, params, seed):
    inputs, variables = leaves(args)
    y = call(name, inputs, params)
    g = upstream_for(y, seed)
    scale = max(1, np.abs(y.data).max(initial=0))
    positions = [i for i, a in enumerate(args) if is_variable(a)]
    y.backward(g, retain_graph=True)
    for x, position in zip(variables, positions, strict=True):
        numeric = differences(name, args, params, position)
        assert x.grad.shape == x.shape
        assert x.grad.dtype == x.dtype
        analytic = np.zeros_like(numeric)
        for at in np.ndindex(y.shape):
            one = np.zeros(y.shape)
            one[at] = 1
            analytic[at] = mg.grad(y, x, one).data
        np.testing.assert_allclose(analytic, numeric, rtol=RTOL, atol=ATOL * scale)
        expected = np.tensordot(g, numeric, axes=y.ndim)
        accepted = ATOL * scale * max(1, np.abs(g).sum())
        np.testing.assert_allclose(x.grad, expected, rtol=RTOL, atol=accepted)


@every(EVERYTHING)
def test_nothing_is_mutated_or_shared_and_zero_stays_zero(name, args, params, seed):
    constants = [a.copy() for a in args if is_variable(a)]
    inputs, variables = leaves(args)
    y = call(name, inputs, params)
    g = upstream_for(y, seed)
    kept = g.copy()
    y.backward(g, retain_graph=True)
    first = [x.grad for x in variables]
    assert np.array_equal(g, kept)
    for x, before in zip(variables, constants, strict=True):
        assert np.array_equal(x.data, before)
    arrays = [g, *(x.data for x in variables), y.data]
    for i, gradient in enumerate(first):
        assert gradient.flags.writeable
        assert not any(np.shares_memory(gradient, a) for a in arrays + first[:i])
    for x in variables:
        x.grad = None
    y.backward(g, retain_graph=True)
    assert all(np.array_equal(x.grad, a) for x, a in zip(variables, first, strict=True))
    if y._op is not None:
        with pytest.raises(ValueError, match="read-only"):
            y.data[...] = 0
    for x in variables:
        x.grad = None
    y.backward(np.zeros(y.shape))
    assert not any(x.grad.any() for x in variables)


@every(EVERYTHING)
def test_float32_stays_float32_and_agrees_with_float64(name, args, params, seed):
    results = []
    params = {k: np.float32 if v is np.float64 else v for k, v in params.items()}
    for dtype in (np.float32, np.float64):
        inputs, variables = leaves(args, dtype)
        y = call(name, inputs, params)
        y.backward(upstream_for(y, seed))
        results.append((y, [x.grad for x in variables]))
    (y, gradients), (exact_y, exact_gradients) = results
    assert y.dtype == np.float32
    for found, exact in zip([y.data, *gradients], [exact_y.data, *exact_gradients], strict=True):
        assert found.dtype == np.float32
        size = max(1, np.abs(exact).max(initial=0))
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * size)


@every(EVERYTHING)
def test_second_derivatives_are_those_of_finite_differences(name, args, params, seed):
    f, variables = of_its_variables(name, args, params)
    if any(x.size for x in variables):  # else there is nothing to differentiate by
        mg.gradgradcheck(f, *variables, seed=seed, rtol=1e-5, atol=1e-6)


@every(CASES)
def test_the_rule_of_a_frozen_argument_is_never_called(name, args, params, seed):
    op = OPS[name]
    variables = [i for i, a in enumerate(args) if is_variable(a)]
    rules, called = op.vjps, []

    def spied(i, rule):
        def spy(*arguments, **keywords):
            called.append(i)
            return rule(*arguments, **keywords)

        return rule and spy

    op.vjps = tuple(spied(i, rule) for i, rule in enumerate(rules))
    try:
        for wanted in variables:
            called.clear()
            inputs = [Tensor(a, i == wanted) if i in variables else a for i, a in enumerate(args)]
            y = call(name, inputs, params)
            y.backward(np.ones(y.shape))
            assert set(called) == {wanted}
    finally:
        op.vjps = rules


# ----------------------------------------------------------------------------- definitions


def agree(f, definition, args, seed):
    """Assert that two functions have the same value and the same gradients."""
    results = []
    for function in (f, definition):
        inputs, variables = leaves(args)
        y = function(*inputs)
        y.backward(upstream_for(y, seed))
        results.append([y.data, *(x.grad for x in variables)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@given(CASES["linear"].draws, st.integers(0, 99))
def test_linear_is_matmul_and_add(drawn, seed):
    args, _ = drawn
    agree(mg.linear, lambda x, w, *b: x @ w.mT + b[0] if b else x @ w.mT, args, seed)


@pytest.mark.parametrize("shape", [(2, 3, 600), (2, 600, 3), (2, 600, 600), (600, 2, 600)], ids=str)
def test_linear_is_that_also_where_it_is_computed_turned_over(shape):
    """Few rows or many, and rows of w, and of its transpose, shorter and longer than a page."""
    rows, out, into = shape
    rng = np.random.default_rng(0)
    args = [rng.normal(size=size) for size in ((rows, into), (out, into), (out,))]
    agree(mg.linear, lambda x, w, b: x @ w.mT + b, args, 0)


@given(CASES["plus_product"].draws, st.integers(0, 99))
def test_plus_product_is_the_correction_of_lora(drawn, seed):
    y0, h, B, s = drawn[0]
    agree(lambda y0, h, B: y0 + s * (h @ B.mT), lambda *a: plus_product(*a, s), [y0, h, B], seed)


@given(CASES["frozen_product"].draws, st.integers(0, 99))
def test_frozen_product_is_two_products_and_fills_the_array_beside(drawn, seed):
    x, W0, h, B, s, *beside = drawn[0]
    agree(
        lambda x, h, B: frozen_product(x, W0, h, B, s, *beside),
        lambda x, h, B: mg.linear(x, W0) + s * (h @ B.mT),
        [x, h, B],
        seed,
    )
    if beside:
        A, W0A = beside
        np.testing.assert_allclose(W0A, W0 @ A.T, rtol=1e-5, atol=1e-4)


@given(CASES["rescale"].draws, st.integers(0, 99))
def test_rescale_is_a_product_a_quotient_and_a_sum(drawn, seed):
    agree(rescale, lambda z, m, n, b=0.0: z * (m / n) + b, drawn[0], seed)


@given(CASES["softmax"].draws, st.integers(0, 99))
def test_softmax_is_the_power_of_log_softmax(drawn, seed):
    args, params = drawn
    axis = params["axis"]
    agree(lambda x: mg.softmax(x, axis), lambda x: mg.exp(mg.log_softmax(x, axis)), args, seed)


@given(CASES["surprise"].draws, st.integers(0, 99))
def test_surprise_is_minus_the_log_softmax_of_the_label(drawn, seed):
    x, labels = drawn[0]
    rows = np.arange(len(labels))
    agree(
        lambda x: mg.ops.surprise(x, labels),
        lambda x: -mg.log_softmax(x)[rows, labels],
        [x],
        seed,
    )


@given(CASES["mean"].draws, st.integers(0, 99))
def test_var_is_the_mean_of_squared_deviations(drawn, seed):
    args, params = drawn
    axis, keepdims = params["axis"], params["keepdims"]

    def definition(x):
        return ((x - x.mean(axis=axis, keepdims=True)) ** 2).mean(axis=axis, keepdims=keepdims)

    if args[0].size:
        agree(lambda x: x.var(axis=axis, keepdims=keepdims), definition, args, seed)


@given(CASES["minimum"].draws, st.integers(0, 99))
def test_minimum_is_maximum_turned_over(drawn, seed):
    agree(mg.minimum, lambda a, b: -mg.maximum(mg.neg(a), mg.neg(b)), drawn[0], seed)


@pytest.mark.parametrize("labels", [[0, 1], [], [[0]]], ids=str)
@pytest.mark.parametrize("name", ["surprise", "residual"])
def test_one_label_is_needed_for_each_row(name, labels):
    args = [np.ones((1, 3)), np.ones(1)] if name == "residual" else [np.ones((1, 3))]
    with pytest.raises(ValueError, match=f"{name} .*one label for each row"):
        OPS[name](*args, np.array(labels, int))


def test_residual_has_the_dtype_that_its_arguments_have_together():
    x, w = np.ones((1, 2), np.float32), np.ones(1)
    assert mg.ops.residual(x, w, np.array([0])).dtype == np.float64
