"""Every op in the registry keeps the same promises; a new one is found here automatically.

Gradients are compared with central differences written here, independent of ``minigrad.gradcheck``: in
float64, with the step 6e-6·max(1, |x|), the full Jacobian, to a relative 1e-6 and an absolute 1e-8 of
the largest output.  Shape and dtype are compared first, because NumPy would broadcast a wrong shape.
"""

import dis
import inspect
import warnings
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import CASES, COMPOSED, Call, arrays

import minigrad as mg
from minigrad import OPS, Tensor

STEP, RTOL, ATOL = 6e-6, 1e-6, 1e-8

EVERYTHING = CASES | COMPOSED


class Drawn(NamedTuple):
    """A function at a point, and the same function in NumPy."""

    variables: list[np.ndarray]
    function: Callable  # of the variables alone
    in_numpy: Callable  # of the variables alone


def every(table):
    """Run a test for each name in a table of cases, with what is drawn for it and a seed."""

    def decorate(test):
        @pytest.mark.parametrize("name", sorted(table))
        @given(data=st.data(), seed=st.integers(0, 2**16))
        def run(name, data, seed):
            call = data.draw(table[name].calls)
            function = getattr(mg, name, None) or OPS[name]
            drawn = Drawn(call.variables, call.of(function), call.of(table[name].in_numpy))
            test(name, drawn, seed)

        run.__name__ = run.__qualname__ = test.__name__
        run.__doc__ = test.__doc__
        return run

    return decorate


def leaves(variables, dtype=np.float64):
    return [Tensor(x.astype(dtype), requires_grad=True) for x in variables]


def upstream_for(y, seed):
    """Return a gradient in which no two entries are equal and the signs are mixed."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, y.shape) * rng.choice([-1, 1], y.shape)


def differences(drawn, position):
    """Return dy/dx of shape (*y.shape, *x.shape) for the variable at ``position``."""

    def value(x):
        before, after = drawn.variables[:position], drawn.variables[position + 1 :]
        return drawn.function(*before, x, *after).data

    x = drawn.variables[position]
    jacobian = np.zeros((*value(x).shape, *x.shape))
    for at in np.ndindex(x.shape):
        step = STEP * max(1, abs(x[at]))
        above, below = x.copy(), x.copy()
        above[at] += step
        below[at] -= step
        jacobian[(..., *at)] = (value(above) - value(below)) / (above[at] - below[at])
    return jacobian


def change_rules(patch, op, change):
    """Replace each rule of an op by ``change(position, rule)``."""
    patch.setattr(op, "vjps", tuple(change(i, rule) for i, rule in enumerate(op.vjps)))
    if each := op.each:
        patch.setattr(op, "each", lambda i: change(len(op.vjps) + i, each(i)))


def watch_rules(patch, ops):
    """Return a list to which each called rule adds the argument that it differentiates by."""
    differentiated = []

    def watched(position, rule):
        def noting(g, y, *arguments):
            differentiated.append(arguments[position])
            return rule(g, y, *arguments)

        return rule and noting

    for op in ops:
        change_rules(patch, op, watched)
    return differentiated


# ----------------------------------------------------------------------------- promises


def test_an_op_shows_its_name_and_what_its_forward_says():
    assert repr(mg.linear) == "<op linear>"
    assert mg.linear.__doc__ == mg.linear.forward.__doc__
    assert mg.linear.__doc__.startswith("Return x w")
    assert repr(OPS["concatenate"]) == "<op concatenate>"


def test_an_op_has_the_rules_that_it_was_given_and_no_more():
    op = mg.Op(lambda a, b: a * b, (lambda g, y, a, b: g * b,))
    assert [op.has_rule(i) for i in range(3)] == [True, False, False]
    assert [OPS["concatenate"].has_rule(i) for i in range(3)] == [False, True, True]


def test_every_op_has_a_case_and_every_case_an_op():
    missing, idle = set(OPS) - set(CASES), set(CASES) - set(OPS)
    assert not missing, f"tests/strategies.py has no case for: {', '.join(sorted(missing))}"
    assert not idle, f"there is no such op: {', '.join(sorted(idle))}"


@every(EVERYTHING)
def test_values_are_those_of_numpy(name, drawn, seed):
    y = drawn.function(*leaves(drawn.variables))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of means over nothing
        expected = drawn.in_numpy(*drawn.variables)
    assert not np.isnan(expected).any() or not drawn.variables[0].size, "drawn outside its domain"
    assert y.shape == np.shape(expected)
    np.testing.assert_allclose(y.data, expected, rtol=1e-12, atol=1e-12)


@every(EVERYTHING)
def test_gradients_are_those_of_finite_differences(name, drawn, seed):
    variables = leaves(drawn.variables)
    y = drawn.function(*variables)
    g = upstream_for(y, seed)
    scale = max(1, np.abs(y.data).max(initial=0))
    y.backward(g, retain_graph=True)
    for position, x in enumerate(variables):
        numeric = differences(drawn, position)
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
def test_nothing_is_mutated_or_shared_and_zero_stays_zero(name, drawn, seed):
    variables = leaves(drawn.variables)
    y = drawn.function(*variables)
    g = upstream_for(y, seed)
    kept = g.copy()
    y.backward(g, retain_graph=True)
    first = [x.grad for x in variables]
    assert np.array_equal(g, kept)
    for x, before in zip(variables, drawn.variables, strict=True):
        assert np.array_equal(x.data, before)
    arrays = [g, *(x.data for x in variables), y.data]
    for i, gradient in enumerate(first):
        assert gradient.flags.writeable
        assert not any(np.shares_memory(gradient, a) for a in arrays + first[:i])
    for x in variables:
        x.grad = None
    y.backward(g, retain_graph=True)
    assert all(np.array_equal(x.grad, a) for x, a in zip(variables, first, strict=True))
    if y.op is not None:
        with pytest.raises(ValueError, match="read-only"):
            y.data[...] = 0
    assert all(x.data.flags.writeable for x in variables)
    for x in variables:
        x.grad = None
    y.backward(np.zeros(y.shape))
    assert not any(x.grad.any() for x in variables)


@every(EVERYTHING)
def test_float32_stays_float32_and_agrees_with_float64(name, drawn, seed):
    results = []
    for dtype in (np.float32, np.float64):
        variables = leaves(drawn.variables, dtype)
        y = drawn.function(*variables)
        y.backward(upstream_for(y, seed))
        results.append([y.data, *(x.grad for x in variables)])
    for found, exact in zip(*results, strict=True):
        assert found.dtype == np.float32
        size = max(1, np.abs(exact).max(initial=0))
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * size)


@every(CASES)
def test_no_rule_computes_in_float64_what_is_narrower(name, drawn, seed):
    """The engine would convert the gradient to the right dtype, and so hide a wider one."""
    returned = []

    def noting(position, rule):
        return rule and (lambda *arguments: returned.append(rule(*arguments)) or returned[-1])

    with pytest.MonkeyPatch.context() as patch:
        change_rules(patch, OPS[name], noting)
        for dtype in (np.float16, np.float32):
            y = drawn.function(*leaves(drawn.variables, dtype))
            y.backward(upstream_for(y, seed))
    assert {c.dtype.name for c in returned} <= {"float16", "float32"}


@every(EVERYTHING)
def test_second_derivatives_are_those_of_finite_differences(name, drawn, seed):
    if any(x.size for x in drawn.variables):  # otherwise there is nothing to differentiate by
        mg.gradgradcheck(drawn.function, *drawn.variables, seed=seed, rtol=1e-5, atol=1e-6)


def names_read(rule):
    """Return the names that a rule, written as one lambda or one function, reads."""
    names = set()
    for instruction in dis.get_instructions(rule):
        named = instruction.argval
        names.update(named if isinstance(named, tuple) else [named])
    return names


@pytest.mark.parametrize("name", sorted(OPS))
def test_a_rule_reads_what_it_names_and_an_underscore_is_in_front_of_the_rest(name):
    op = OPS[name]
    for i, rule in enumerate([*op.vjps, op.each and op.each(0)]):
        if rule is None:
            continue
        _, y, *arguments = inspect.signature(rule).parameters
        arrays = [a for k, a in enumerate(arguments) if op.has_rule(k)]
        for unread in {y, *arrays} - names_read(rule):
            assert unread.startswith("_"), f"rule {i} does not read {unread}"


@every(CASES)
def test_the_rule_of_a_frozen_argument_is_never_called(name, drawn, seed):
    with pytest.MonkeyPatch.context() as patch:
        differentiated = watch_rules(patch, [OPS[name]])
        for wanted in range(len(drawn.variables)):
            differentiated.clear()
            tensors = [Tensor(x, requires_grad=i == wanted) for i, x in enumerate(drawn.variables)]
            y = drawn.function(*tensors)
            y.backward(np.ones(y.shape))
            assert [id(a) for a in differentiated] == [id(tensors[wanted].data)]


# ----------------------------------------------------------------------------- definitions


def agree(f, definition, call, seed):
    """Assert that two functions, called in the same way, have the same value and gradients."""
    results = []
    for function in (f, definition):
        variables = leaves(call.variables)
        y = call.of(function)(*variables)
        y.backward(upstream_for(y, seed))
        results.append([y.data, *(x.grad for x in variables)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@given(CASES["linear"].calls, st.integers(0, 99))
def test_linear_is_matmul_and_add(call, seed):
    agree(mg.linear, lambda x, w, b=0.0: x @ w.mT + b, call, seed)


@pytest.mark.parametrize("shape", [(2, 3, 600), (2, 600, 3), (2, 600, 600), (600, 2, 600)], ids=str)
def test_linear_is_that_also_where_it_is_computed_turned_over(shape):
    """Few rows or many, and rows of w, and of its transpose, shorter and longer than a page."""
    rows, out, into = shape
    rng = np.random.default_rng(0)
    call = Call([rng.normal(size=size) for size in ((rows, into), (out, into), (out,))])
    agree(mg.linear, lambda x, w, b: x @ w.mT + b, call, 0)


@given(CASES["affine"].calls, st.integers(0, 99))
def test_affine_is_a_product_and_a_sum(call, seed):
    agree(mg.affine, lambda z, c, b=0.0: z * c + b, call, seed)


def test_affine_scales_a_number_by_a_tensor():
    c = Tensor([1.0, 2.0], requires_grad=True)
    y = mg.affine(3.0, c, 1.0)
    assert_array_equal(y.data, [4, 7])
    assert_array_equal(mg.grad(y.sum(), c).data, [3, 3])


@given(CASES["log_softmax"].calls, st.integers(0, 99))
def test_softmax_is_the_power_of_log_softmax(call, seed):
    agree(mg.softmax, lambda x, axis: mg.exp(mg.log_softmax(x, axis)), call, seed)


@given(
    CASES["softmax"].calls, st.integers(0, 99), st.sampled_from([np.nan, np.inf, -np.inf, 1e308])
)
def test_a_masked_softmax_is_one_of_what_is_left_whatever_is_masked(call, seed, masked):
    """Values, and derivatives of both orders, which are 0 where something is hidden."""
    (x,), given = call.variables, {}
    call.apply(lambda x, axis, where=True: given.update(axis=axis, where=where), x)
    hidden = ~np.broadcast_to(given["where"], x.shape)
    found = []
    for value in (masked, 0.5):
        a = Tensor(np.where(hidden, value, x), requires_grad=True)
        p = mg.softmax(a, **given)
        slope = mg.grad(p, a, upstream_for(p, seed), create_graph=True)
        again = mg.grad(slope, a, upstream_for(p, seed + 1))
        found.append([p.data, slope.data, again.data])
        for array in found[-1]:
            assert_array_equal(array[hidden], np.zeros(np.sum(hidden)))
    for one, other in zip(*found, strict=True):
        assert_array_equal(one, other)


@given(CASES["nll"].calls, st.integers(0, 99))
def test_nll_is_minus_the_log_softmax_of_the_label(call, seed):
    def definition(x, labels):
        return -mg.log_softmax(x)[np.arange(len(labels)), labels]

    agree(mg.ops.nll, definition, call, seed)


@given(CASES["mean"].calls, st.integers(0, 99))
def test_var_is_the_mean_of_squared_deviations(call, seed):
    def definition(x, axis, keepdims):
        return ((x - x.mean(axis=axis, keepdims=True)) ** 2).mean(axis=axis, keepdims=keepdims)

    agree(mg.var, definition, call, seed)


@given(CASES["layer_norm"].calls, st.integers(0, 99))
def test_layer_norm_is_the_deviation_in_units_of_its_spread(call, seed):
    def definition(x, axis, eps):
        deviation = x - x.mean(axis=axis, keepdims=True)
        return deviation / mg.sqrt(x.var(axis=axis, keepdims=True) + eps)

    agree(mg.layer_norm, definition, call, seed)


@given(st.integers(2, 9), st.integers(0, 99), st.sampled_from([0, 0.5]))
def test_the_derivative_of_layer_norm_is_symmetric_and_without_eps_a_projection(n, seed, eps):
    """Its rank is n − 2: it does not feel a shift or a scaling of x."""
    x = Tensor(np.random.default_rng(seed).normal(size=n), requires_grad=True)
    y = mg.layer_norm(x, eps=eps)
    jacobian = np.array([mg.grad(y, x, unit).data for unit in np.eye(n)])
    P = jacobian * np.sqrt(np.var(x.data) + eps)
    np.testing.assert_allclose(P, P.T, atol=1e-12)
    np.testing.assert_allclose(P @ np.ones(n), np.zeros(n), atol=1e-12)
    if eps == 0:
        np.testing.assert_allclose(P @ P, P, atol=1e-12)
        np.testing.assert_allclose(P @ y.data, np.zeros(n), atol=1e-12)
        np.testing.assert_allclose(np.trace(P), n - 2, atol=1e-12)


#: Large enough for the special forms for many numbers, with short, middle and long rows.
LARGE = [(1500, 16), (30, 40, 20), (16, 1200), (12, 5000), (3, 6000), (20_000,)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "norm", "max", "min", "logsumexp", "std"])
def test_many_numbers_are_reduced_as_few_are(name, shape, turned):
    """Values are NumPy's, and gradients those of finite differences in one direction."""
    f, in_numpy = getattr(mg, name), EVERYTHING[name].in_numpy
    rng = np.random.default_rng(0)
    a, towards = rng.normal(size=(2, *shape))
    a, towards = (a.T, towards.T) if turned else (a, towards)
    for axis in [None, (), *range(a.ndim), *combinations(range(a.ndim), 2)]:
        for keepdims in (False, True):
            assert_reduced(f, in_numpy, a, towards, axis=axis, keepdims=keepdims)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm"])
def test_many_numbers_are_shared_out_as_few_are(name, shape, turned):
    f, in_numpy = getattr(mg, name), EVERYTHING[name].in_numpy
    a, towards = np.random.default_rng(0).normal(size=(2, *shape))
    a, towards = (a.T, towards.T) if turned else (a, towards)
    for axis in range(a.ndim):
        assert_reduced(f, in_numpy, a, towards, axis=axis)


def assert_reduced(f, in_numpy, a, towards, **params):
    x = Tensor(a, requires_grad=True)
    y, expected = f(x, **params), in_numpy(a, **params)
    np.testing.assert_allclose(y.data, expected, rtol=1e-11, atol=1e-11)
    assert y.shape == expected.shape
    assert not np.shares_memory(y.data, x.data)
    g = np.random.default_rng(1).normal(size=y.shape)
    change = in_numpy(a + 1e-6 * towards, **params) - in_numpy(a - 1e-6 * towards, **params)
    found = np.sum(mg.grad(y, x, g).data * towards)
    np.testing.assert_allclose(found, np.sum(g * change) / 2e-6, rtol=1e-6, atol=1e-7)


@given(CASES["minimum"].calls, st.integers(0, 99))
def test_minimum_is_maximum_turned_over(call, seed):
    agree(mg.minimum, lambda a, b: -mg.maximum(mg.neg(a), mg.neg(b)), call, seed)


@pytest.mark.parametrize("labels", [[0, 1], [], [[0]]], ids=str)
@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        pytest.param("nll", [np.ones((1, 3))], id="nll"),
        pytest.param("nll_grad", [np.ones((1, 3)), np.ones(1)], id="nll_grad"),
        pytest.param("nll", [np.ones((2, 3, 1))], id="nll of a stack"),
        pytest.param("nll_grad", [np.ones((2, 3, 1)), np.ones(2)], id="nll_grad of a stack"),
    ],
)
def test_one_label_is_needed_for_each_row(name, arrays, labels):
    with pytest.raises(ValueError, match=f"{name} .*one label for each row"):
        OPS[name](*arrays, np.array(labels, int))


@pytest.mark.parametrize("weights", [np.ones(1), np.ones(3), np.ones((2, 1)), 1.0], ids=np.shape)
def test_one_weight_is_needed_for_each_row(weights):
    with pytest.raises(ValueError, match=r"nll_grad .*one weight for each row .*for \(2, 3\)"):
        mg.ops.nll_grad(np.ones((2, 3)), weights, np.zeros(2, int))


@pytest.mark.parametrize("labels", [[2, 0], (2, 0), np.array([2, 0], np.uint8)], ids=repr)
def test_labels_may_be_any_sequence_of_integers(labels):
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    loss = mg.ops.nll(x, labels)
    assert_array_equal(loss.data, mg.ops.nll(x, np.array([2, 0])).data)
    onehot = np.eye(3)[[2, 0]]
    np.testing.assert_allclose(mg.grad(loss.sum(), x).data, mg.softmax(x).data - onehot)


def test_no_rows_need_no_labels():
    x = Tensor(np.ones((0, 3)), requires_grad=True)
    assert mg.ops.nll(x, []).shape == (0,)
    assert mg.ops.nll_grad(x, np.ones(0), []).shape == (0, 3)


@pytest.mark.parametrize("narrow", ["logits", "weights"])
def test_nll_grad_has_the_dtype_that_its_arguments_have_together(narrow):
    x = np.ones((1, 2), np.float32 if narrow == "logits" else np.float64)
    w = np.ones(1, np.float32 if narrow == "weights" else np.float64)
    assert mg.ops.nll_grad(x, w, np.array([0])).dtype == np.float64


def test_what_is_scattered_must_fit_its_places():
    """NumPy's assignment would drop leading axes of length 1, and the rule could not put them back."""
    for index in (slice(2), [0, 1], [2, 2]):
        with pytest.raises(ValueError, match=r"scatter .*\(1, 2\).* broadcast"):
            mg.ops.scatter(np.ones((1, 2)), index, (3,))


@pytest.mark.parametrize("index", [slice(2), [0, 1], [2, 2]], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scatter_keeps_the_dtype(index, dtype):
    assert mg.ops.scatter(np.ones(2, dtype), index, (3,)).dtype == dtype


# ----------------------------------------------------------------------------- odd shapes

#: Values for each parameter, by its name.  Many of them do not fit.
ODD_PARAMETERS = {
    "axis": st.none() | st.integers(-2, 2) | st.sampled_from([(), (0,), (0, 1), (-1, 0), (0, 2)]),
    "axis1": st.integers(-2, 2),
    "axis2": st.integers(-2, 2),
    "axes": st.none() | st.permutations(range(3)) | st.sampled_from([(0,), (1, 0), (-1, -2), ()]),
    "keepdims": st.booleans(),
    "ddof": st.integers(0, 2),
    "eps": st.sampled_from([0.1, 1e-5, 0.0, -1e-5, np.nan, np.inf, None]),
    "dtype": st.sampled_from([np.float32, np.float64]),
    "shape": st.sampled_from([(), (1,), (2,), (3, 2), (2, 3), (1, 6), (-1,), (2, 2, 3), 3, 6]),
    "index": st.sampled_from([0, slice(1, None), ..., None, [1, 1], np.array([[0, 1]]), (0, 1)]),
    "min": st.sampled_from([None, 0.5, np.full(3, 0.5), np.full((2, 1), 0.5)]),
    "max": st.sampled_from([None, 2.0, np.full(3, 2.0), np.full((2, 1), 2.0)]),
    "condition": st.sampled_from([True, [True, False, True], [[True], [False]]]),
    "where": st.sampled_from(
        [None, True, [True, False, True], [[True], [False]], [[[True]]], [1, 0]]
    ),
    "labels": st.sampled_from([[0], [0, 1], [1, 0, 1], 0, []]),
}
ODD_SHAPES = [(), (1,), (2,), (3,), (1, 3), (2, 3), (3, 2), (2, 1), (2, 2, 3), (2, 3, 2), (1, 1, 1)]


@pytest.mark.parametrize("name", sorted(OPS))
@given(data=st.data())
def test_what_a_forward_accepts_its_rules_can_handle(name, data):
    """Any arrays with any parameters: either the call is refused, or it can be differentiated twice."""
    op = OPS[name]
    names, optional = op._parameters
    args, variables = [], []
    for i, parameter in enumerate(names):
        if parameter in optional and data.draw(st.booleans()):
            break
        if op.has_rule(i):
            shape = data.draw(st.sampled_from(ODD_SHAPES))
            args.append(Tensor(data.draw(arrays(shape, signed=False))[0], requires_grad=True))
            variables.append(args[-1])
        else:
            args.append(data.draw(ODD_PARAMETERS[parameter]))
    said = None
    try:
        y = op(*args)
    except (ValueError, TypeError, IndexError) as refusal:
        said = str(refusal)
    if said is not None:
        assert said.startswith(name)
        return
    gradients = mg.grad(y, variables, np.ones(y.shape), create_graph=True)
    assert [g.shape for g in gradients] == [x.shape for x in variables]
    slope = sum((g.sum() for g in gradients), sum((0 * x).sum() for x in variables))
    assert [g.shape for g in mg.grad(slope, variables)] == [x.shape for x in variables]


@pytest.mark.parametrize(
    "shapes", [[(3, 1), (3, 5)], [(3, 2), (1, 5)], [(2, 3, 1), (3, 5)]], ids=str
)
def test_a_product_of_matrices_that_do_not_fit_is_none_of_their_numbers(shapes):
    a, b = map(np.ones, shapes)
    with pytest.raises(ValueError, match="matmul of shapes"):
        mg.matmul(a, b)


@pytest.mark.parametrize("index", [np.array([True, True, False]), (np.zeros(3, bool), slice(None))])
def test_what_does_not_fit_at_a_mask_is_a_value_error(index):
    shape = (3,) if isinstance(index, np.ndarray) else (3, 4)
    for a in (np.ones((2, 3)), np.zeros((2, 0, 4))):
        with pytest.raises(ValueError, match="broadcast"):
            mg.ops.scatter(a, index, shape)


def test_the_power_of_a_long_double_has_its_digits():
    x = np.float32([2.0, 3.0])
    for b in (-2, 3, 4):
        assert mg.pow(x, np.longdouble(b)).dtype == (x ** np.longdouble(b)).dtype


def test_a_clip_that_is_open_on_both_sides_takes_any_order_of_bytes():
    assert_array_equal(mg.clip(mg.Tensor(np.array([1.0, 2.0], ">f4"))).data, [1, 2])


def test_what_is_stacked_lies_row_by_row():
    parts = [mg.Tensor(np.ones((2, 3))) for _ in range(4)]
    for axis in range(3):
        assert mg.stack(parts, axis).data.flags.c_contiguous
