"""The Tensor among NumPy's arrays: what it holds, how it mixes with them, and what it refuses."""

import array
import contextlib
import copy
import inspect
import math
import operator
import pickle
import re
import warnings
from collections import deque
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.testing.overrides import (
    get_overridable_numpy_array_functions,
    get_overridable_numpy_ufuncs,
)

import minigrad as mg
from minigrad import adding
from minigrad.engine import ancestry

FLOATS = [np.float16, np.float32, np.float64]


def leaf(value, dtype=np.float64):
    return mg.Tensor(np.asarray(value, dtype=dtype), requires_grad=True)


# ----------------------------------------------------------------------------- construction


def test_data_is_copied():
    array = np.array([1.0, 2.0])
    x, y = mg.Tensor(array), mg.Tensor(mg.Tensor(array))
    array[0] = 99
    assert_array_equal(x.data, [1, 2])
    assert_array_equal(y.data, [1, 2])


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_dtypes_are_kept(dtype):
    assert mg.Tensor(np.ones(2, dtype)).dtype == dtype
    assert mg.Tensor(dtype(1), requires_grad=True).dtype == dtype


@pytest.mark.parametrize("data", [3, True, [1, 2], np.arange(3), np.array([True]), np.uint8(7)])
def test_integers_and_bools_become_float64(data):
    x = mg.Tensor(data)
    assert_array_equal(x.data, np.asarray(data, np.float64), strict=True)


@pytest.mark.parametrize("data", [3, True, [1, 2], np.arange(3)])
def test_integers_cannot_require_a_gradient(data):
    with pytest.raises(TypeError, match="floating-point"):
        mg.Tensor(data, requires_grad=True)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (1j, TypeError, "complex128"),
        (np.array([None, 1.0]), TypeError, "object"),
        ("1.0", TypeError, "<U3"),
        (None, TypeError, "object"),
        (np.datetime64("2024-01-01"), TypeError, "datetime64"),
        ([[1.0], [2.0, 3.0]], ValueError, "^lists in a list, .* equally long$"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        mg.Tensor(data)


def test_it_describes_itself_as_an_array_does():
    x = mg.Tensor(np.ones((2, 3), np.float32))
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float32, 2)
    assert (x.requires_grad, x.grad) == (False, None)


# ----------------------------------------------------------------------------- operators

OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "@": operator.matmul,
}
A, B = np.array([1.0, 2.0, 3.0]), np.array([0.5, 4.0, 2.0])
OPERANDS = {
    "Tensor": mg.Tensor(B),
    "ndarray": B,
    "list": B.tolist(),
    "tuple": tuple(B),
    "integer array": np.array([4, 1, 2]),
    "Python float": 2.5,
    "Python int": 2,
    "bool": True,
    "NumPy scalar": np.float64(2.5),
    "NumPy integer": np.int64(2),
    "0-d array": np.array(2.5),
}


MIXTURES = {
    f"{symbol} {name}": (f, other)
    for symbol, f in OPERATORS.items()
    for name, other in OPERANDS.items()
    if symbol != "@" or np.ndim(other) > 0  # a matrix product needs axes
}


@pytest.mark.parametrize(("f", "other"), MIXTURES.values(), ids=MIXTURES)
def test_operators_give_tensors_from_both_sides(f, other):
    x, plain = leaf(A), np.asarray(other)
    for found, expected in ((f(x, other), f(A, plain)), (f(other, x), f(plain, A))):
        assert isinstance(found, mg.Tensor)
        assert found.requires_grad
        assert_array_equal(found.data, expected)


def test_signs_and_absolute_values():
    x = leaf([-1.0, 2.0])
    assert_array_equal((-x).data, [1, -2])
    assert_array_equal(abs(x).data, [1, 2])


COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@pytest.mark.parametrize("f", COMPARISONS.values(), ids=COMPARISONS)
@pytest.mark.parametrize(
    "other",
    [
        2,
        2.0,
        True,
        np.int64(2),
        np.float64(2),
        np.array(2.0),
        np.array([1.0, 2.0, 4.0]),
        np.array([1, 2, 4]),
        [1.0, 2.0, 4.0],
        (1, 2, 4),
        mg.Tensor([1.0, 2.0, 4.0]),
        np.array([[1.0], [2.0]]),
    ],
    ids=repr,
)
def test_comparisons_give_bool_arrays_from_both_sides(f, other):
    plain = np.asarray(other)
    for found, expected in (
        (f(leaf(A), other), f(A, plain)),
        (f(other, leaf(A)), f(plain, A)),
    ):
        assert type(found) is np.ndarray
        assert_array_equal(found, expected, strict=True)


def test_a_comparison_with_a_python_number_is_made_in_the_tensors_dtype():
    x = mg.Tensor(np.array([0.1], np.float32))
    for f in (operator.le, operator.eq):
        for number in (0.1, np.float64(0.1), np.array(0.1)):
            assert_array_equal(f(x, number), [True])
            assert_array_equal(f(number, x), [True])


def test_labels_can_be_compared_with_and_chosen_by():
    t, labels = leaf([0.0, 1.0, 2.0, 0.0]), np.array([0, 1, 1, 1])
    assert np.mean(t == labels) == 0.5
    assert_array_equal(mg.where(t == 0, 9.0, t).data, [9, 1, 2, 9])
    assert_array_equal(leaf([np.nan, np.inf]) == leaf([np.nan, np.inf]), [False, True])


@pytest.mark.parametrize("other", [None, "a", b"a", {}, set(), object, ..., print], ids=repr)
def test_what_is_no_number_and_no_array_is_equal_to_no_tensor(other):
    for x in (leaf(A), leaf(2.0)):
        assert (x == other) is (other == x) is False
        assert (x != other) is (other != x) is True


def test_what_cannot_be_compared_is_refused_and_not_called_unequal():
    for wrong, error, message in (
        (np.ones(7), ValueError, r"together with shapes .*\(7,\)"),
        (leaf(np.ones(7)), ValueError, r"together with shapes .*\(7,\)"),
        ([[1], [2, 3]], ValueError, "equally long"),
        (1j, TypeError, "real numbers"),
        (np.array(["a", "b", "c"]), TypeError, "real numbers"),
        (np.array([None] * 3), TypeError, "real numbers"),
        (["a", "b", "c"], TypeError, "real numbers"),
        ([leaf(1.0)] * 3, TypeError, "list of Tensors"),
    ):
        for f in (operator.eq, operator.ne):
            with pytest.raises(error, match=message):
                f(leaf(A), wrong)
            with pytest.raises(error, match=message):
                f(wrong, leaf(A))


def test_tensors_hash_by_identity_so_that_they_are_keys():
    x, same = leaf(A), leaf(A)
    assert len({x, same, x}) == 2
    assert {x: "x", same: "same"}[same] == "same"
    assert hash(x) != hash(same)
    assert x in {x}
    assert same not in {x}


def test_augmented_assignment_binds_the_name_to_a_new_tensor():
    x = start = leaf(A)
    x += 1
    x *= x
    assert x is not start
    assert_array_equal(start.data, A)
    x.sum().backward()
    assert_array_equal(start.grad, 2 * (A + 1))


def test_entries_cannot_be_assigned():
    with pytest.raises(TypeError, match="item assignment"):
        leaf(A)[0] = 1


# ----------------------------------------------------------------------------- conversions


def test_a_single_number_converts_and_formats():
    x = mg.Tensor([[2.5]])
    assert (x.item(), float(x), bool(x), f"{x:.2f}") == (2.5, 2.5, True, "2.50")
    assert type(x.item()) is float
    assert not mg.Tensor(0.0)


@pytest.mark.parametrize(
    "f",
    [bool, float, mg.Tensor.item, lambda x: f"{x:.2f}"],
    ids=["bool", "float", "item", "format"],
)
def test_several_numbers_are_no_single_number(f):
    with pytest.raises(ValueError, match=r"size 1|more than one element"):
        f(leaf(A))


def test_iteration_gives_the_rows_as_tensors_with_gradients():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    first, second = x
    (first * 10 + second).sum().backward()
    assert_array_equal(x.grad, [[10, 10], [1, 1]])


@pytest.mark.parametrize("shape", [(5000,), (4097,), (5, 1000), (7, 3, 400), (3, 5000), (0, 3)])
def test_iteration_over_many_rows_gives_each_in_its_turn(shape):
    x = leaf(np.arange(np.prod(shape), dtype=float).reshape(shape))
    rows = list(x)
    assert len(rows) == len(x)
    assert all(np.array_equal(row.data, expected) for row, expected in zip(rows, x.data))
    weights = np.arange(len(rows))
    if len(rows):
        sum(row.sum() * weight for row, weight in zip(rows, weights.tolist())).backward()
        expected = np.broadcast_to(weights.reshape(-1, *[1] * (x.ndim - 1)), shape)
        assert_array_equal(x.grad, expected)


def test_iteration_makes_a_row_when_it_is_asked_for(monkeypatch):
    made = []
    cut = mg.Tensor.__getitem__
    monkeypatch.setattr(mg.Tensor, "__getitem__", lambda x, i: made.append(i) or cut(x, i))
    first = next(iter(leaf(np.ones((1000, 1000)))))
    assert first.shape == (1000,)
    assert len(made) < 20
    with mg.no_grad():
        assert not any(row.requires_grad for row in leaf(np.ones((10, 1000))))


def test_the_gradients_of_all_rows_go_into_one_array(monkeypatch):
    numbers = []
    make = adding.placed
    monkeypatch.setattr(
        adding, "placed", lambda a, index, shape: numbers.append(shape) or make(a, index, shape)
    )
    x = leaf(np.ones((1000, 100)))
    y = mg.stack([row * 2 for row in x])
    y.backward(np.ones(y.shape))
    assert_array_equal(x.grad, np.full(x.shape, 2.0))
    assert numbers.count(x.shape) == 1


def test_rows_may_go_back_one_by_one_and_be_cut_when_they_are_asked_for():
    x = leaf(np.ones((100, 64)))
    for row in x:
        (row * row).sum().backward()
    assert_array_equal(x.grad, 2 * x.data)
    rows = iter(x)
    with mg.no_grad():
        next(rows)
    x.data = np.full(x.shape, 3.0)
    assert all(row.requires_grad and row.data[0] == 3 for row in rows)


def test_a_0d_tensor_has_no_length_and_no_rows():
    for f in (len, iter, list):
        with pytest.raises(TypeError, match="unsized"):
            f(mg.Tensor(1.0))


def test_asarray_gives_the_array():
    x = leaf(A)
    assert np.asarray(x) is x.data
    assert x.numpy() is x.data
    assert np.asarray(x, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.data)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (mg.Tensor([1.0, 2.0]), "Tensor([1., 2.])"),
        (mg.Tensor(1.5), "Tensor(1.5)"),
        (mg.Tensor(np.zeros((0, 2))), "Tensor([], shape=(0, 2))"),
        (leaf([1.0]), "Tensor([1.], requires_grad=True)"),
        (leaf([1.0], np.float32), "Tensor([1.], dtype=float32, requires_grad=True)"),
        (leaf([1.0]) + 1, "Tensor([2.], op=add, requires_grad=True)"),
        (mg.Tensor([1.0]) + 1, "Tensor([2.])"),
        (mg.Tensor([[1.0], [2.0]]), "Tensor([[1.],\n        [2.]])"),
    ],
)
def test_repr_shows_the_values_and_what_is_not_the_default(x, text):
    assert repr(x) == str(x) == f"{x}" == text


# ----------------------------------------------------------------------------- NumPy's functions

#: A call of NumPy with a vector u, and what is to be used instead (".data" where minigrad has nothing).
LOSERS = {
    "where": (lambda u: np.where(A > 1, u, 0), "mg.where"),
    "where, chosen by": (lambda u: np.where(u > 1, 1.0, u), "mg.where"),
    "concatenate": (lambda u: np.concatenate([A, u]), "mg.concatenate"),
    "concat": (lambda u: np.concat((u, u)), "mg.concatenate"),
    "stack": (lambda u: np.stack([A, u]), "mg.stack"),
    "vstack": (lambda u: np.vstack([A, u]), ".data"),
    "clip": (lambda u: np.clip(u, 0, 1), "mg.clip"),
    "a method of an array": (lambda u: A.clip(u), "mg.maximum"),
    "dot": (lambda u: np.dot(A, u), "mg.matmul"),
    "einsum": (lambda u: np.einsum("i,i", u, A), ".data"),
    "outer": (lambda u: np.outer(u, u), ".data"),
    "std": (lambda u: np.std(u), "mg.std"),
    "var": (lambda u: np.var(u), "mg.var"),
    "sum": (lambda u: np.sum(u), "mg.sum"),
    "mean": (lambda u: np.mean(u, axis=0), "mg.mean"),
    "max": (lambda u: np.max(u), "mg.max"),
    "amax": (lambda u: np.amax(u), "mg.max"),
    "amin": (lambda u: np.amin(u), "mg.min"),
    "maximum.reduce": (lambda u: np.maximum.reduce(u), ".data"),
    "minimum.reduce": (lambda u: np.minimum.reduce(u), ".data"),
    "prod": (lambda u: np.prod(u), ".data"),
    "linalg.norm": (lambda u: np.linalg.norm(u), "mg.norm"),
    "linalg.vector_norm": (lambda u: np.linalg.vector_norm(u), "mg.norm"),
    "linalg.inv": (lambda u: np.linalg.inv(u[:, None] * u), ".data"),
    "squeeze": (lambda u: np.squeeze(u), "mg.squeeze"),
    "ravel": (lambda u: np.ravel(u), "mg.flatten"),
    "reshape": (lambda u: np.reshape(u, (3, 1)), "mg.reshape"),
    "transpose": (lambda u: np.transpose(u), "mg.transpose"),
    "permute_dims": (lambda u: np.permute_dims(u), "mg.transpose"),
    "broadcast_to": (lambda u: np.broadcast_to(u, (2, 3)), "mg.broadcast_to"),
    "atleast_1d": (lambda u: np.atleast_1d(u), ".data"),
    "cumsum": (lambda u: np.cumsum(u), ".data"),
    "copyto": (lambda u: np.copyto(A.copy(), u), ".data"),
    "linspace": (lambda u: np.linspace(u, 3), ".data"),
    "full_like": (lambda u: np.full_like(A, u), ".data"),
    "interp": (lambda u: np.interp(A, A, fp=u), ".data"),
    "fft.fft": (lambda u: np.fft.fft(u), ".data"),
    "polyval": (lambda u: np.polyval([1, 2], u), ".data"),
    "exp": (lambda u: np.exp(u), "mg.exp"),
    "log": (lambda u: np.log(u), "mg.log"),
    "sqrt": (lambda u: np.sqrt(u), "mg.sqrt"),
    "tanh": (lambda u: np.tanh(u), "mg.tanh"),
    "maximum": (lambda u: np.maximum(A, u), "mg.maximum"),
    "sign": (lambda u: np.sign(u), ".data"),
    "floor_divide": (lambda u: A // u, ".data"),
    "remainder": (lambda u: A % u, ".data"),
    "add, to be cast": (lambda u: np.add(u, u, dtype=np.float32), "mg.add"),
    "multiply, somewhere": (lambda u: np.multiply(u, u, where=A > 1), "mg.mul"),
    "subtract, somewhere": (lambda u: np.subtract(u, A, where=A > 1), "mg.sub"),
    "negative, somewhere": (lambda u: np.negative(u, where=A > 1), "mg.neg"),
    "absolute, to be cast": (lambda u: np.absolute(u, dtype=np.float32), "mg.abs"),
    "divide, into an array": (lambda u: np.divide(u, u, out=A.copy()), "mg.div"),
    "add, into a Tensor": (lambda u: np.add(A, A, out=u), "mg.add"),
    "exp, into an array": (lambda u: np.exp(u, out=A.copy()), "mg.exp"),
    "add.reduce": (lambda u: np.add.reduce(u), ".data"),
    "add.at": (lambda u: np.add.at(A.copy(), [0, 1, 2], u), ".data"),
    "multiply.outer": (lambda u: np.multiply.outer(u, u), ".data"),
    "a function of one's own": (lambda u: np.frompyfunc(abs, 1, 1)(u), ".data"),
}


@pytest.mark.parametrize(("call", "instead"), LOSERS.values(), ids=LOSERS)
def test_a_function_of_numpy_that_would_lose_the_gradient_names_another(call, instead):
    refused = pytest.raises(TypeError, match=rf"would lose the gradient .*{re.escape(instead)}\b")
    with refused:
        call(leaf(A))
    # a constant has no gradient to lose, but what minigrad has is not left to NumPy
    with refused if instead != ".data" else contextlib.suppress(np.linalg.LinAlgError):
        call(mg.Tensor(A))


def test_an_array_does_not_become_a_tensor_in_place():
    for f in (operator.iadd, operator.imul, operator.itruediv, operator.ipow):
        array = A.copy()
        with pytest.raises(TypeError, match=r"x = x \+ y instead of x \+= y"):
            f(array, leaf(B))
        assert_array_equal(array, A)


def test_no_function_of_numpy_takes_a_tensor_but_those_that_lose_nothing():
    """Every function of NumPy is refused, or its result cannot have a gradient."""
    x, refused = leaf(A), 0
    for function in get_overridable_numpy_array_functions():
        try:
            x.__array_function__(function, (mg.Tensor,), (x,), {})
        except TypeError as refusal:
            refused += "would lose the gradient" in str(refusal)
            continue
        except (ValueError, AttributeError):  # called with too little
            continue
    for function in get_overridable_numpy_ufuncs():
        try:
            y = x.__array_ufunc__(function, "__call__", *[x] * function.nin)
        except TypeError as refusal:
            refused += "would lose the gradient" in str(refusal)
        else:
            assert isinstance(y, mg.Tensor) or y.dtype == bool, function
    assert refused > 250


# functions that only ask: the answer is that for the array
ASKING = {
    "shape": np.shape,
    "ndim": np.ndim,
    "size": np.size,
    "isfinite": np.isfinite,
    "isnan, into an array": lambda x: np.isnan(x, out=np.empty(np.shape(x), bool)),
    "allclose": lambda x: np.allclose(x, x, rtol=1e-3),
    "isclose": lambda x: np.isclose(A, x),
    "array_equal": lambda x: np.array_equal(x, A),
    "argmax": lambda x: np.argmax(x, axis=0),
    "argsort": np.argsort,
    "nonzero": np.nonzero,
    "count_nonzero": np.count_nonzero,
    "searchsorted": lambda x: np.searchsorted(A, x),
    "lexsort": lambda x: np.lexsort([x, x]),
    "any": lambda x: np.any(x),
    "all": np.all,
    "zeros_like": np.zeros_like,
    "result_type": lambda x: np.result_type(x, np.float32),
    "iscomplexobj": np.iscomplexobj,
    "array2string": lambda x: np.array2string(x, precision=1),
    "less": lambda x: np.less(2.0, x),
    "not_equal": lambda x: np.not_equal(x, A),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_a_function_of_numpy_that_only_asks_is_answered(ask):
    found, expected = ask(leaf(A)), ask(A)
    assert type(found) is type(expected)
    assert_array_equal(found, expected)


def test_tensors_can_be_saved_by_numpy(tmp_path):
    np.save(tmp_path / "a.npy", leaf(A))
    np.savez(tmp_path / "b.npz", a=leaf(A), b=B)
    np.savetxt(tmp_path / "c.txt", leaf(A))
    assert_array_equal(np.load(tmp_path / "a.npy"), A)
    assert_array_equal(np.load(tmp_path / "b.npz")["a"], A)
    assert_array_equal(np.loadtxt(tmp_path / "c.txt"), A)


def test_operators_called_by_their_names_in_numpy_keep_the_gradient():
    x = leaf(A)
    for y, slope in (
        (np.add(B, x), 1),
        (np.subtract(x, B), 1),
        (np.multiply(x, x), 2 * A),
        (np.true_divide(x, B), 1 / B),
        (np.power(x, 2), 2 * A),
        (np.matmul(x, B), B),
        (np.negative(x), -1),
        (np.absolute(x), 1),
    ):
        assert_array_equal(mg.grad(y.sum(), x).data, np.full(3, slope))


def test_arrays_and_tensors_are_compared_by_numpys_testing():
    np.testing.assert_allclose(leaf(A), A)
    np.testing.assert_array_equal(leaf(A), leaf(A))
    np.testing.assert_array_less(leaf(A), leaf(A + 1))
    np.testing.assert_almost_equal(leaf(A), A)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(leaf(A), B)


# what makes a Python number of a Tensor
NUMBERS = {
    "float": (float, 2.0),
    "math.exp": (math.exp, math.exp(2)),
    "%": (lambda x: operator.mod("%.1f", x), "2.0"),
    "complex": (complex, 2 + 0j),
    "an entry of an array": (lambda x: _set(np.zeros(1), x), 2.0),
    "an array of numbers": (lambda x: np.array([x])[0], 2.0),
    "np.fromiter": (lambda x: np.fromiter([x], float)[0], 2.0),
    "math.fsum": (lambda x: math.fsum([x]), 2.0),
}


def _set(array, x):
    array[0] = x
    return array[0]


@pytest.mark.parametrize(("convert", "number"), NUMBERS.values(), ids=NUMBERS)
def test_where_a_tensor_becomes_a_python_number_its_gradient_ends_with_a_warning(convert, number):
    for x in (leaf(2.0), leaf(1.0) * 2):
        with pytest.warns(UserWarning, match=r"gradient ends .*mg\.exp.*\.item\(\)"):
            assert convert(x) == number
    with mg.no_grad():
        assert convert(leaf(2.0)) == number
    assert convert(mg.Tensor(2.0)) == number


def test_item_and_format_do_not_warn():
    x = leaf(2.0)
    assert (x.item(), f"{x:.1f}", f"{x.item()}", bool(x)) == (2.0, "2.0", "2.0", True)


PLOTS = {
    "plot": lambda ax, x, y: ax.plot(x, y),
    "plot of one": lambda ax, x, y: ax.plot(y),
    "scatter": lambda ax, x, y: ax.scatter(x, y),
    "bar": lambda ax, x, y: ax.bar(A, y.detach()),
    "hist": lambda ax, x, y: ax.hist(y),
    "imshow": lambda ax, x, y: ax.imshow(x[:, None] * y),
    "errorbar": lambda ax, x, y: ax.errorbar(x, y, yerr=0.1),
    "fill_between": lambda ax, x, y: ax.fill_between(x, y - 1, y + 1),
    "semilogy": lambda ax, x, y: ax.semilogy(x, y),
    "step": lambda ax, x, y: ax.step(x, y),
    "contourf": lambda ax, x, y: ax.contourf(x[:, None] * y),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_tensors_can_be_plotted(plot):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    x = leaf(A)
    plot(figure.add_subplot(), x, x * 2)
    figure.canvas.draw()


CONSTANT_PLOTS = {
    "bar": lambda plot, x: plot.bar(x, x),
    "barh": lambda plot, x: plot.barh(x, x),
    "bins": lambda plot, x: plot.hist([1, 2, 3], bins=x),
    "hist2d": lambda plot, x: plot.hist2d(x, x),
    "stackplot": lambda plot, x: plot.stackplot(x, x),
    "quiver": lambda plot, x: plot.quiver(x, x, x, x),
    "boxplot": lambda plot, x: plot.boxplot(x),
}


@pytest.mark.parametrize("plot", CONSTANT_PLOTS.values(), ids=CONSTANT_PLOTS)
def test_tensors_that_need_no_gradient_can_be_plotted_in_any_way(plot):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    plot(figure.add_subplot(), mg.Tensor(A))
    with mg.no_grad():
        plot(figure.add_subplot(), leaf(A))
    figure.canvas.draw()


# ----------------------------------------------------------------------------- copies


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copied_leaf_keeps_everything_and_owns_its_data(duplicate):
    x = leaf(A, np.float32)
    (x * x).sum().backward()
    y = duplicate(x)
    assert y is not x
    assert y.requires_grad
    assert_array_equal(y.data, x.data, strict=True)
    assert_array_equal(y.grad, x.grad, strict=True)
    y.data[0] = 99
    assert x.data[0] == 1
    (y * 2).sum().backward()
    assert_array_equal(x.grad, 2 * A)


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copied_constant_is_a_constant(duplicate):
    x = duplicate(mg.Tensor(A) * 2)
    assert not x.requires_grad
    assert x.grad is None
    assert_array_equal(x.data, 2 * A)


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_recorded_result_is_not_copied(duplicate):
    with pytest.raises(RuntimeError, match=r"result of mul.*detach"):
        duplicate(leaf(A) * 2)


def test_a_deepcopy_keeps_shared_tensors_shared():
    x = leaf(A)
    first, second = copy.deepcopy([x, x])
    assert first is second


# ----------------------------------------------------------------------------- assignment to leaves


def test_data_is_assigned_as_a_copy():
    x, array = leaf(A), B.copy()
    x.data = array
    array[0] = 99
    assert_array_equal(x.data, B)


def test_assignment_replaces_the_array_and_leaves_the_old_one_alone():
    x = leaf(A)
    old = x.data
    x.data = B
    assert_array_equal(old, A)


def test_data_can_be_changed_in_place_and_assigned_to_itself():
    x = leaf(A)
    x.data *= 2
    x.data -= 1
    assert_array_equal(x.data, [1, 3, 5])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones(2), ValueError, r"\(3,\).*\(2,\)"),
        (np.ones((3, 1)), ValueError, r"\(3,\).*\(3, 1\)"),
        (1.0, ValueError, r"\(3,\).*\(\)"),
        (np.ones(3, np.float32), TypeError, "float64.*float32"),
        (np.ones(3, int), TypeError, "float64.*int64"),
    ],
)
def test_data_of_another_shape_or_dtype_is_refused(value, error, message):
    x = leaf(A)
    with pytest.raises(error, match=message):
        x.data = value
    assert_array_equal(x.data, A)


def test_results_cannot_be_assigned_to():
    y = leaf(A) * 2
    with pytest.raises(RuntimeError, match=r"\.data of the result of mul"):
        y.data = A
    with pytest.raises(RuntimeError, match="requires_grad of the result of mul"):
        y.requires_grad = False


def test_a_leaf_can_be_frozen_and_thawed():
    x = leaf(A)
    x.requires_grad = False
    assert not (x * 2).requires_grad
    x.requires_grad = True
    assert (x * 2).requires_grad


# ----------------------------------------------------------------------------- dtypes

NEIGHBOURS = {
    "Python float": 2.5,
    "Python int": 2,
    "bool": True,
    "float64 scalar": np.float64(2.5),
    "int64 scalar": np.int64(2),
    "float64 0-d array": np.array(2.5),
    "integer array": np.array([1, 2, 3]),
    "bool array": np.array([True, False, True]),
    "float16 array": np.ones(3, np.float16),
}
DTYPE_KEEPERS = {
    "+": lambda x, a: x + a,
    "reflected -": lambda x, a: a - x,
    "*": lambda x, a: x * a,
    "reflected /": lambda x, a: a / x,
    "**": lambda x, a: x**a,
    "reflected **": lambda x, a: a**x,
    "maximum": mg.maximum,
    "minimum": lambda x, a: mg.minimum(a, x),
    "where": lambda x, a: mg.where(x > 2, x, a),
    "clip": lambda x, a: mg.clip(x, a, 3 * a),
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize("f", DTYPE_KEEPERS.values(), ids=DTYPE_KEEPERS)
def test_float32_stays_float32_beside(f, neighbour):
    x = leaf(A, np.float32)
    y = f(x, neighbour)
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32


def test_joined_float32_stays_float32_beside_integers_and_numbers():
    x, integers = leaf(A, np.float32), np.arange(3)
    assert mg.concatenate([x, integers, integers]).dtype == np.float32
    assert mg.stack([x, integers]).dtype == np.float32
    assert mg.stack([x[0], 2.5]).dtype == np.float32


def test_float64_arrays_and_tensors_widen_float32_and_the_gradient_comes_back_as_float32():
    for wide in (np.ones(3), mg.Tensor(np.ones(3))):
        x = leaf(A, np.float32)
        y = x * wide
        assert y.dtype == np.float64
        y.sum().backward()
        assert x.grad.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_astype_changes_the_dtype_and_gives_the_gradient_back_in_its_own(dtype):
    x = leaf(A)
    y = x.astype(dtype)
    assert y.dtype == dtype
    y.sum().backward()
    assert_array_equal(x.grad, np.ones(3), strict=True)


@pytest.mark.parametrize(
    "choose",
    [lambda: mg.where([True, False], 1, 2), lambda: mg.add(1, 2)],
    ids=["where", "add"],
)
def test_ops_on_integers_alone_give_float64(choose):
    assert choose().dtype == np.float64


# ----------------------------------------------------------------------------- methods

M = np.array([[1.0, 4.0, 2.0], [0.5, 3.0, 8.0]])
METHODS = {
    "sum": (lambda x: x.sum(1, keepdims=True), lambda x: mg.sum(x, 1, keepdims=True)),
    "mean": (lambda x: x.mean(axis=0), lambda x: mg.mean(x, axis=0)),
    "var": (lambda x: x.var(0, ddof=1), lambda x: mg.var(x, 0, ddof=1)),
    "std": (lambda x: x.std(0, ddof=1), lambda x: mg.std(x, 0, ddof=1)),
    "max": (lambda x: x.max(axis=1), lambda x: mg.max(x, axis=1)),
    "min": (lambda x: x.min(1, keepdims=True), lambda x: mg.min(x, 1, keepdims=True)),
    "clip": (lambda x: x.clip(1, 3), lambda x: mg.clip(x, 1, 3)),
    "reshape to a tuple": (lambda x: x.reshape((3, 2)), lambda x: mg.reshape(x, (3, 2))),
    "reshape to lengths": (lambda x: x.reshape(3, -1), lambda x: mg.reshape(x, (3, -1))),
    "flatten": (lambda x: x.flatten(), mg.flatten),
    "squeeze": (lambda x: x[:, :1].squeeze(), lambda x: mg.squeeze(x[:, :1])),
    "squeeze one": (lambda x: x[:1, :1].squeeze(1), lambda x: mg.squeeze(x[:1, :1], axis=1)),
    "transpose": (lambda x: x.transpose(), mg.transpose),
    "transpose of axes": (lambda x: x.transpose(1, 0), lambda x: mg.transpose(x, (1, 0))),
    "swapaxes": (lambda x: x.swapaxes(0, 1), lambda x: mg.swapaxes(x, 0, 1)),
    "astype": (lambda x: x.astype(np.float32), lambda x: mg.astype(x, np.float32)),
    "indexing": (lambda x: x[[1, 1]], lambda x: mg.getitem(x, [1, 1])),
    "T": (lambda x: x.T, mg.transpose),
    "mT": (lambda x: x.mT, lambda x: mg.swapaxes(x, -2, -1)),
}


@pytest.mark.parametrize(("method", "function"), METHODS.values(), ids=METHODS)
def test_methods_are_the_functions_and_what_ndarray_calls_them(method, function):
    found, expected = method(leaf(M)), function(leaf(M))
    assert_array_equal(found.data, expected.data, strict=True)
    assert found.requires_grad
    assert_allclose(found.data, method(M), rtol=1e-15, strict=True)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_argmax_is_the_first_place_of_the_largest_entry(axis):
    for tied in (M, np.zeros((2, 3)), np.array([[1, np.nan, 2]])):
        for keepdims in (False, True):
            found = leaf(tied).argmax(axis, keepdims)
            assert_array_equal(found, tied.argmax(axis, keepdims=keepdims))
            assert type(found) is type(tied.argmax(axis, keepdims=keepdims))


def test_numel_and_tolist_are_those_of_pytorch_and_numpy():
    assert (leaf(M).numel(), leaf(2.0).numel(), mg.Tensor(np.ones((0, 3))).numel()) == (6, 1, 0)
    assert leaf(M).tolist() == M.tolist()
    assert leaf(2.0).tolist() == 2.0


@pytest.mark.parametrize("name", ["squeeze", "expand_dims", "flatten", "std", "logsumexp"])
@pytest.mark.parametrize("x", [[[1, 2, 3]], np.array([[1, 2, 3]])], ids=["list", "array"])
def test_what_is_composed_takes_lists_and_arrays_of_integers(name, x):
    composed = partial(getattr(mg, name), axis=0) if name == "expand_dims" else getattr(mg, name)
    found, expected = composed(x), composed(mg.Tensor([[1.0, 2.0, 3.0]]))
    assert_array_equal(found.data, expected.data, strict=True)


def test_axes_may_be_a_list_wherever_they_may_be_a_tuple():
    for name in ("sum", "mean", "var", "std", "max", "min", "norm", "logsumexp"):
        x = np.arange(6.0).reshape(1, 6, 1)
        f = getattr(mg, name)
        assert_array_equal(f(x, [0, 2]).data, f(x, (0, 2)).data, strict=True)


def test_a_number_is_flattened_to_a_vector():
    x = leaf(3.0)
    assert [mg.flatten(x, start).shape for start in (0, -1)] == [(1,), (1,)]
    assert_array_equal(mg.grad(mg.flatten(x).sum(), x).data, 1.0)


# the value of an argument that is left out
DEFAULTS = {
    "sum": {"axis": None, "keepdims": False},
    "mean": {"axis": None, "keepdims": False},
    "var": {"axis": None, "ddof": 0, "keepdims": False},
    "max": {"axis": None, "keepdims": False},
    "min": {"axis": None, "keepdims": False},
    "norm": {"axis": None, "keepdims": False},
    "layer_norm": {"axis": -1, "eps": 1e-5},
    "softmax": {"axis": -1, "where": None},
    "log_softmax": {"axis": -1},
    "transpose": {"axes": None},
    "clip": {"min": None, "max": None},
}


@pytest.mark.parametrize(("name", "defaults"), DEFAULTS.items(), ids=DEFAULTS)
def test_an_argument_that_is_left_out_has_its_default(name, defaults):
    op, x = getattr(mg, name), leaf(M)
    everything = op(x, **defaults)
    upstream = np.arange(1.0, 1 + everything.size).reshape(everything.shape)
    calls = [lambda: op(x)] + [lambda n=n: op(x, **{n: defaults[n]}) for n in defaults]
    if hasattr(x, name):
        calls.append(getattr(x, name))
    for call in calls:
        y = call()
        assert_array_equal(y.data, everything.data, strict=True)
        of_all = mg.grad(everything, x, upstream)
        assert_array_equal(mg.grad(y, x, upstream).data, of_all.data, strict=True)


def test_T_reverses_all_axes_and_mT_exchanges_the_last_two():
    x = mg.Tensor(np.arange(24.0).reshape(2, 3, 4))
    assert_array_equal(x.T.data, x.data.T)
    assert_array_equal(x.mT.data, x.data.mT)
    assert (x.T.shape, x.mT.shape) == ((4, 3, 2), (2, 4, 3))


# ----------------------------------------------------------------------------- bad input

V = mg.Tensor([1.0, 2.0, 3.0])
W = mg.Tensor(M)
LOGITS = mg.Tensor(np.zeros((2, 3)))

# what is done, the error, and what its message must say
BAD = {
    "shapes that do not broadcast": (lambda: W + np.ones(2), ValueError, r"add .*\(2, 3\), \(2,\)"),
    "matrices that do not match": (lambda: W @ W, ValueError, r"matmul .*\(2, 3\), \(2, 3\)"),
    "a product with a number": (lambda: 2 @ V, ValueError, r"matmul .*\(3,\)"),
    "linear of another width": (
        lambda: mg.linear(V, W.T),
        ValueError,
        r"linear .*\(3,\), \(3, 2\)",
    ),
    "reshape to another size": (lambda: W.reshape(4), ValueError, r"reshape .*\(2, 3\)"),
    "two unknown lengths": (lambda: W.reshape(-1, -1), ValueError, r"reshape .*\(2, 3\)"),
    "broadcasting down": (lambda: mg.broadcast_to(V, (2, 2)), ValueError, r"broadcast_to .*\(3,\)"),
    "an axis out of range": (lambda: W.sum(axis=2), ValueError, r"sum .*\(2, 3\).*axis 2"),
    "an axis below range": (lambda: mg.norm(W, -3), ValueError, r"norm .*\(2, 3\).*axis -3"),
    "a repeated axis": (lambda: mg.max(W, axis=(0, 0)), ValueError, r"max .*\(2, 3\).*repeated"),
    "one axis by two names": (lambda: mg.mean(W, axis=(0, -2)), ValueError, "mean .*repeated"),
    "an axis that is no integer": (lambda: mg.var(W, axis=0.5), TypeError, "var .*float"),
    "a repeated axis in transpose": (lambda: W.transpose(0, 0), ValueError, "transpose .*repeated"),
    "an axis missing in transpose": (lambda: W.transpose(0), ValueError, "transpose .*axes"),
    "squeezing a longer axis": (lambda: W.squeeze(1), ValueError, r"squeeze .*\(2, 3\).*size"),
    "squeezing no axis": (lambda: mg.squeeze(W, 2), ValueError, r"squeeze .*\(2, 3\): axis 2"),
    "squeezing a string": (lambda: mg.squeeze(W, "a"), TypeError, r"squeeze .*\(2, 3\): .*str"),
    "a new axis out of range": (lambda: mg.expand_dims(W, 3), ValueError, r"expand_dims .*axis 3"),
    "one new axis twice": (lambda: mg.expand_dims(W, (0, 0)), ValueError, "expand_dims .*repeated"),
    "a new axis that is None": (
        lambda: mg.expand_dims(W, None),
        TypeError,
        r"expand_dims .*\(2, 3\)",
    ),
    "flattening from no axis": (lambda: W.flatten(2), ValueError, r"flatten .*\(2, 3\): .*axis 2"),
    "flattening a row": (lambda: mg.flatten(V, 1), IndexError, r"flatten .*\(3,\): .*axis 1"),
    "flattening in an order": (lambda: W.flatten("F"), TypeError, r"flatten .*\(2, 3\): .*str"),
    "flattening from True": (lambda: W.flatten(True), TypeError, r"flatten .*\(2, 3\): .*bool"),
    "std over no axis": (lambda: W.std(axis=2), ValueError, r"std of shape \(2, 3\): .*axis 2"),
    "std over a string": (lambda: W.std(axis="a"), TypeError, r"std of shape \(2, 3\): .*str"),
    "logsumexp over no axis": (
        lambda: mg.logsumexp(W, 2),
        ValueError,
        r"logsumexp of shape \(2, 3\): .*axis 2",
    ),
    "logsumexp over an axis twice": (
        lambda: mg.logsumexp(W, [0, -2]),
        ValueError,
        r"logsumexp of shape \(2, 3\): .*axis",
    ),
    "swapping with no axis": (lambda: W.swapaxes(0, 3), ValueError, "swapaxes .*axis 3"),
    "mT of a vector": (lambda: V.mT, ValueError, r"swapaxes .*\(3,\)"),
    "layer_norm over no axis": (lambda: mg.layer_norm(W, 2), ValueError, "layer_norm .*axis 2"),
    **{
        f"layer_norm with eps={eps!r}": (
            lambda eps=eps: mg.layer_norm(W, eps=eps),
            ValueError,
            f"layer_norm .*eps is .*finite and >= 0, not {eps!r}",
        )
        for eps in (-1e-5, math.inf, math.nan, None, "1e-5", True)
    },
    "a mask that does not broadcast": (
        lambda: mg.softmax(W, where=[True, False]),
        ValueError,
        r"softmax .*where has shape \(2,\), .*broadcast to \(2, 3\)",
    ),
    "a mask of more axes": (
        lambda: mg.softmax(V, where=np.ones((2, 3), bool)),
        ValueError,
        r"softmax .*where has shape \(2, 3\), .*broadcast to \(3,\)",
    ),
    "a mask of numbers": (
        lambda: mg.softmax(W, where=[0.0, 1.0, 1.0]),
        TypeError,
        "softmax .*where is made of bools, not float64",
    ),
    "a mask in a Tensor": (lambda: mg.softmax(W, where=V), TypeError, "softmax .*Tensor"),
    "softmax along no axis": (lambda: mg.softmax(W, 2), ValueError, "softmax .*axis 2"),
    "an index out of range": (lambda: V[3], IndexError, r"getitem .*\(3,\).*index 3"),
    "too many indices": (lambda: V[0, 0], IndexError, r"getitem .*\(3,\).*too many"),
    "an index array out of range": (lambda: V[[0, -4]], IndexError, r"getitem .*index -4"),
    "a mask of another length": (lambda: V[[True, False]], IndexError, "getitem .*boolean"),
    "a float index": (lambda: V[1.5], IndexError, "getitem .*only integers"),
    "a string index": (lambda: V["a"], IndexError, "getitem .*only integers"),
    "a string operand": (lambda: V + "a", TypeError, "real numbers.*str.*'a'"),
    "a string on the left": (lambda: "a" * V, TypeError, "real numbers.*str.*'a'"),
    "a string among numbers": (lambda: V * ["a", 1, 2], TypeError, "real numbers.*list"),
    "a complex operand": (lambda: V * 1j, TypeError, "real numbers.*complex"),
    "a complex array on the left": (lambda: np.ones(3) * 1j - V, TypeError, "real.*complex128"),
    "an object array": (lambda: V / np.array([1, None, 2]), TypeError, "real numbers.*object"),
    "None": (lambda: V + None, TypeError, "real numbers.*NoneType"),
    "a matrix product with objects": (lambda: V @ np.array([None] * 3), TypeError, "object"),
    "a ragged list": (lambda: V * [[1], [2, 3]], ValueError, "equally long"),
    "strings to exp": (lambda: mg.exp("a"), TypeError, "real numbers.*str"),
    "comparing with a string": (lambda: V < "a", TypeError, "real numbers.*str"),
    "comparing with None": (lambda: V < None, TypeError, "real numbers.*NoneType"),
    "astype to integers": (lambda: V.astype(int), TypeError, "astype .*a Tensor holds .*not int64"),
    "astype to complex": (lambda: V.astype(complex), TypeError, "astype .*complex128"),
    "the largest of nothing": (lambda: mg.max(mg.Tensor([])), ValueError, r"max .*\(0,\)"),
    "a Tensor as lower bound": (lambda: V.clip(min=mg.Tensor(0.0)), TypeError, "clip .*array"),
    "a Tensor as upper bound": (lambda: mg.clip(V, None, V), TypeError, "clip .*array"),
    "a string as bound": (lambda: V.clip(min="a"), TypeError, r"clip .*\(3,\)"),
    "a Tensor as axis": (lambda: W.sum(axis=mg.Tensor(0.0)), TypeError, "sum .*Tensor"),
    "a Tensor as index": (lambda: V[mg.Tensor(0.0)], TypeError, "getitem .*Tensor"),
    "a Tensor in an index": (lambda: W[0, mg.Tensor([0.0])], TypeError, "getitem .*Tensor"),
    "a Tensor as condition": (lambda: mg.where(V, V, V), TypeError, "where .*Tensor"),
    "nothing but None": (lambda: mg.add(None, None), TypeError, "add: .*missing"),
    "a missing operand": (lambda: mg.add(V), TypeError, "add .*missing"),
    "a keyword that is none": (lambda: mg.sum(V, dim=0), TypeError, "sum.* and dim by name"),
    "an argument given twice": (lambda: mg.sum(V, 0, axis=0), TypeError, "sum.* and axis by name"),
    "a Tensor as a parameter": (lambda: mg.sum(V, axis=V), TypeError, "sum .*Tensor"),
    "linear without axes": (
        lambda: mg.linear(2.0, W),
        ValueError,
        r"linear .*x \(\.\.\., in\) and w \(out, in\), got \(\) and \(2, 3\)",
    ),
    "linear by a stack": (
        lambda: mg.linear(W, np.ones((2, 4, 3))),
        ValueError,
        r"linear .*got \(2, 3\) and \(2, 4, 3\)",
    ),
    "linear by one row": (lambda: mg.linear(W, V), ValueError, r"linear .*got \(2, 3\) and \(3,\)"),
    "linear by a number": (
        lambda: mg.linear(W, 2.0),
        ValueError,
        r"linear .*got \(2, 3\) and \(\)",
    ),
    "concatenating nothing": (lambda: mg.concatenate([]), ValueError, "concatenate .*at least one"),
    "concatenating a number": (lambda: mg.concatenate(3), TypeError, "concatenate .*not int"),
    "concatenating None": (lambda: mg.concatenate(None), TypeError, "concatenate .*not NoneType"),
    "concatenating vector and matrix": (
        lambda: mg.concatenate([V, W]),
        ValueError,
        r"concatenate .*\(3,\), \(2, 3\)",
    ),
    "concatenating along no axis": (
        lambda: mg.concatenate([V, V], 1),
        ValueError,
        "concatenate .*axis 1",
    ),
    "concatenating numbers": (
        lambda: mg.concatenate([1.0, 2.0]),
        ValueError,
        "concatenate .*zero-dimensional",
    ),
    "stacking nothing": (lambda: mg.stack([]), ValueError, "stack"),
    "stacking unequal shapes": (lambda: mg.stack([V, W]), ValueError, r"stack .*\(3,\), \(2, 3\)"),
    "stacking along no axis": (lambda: mg.stack([V, V], 2), ValueError, "stack.*axis 2"),
    "stacking a number": (lambda: mg.stack(3), TypeError, "stack .*not int"),
    "a label too large": (
        lambda: mg.cross_entropy(LOGITS, [0, 3]),
        IndexError,
        "label 3 .*3 classes",
    ),
    "a negative label": (lambda: mg.cross_entropy(LOGITS, [-1, 0]), IndexError, "label -1 "),
    "float labels": (lambda: mg.cross_entropy(LOGITS, [0.0, 1.0]), TypeError, "labels .*float64"),
    "bool labels": (lambda: mg.cross_entropy(LOGITS, [True, False]), TypeError, "labels .*bool"),
    **{
        f"{name} with {what}": (partial(op, *arrays, labels), error, f"{name} .*{message}")
        for name, op, arrays in (
            ("nll", mg.ops.nll, (LOGITS,)),
            ("nll_grad", mg.ops.nll_grad, (LOGITS, np.ones(2))),
        )
        for what, labels, error, message in (
            ("bool labels", np.array([True, False]), TypeError, "labels .*bool"),
            ("a list of bools", [True, False], TypeError, "labels .*bool"),
            ("float labels", np.array([0.0, 1.0]), TypeError, "labels .*float64"),
            ("a label too large", np.array([0, 3]), IndexError, "label 3 .*3 classes"),
            ("a negative label", [-1, 0], IndexError, "label -1 "),
            ("a Tensor of labels", mg.Tensor([0.0, 1.0]), TypeError, "Tensor"),
        )
    },
    "labels in a Tensor": (
        lambda: mg.cross_entropy(LOGITS, mg.Tensor([0, 1])),
        TypeError,
        "labels .*float64",
    ),
    "too few labels": (lambda: mg.cross_entropy(LOGITS, [0]), ValueError, r"\(2, 3\) and \(1,\)"),
    "one-hot labels": (lambda: mg.cross_entropy(LOGITS, np.eye(2, 3)), ValueError, r"\(2, 3\)"),
    "logits of three axes": (
        lambda: mg.cross_entropy(np.ones((2, 3, 1)), [0, 1]),
        ValueError,
        r"logits \(N, C\) .*\(2, 3, 1\) and \(2,\)$",
    ),
    "logits of no axis": (lambda: mg.cross_entropy(1.0, 0), ValueError, r"got \(\) and \(\)"),
    "classes on the second axis": (
        lambda: mg.cross_entropy(np.ones((2, 5, 3)), np.zeros((2, 3), int)),
        ValueError,
        r"classes are on axis 1, as in PyTorch, give logits.transpose\(0, 2, 1\)",
    ),
    "no classes": (
        lambda: mg.cross_entropy(np.ones((2, 3, 0)), np.zeros((2, 3), int)),
        IndexError,
        "label 0 .*0 classes",
    ),
    **{
        f"ignoring {label!r}": (
            lambda label=label: mg.cross_entropy(LOGITS, [0, 1], ignore_index=label),
            TypeError,
            f"ignore_index is a label, an integer, not {label!r}",
        )
        for label in (None, 0.5, True, "a")
    },
    "a label that is not the ignored one": (
        lambda: mg.cross_entropy(LOGITS, [-100, 0], ignore_index=-1),
        IndexError,
        "label -100 ",
    ),
    "labels that are strings": (lambda: mg.cross_entropy(LOGITS, ["a", "b"]), TypeError, "labels "),
    "an unknown reduction": (
        lambda: mg.cross_entropy(LOGITS, [7, 1], reduction="max"),  # before labels are looked at
        ValueError,
        "'mean', 'sum' or 'none', not 'max'",
    ),
    "an unknown reduction of errors": (
        lambda: mg.mse_loss(V, V, reduction="avg"),
        ValueError,
        "'mean', 'sum' or 'none', not 'avg'",
    ),
    "errors of unequal shapes": (
        lambda: mg.mse_loss(V, V[:, None]),
        ValueError,
        r"\(3,\).*\(3, 1\)",
    ),
    "squeezing a list of Tensors": (lambda: mg.squeeze([V, V]), TypeError, "a list of Tensors"),
    "the std of strings": (lambda: mg.std("ab"), TypeError, "real numbers"),
    "an unknown gelu": (
        lambda: mg.gelu(V, approximate="erf"),
        ValueError,
        "'none' or 'tanh', not 'erf'",
    ),
    "the gelu of a string": (lambda: mg.gelu("ab"), TypeError, "real numbers"),
}


@pytest.mark.parametrize(("do", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_a_message_that_helps(do, error, message):
    with pytest.raises(error, match=message):
        do()


def test_a_failure_is_chained_to_what_numpy_said():
    with pytest.raises(ValueError, match="matmul") as failure:
        W @ W
    assert isinstance(failure.value.__cause__, ValueError)


def test_a_tensor_given_by_keyword_gets_its_gradient():
    x, w, b = (mg.Tensor(np.ones(shape), requires_grad=True) for shape in [(5, 3), (2, 3), (2,)])
    mg.linear(b=b, w=w, x=x).sum().backward()
    assert [a.grad[0].max() for a in (x, w)] == [2, 5]
    np.testing.assert_array_equal(b.grad, [5, 5])
    np.testing.assert_array_equal(mg.linear(x, w=w).data, np.full((5, 2), 3))


# ----------------------------------------------------------------------------- no gradient is lost


class Named(mg.Tensor):
    """A tensor of a class of its own."""


def test_a_subclass_keeps_its_gradient_and_its_class_in_a_copy():
    p = Named([1.0, 2.0], requires_grad=True)
    (mg.exp(p) * 2 + p.sum()).sum().backward()
    assert_allclose(p.grad, 2 * np.exp([1, 2]) + 2)
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(twin) is Named
        assert_array_equal(twin.grad, p.grad)
        assert twin.grad is not p.grad


def test_a_list_of_tensors_is_refused_where_it_would_lose_their_gradients():
    a = mg.Tensor(1.0, requires_grad=True)
    for attempt in (lambda: mg.Tensor([a, a]), lambda: mg.add(V, [a, a, a]), lambda: mg.exp([[a]])):
        with pytest.raises(TypeError, match="use stack or concatenate"):
            attempt()


@pytest.mark.parametrize(
    "wrong",
    [np.array(["2.5"]), np.array(["2020-01-01"], "M8[D]"), [None], [1j], [object()]],
    ids=["text", "a date", "None", "a complex number", "an object"],
)
def test_joining_checks_its_operands_as_arithmetic_does(wrong):
    for join in (mg.concatenate, mg.stack):
        with pytest.raises(TypeError, match="real numbers"):
            join([mg.Tensor([1.0]), wrong])


def test_joining_takes_tensors_from_a_generator():
    x = leaf(A)
    for join in (mg.concatenate, mg.stack):
        y = join(row * 2 for row in (x, x))
        assert_array_equal(mg.grad(y.sum(), x).data, [4, 4, 4])


def test_tensors_are_stacked_along_a_new_first_axis_unless_it_is_said_where():
    assert_array_equal(mg.stack([A, A, A]).data, [A, A, A])
    assert_array_equal(mg.stack([A, A, A], 1).data, np.transpose([A, A, A]))


def test_losses_and_gelu_take_lists():
    row = [1.0, 2.0]
    assert mg.cross_entropy([row], [0]).item() == mg.cross_entropy(np.array([row]), [0]).item()
    assert mg.mse_loss(row, [0, 0]).item() == 2.5
    assert_array_equal(mg.gelu(row).data, mg.gelu(np.array(row)).data)


def test_one_tensor_is_joined_like_several():
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    y = mg.concatenate([x])
    assert y is not x
    assert not y.data.flags.writeable
    with pytest.raises(ValueError, match="axis 1"):
        mg.concatenate([x], axis=1)
    with pytest.raises(ValueError, match="zero-dimensional"):
        mg.concatenate([mg.Tensor(1.0)])


def test_without_an_axis_tensors_of_any_shapes_are_joined_flat():
    xs = [leaf(a) for a in (A, M, 7.0)]
    y = mg.concatenate(xs, axis=None)
    assert_array_equal(y.data, [*A, *M.ravel(), 7], strict=True)
    of_A, of_M, of_7 = mg.grad(y, xs, np.arange(10.0))
    assert_array_equal(of_A.data, [0, 1, 2])
    assert_array_equal(of_M.data, [[3, 4, 5], [6, 7, 8]])
    assert_array_equal(of_7.data, np.array(9.0), strict=True)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 500])
@pytest.mark.parametrize("axis", [0, -1])
def test_any_number_of_tensors_is_joined_and_no_rule_is_handed_more_than_64(n, axis):
    """If each of n rules received n parts, the backward pass would be quadratic in n."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, 2)) for _ in range(n)]
    xs = [mg.Tensor(a, requires_grad=True) for a in arrays]
    y = mg.concatenate(xs, axis)
    assert_array_equal(y.data, np.concatenate(arrays, axis))
    assert max(len(t.parents) for t in ancestry(y)) <= 1 + 64
    g = rng.normal(size=y.shape)
    for found, expected in zip(mg.grad(y, xs, g), np.split(g, n, axis)):
        assert_array_equal(found.data, expected)


def test_how_a_result_was_made_can_be_read_until_it_is_released():
    x, w = mg.Tensor([[1.0, 2.0]], requires_grad=True), mg.Tensor([[3.0, 4.0]])
    y = mg.linear(x, w, np.ones(1))
    assert y.op is mg.linear
    assert y.inputs[1] is w.data
    assert [a.shape for a in y.inputs] == [(1, 2), (1, 2), (1,)]
    assert y.parents == (x, None, None)
    (parent,) = mg.exp(y).parents
    assert (parent.op, parent.inputs, parent.parents) == (y.op, [*y.inputs], [*y.parents])
    assert mg.sum(x, axis=0).inputs[1:] == (0,)
    for constant in (x, w, mg.linear(w, w)):
        assert (constant.op, constant.inputs, constant.parents) == (None, (), ())
    for name in ("op", "inputs", "parents"):
        with pytest.raises(AttributeError):
            setattr(y, name, None)
    y.backward()
    assert (y.op, y.inputs, y.parents) == (mg.linear, (), ())


def test_an_assigned_array_is_the_leafs_own_and_must_fit():
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    y, array = x * x, np.array([5.0, 6.0])
    x.assign(array)
    assert x.data is array
    assert_array_equal(mg.grad(y.sum(), x).data, [2, 4])
    with pytest.raises(ValueError, match=r"shape \(2,\) to an array of shape \(3,\)"):
        x.assign(np.ones(3))
    with pytest.raises(TypeError, match="float64 to an array of dtype float32"):
        x.assign(np.ones(2, np.float32))
    with pytest.raises(RuntimeError, match="result of mul"):
        y.assign(np.ones(2))
    assert x.data is array


def test_what_was_left_out_may_be_none():
    x, w = mg.Tensor([[1.0, 2.0]]), mg.Tensor([[3.0, 4.0]])
    assert mg.linear(x, w, None).item() == 11
    assert mg.linear(x, w, b=None).item() == 11


def test_none_that_means_something_is_not_left_out():
    x = mg.Tensor([[1.0, 2.0]])
    assert mg.getitem(x, None).shape == (1, 1, 2)
    assert_allclose(mg.softmax(mg.Tensor(np.zeros((2, 2))), None).data, np.full((2, 2), 0.25))


def test_a_wider_bias_widens_the_result():
    x, w, b = (np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), np.ones(1, np.float64))
    assert mg.linear(x, w, b).dtype == (x @ w.T + b).dtype == np.float64


def test_comparing_and_joining_never_warn():
    x = mg.Tensor([1.0], requires_grad=True)
    small = x.astype(np.float32)
    with np.errstate(all="raise"):
        assert (small < 1e300).all()
        assert mg.stack([small[0], 1e300]).data[1] == np.inf
        assert (x.astype(np.float16) + np.array([70000])).data == np.inf


def test_membership_is_that_of_the_array():
    x = mg.Tensor([1.0, 2.0])
    assert 2.0 in x
    assert 3.0 not in x
    assert mg.Tensor(2.0) in x
    assert mg.Tensor(3.0) not in x
    assert mg.Tensor(2.0) in np.array([1.0, 2.0])
    assert None not in x


def test_a_number_too_large_for_a_float_is_refused_by_the_op():
    with pytest.raises(OverflowError, match="mul"):
        V * 10**400


def test_a_condition_must_be_made_of_bools_or_numbers():
    for wrong in (["a", "b", "c"], None, [None] * 3):
        with pytest.raises(TypeError, match="condition"):
            mg.where(wrong, V, V)


@pytest.mark.parametrize("large", [2**64, 10**30, -(10**30)])
def test_numbers_too_large_for_an_integer_of_numpy_can_be_compared_and_added(large):
    x = mg.Tensor([1.0])
    assert (x < large).item() == (large > 0)
    assert (x >= large).item() == (large < 0)
    assert not (x == large).item()
    assert (x + large).item() == float(large)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mg.norm(x, axes=1), r"norm\(x, axis, keepdims\) .* 1 arguments .* axes by name"),
        (lambda x: mg.norm(x, 0, axis=1), "2 arguments by position and axis by name"),
        (lambda x: mg.reshape(shape=3), r"reshape\(a, shape\) .* 0 arguments .* shape by name"),
    ],
    ids=["unknown", "taken", "missing"],
)
def test_arguments_that_an_op_has_not_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call(mg.Tensor([1.0, 2.0]))


def test_arguments_by_name_may_come_in_any_order_and_leave_some_out():
    x = np.arange(6.0).reshape(2, 3)
    assert_array_equal(mg.sum(keepdims=True, a=x, axis=1).data, [[3], [12]])
    assert_array_equal(mg.sum(x, keepdims=True).data, [[15]])
    assert_array_equal(mg.clip(x, max=1.0).data, np.clip(x, None, 1))


def test_operators_go_by_their_own_names():
    for name in ("__add__", "__rmatmul__", "__lt__", "__eq__", "__ne__"):
        method = getattr(mg.Tensor, name)
        assert (method.__name__, method.__qualname__) == (name, f"Tensor.{name}")
        assert pickle.loads(pickle.dumps(method)) is method


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_addend_does_not_widen_a_product(dtype):
    x, b = np.ones(2, np.float32), np.ones((4, 2), dtype)
    for call in (
        lambda: mg.affine(x, 3.0, b),
        lambda: mg.linear(x, np.eye(2, dtype=np.float32), b),
    ):
        with pytest.raises(ValueError, match=r"\(4, ?2\)"):
            call()
    with pytest.raises(ValueError, match=r"\(2,\)"):
        mg.affine(2.0, 3.0, np.ones(2))


def test_an_op_may_wrap_a_function_that_has_no_signature():
    """The functions of older NumPy releases have none either."""
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    largest = mg.Op(max, (lambda g, y, a: g * (a >= y),))
    x = mg.Tensor([1.0, 3.0], requires_grad=True)
    assert_array_equal(mg.grad(largest(x), x).data, [0, 1])


# ----------------------------------------------------------------------------- what would be lost


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "ipow", "imatmul"])
def test_a_leaf_is_not_trained_by_rebinding_its_name(name):
    """PyTorch's ``with no_grad(): p -= rate * p.grad`` would move nothing here."""
    p, q = mg.Tensor([2.0, 3.0], requires_grad=True), mg.Tensor([2.0, 3.0])
    rebind = getattr(operator, name)
    with mg.no_grad(), pytest.warns(UserWarning, match=r"set x\.data = x\.data \S+ y"):
        rebind(p, [1.0, 1.0])
    expected = getattr(operator, name.removeprefix("i"))(p.data, np.array([1.0, 1.0]))
    for x in (p, q, p * 1):
        with contextlib.nullcontext() if x is p else mg.no_grad():
            y = rebind(x, [1.0, 1.0])
        assert_array_equal(y.data, expected)
    assert_array_equal(p.data, [2, 3])


def test_a_tensor_made_of_a_tensor_warns_that_the_gradient_ends():
    x = mg.Tensor([2.0], requires_grad=True)
    for tensor in (x, x * 2):
        with pytest.warns(UserWarning, match=r"the gradient ends there: use x, or x\.detach\(\)"):
            mg.Tensor(tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mg.Tensor(x.detach()).data == [2]
        with mg.no_grad():
            assert not mg.Tensor(x).requires_grad


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda a: a > 0, "an array of bool"),
        (lambda a: a.astype(int), "an array of int64"),
        (lambda a: a * 1j, "an array of complex128"),
        (lambda a: None, "a NoneType"),
        (lambda a: (a, a), "a tuple"),
        (lambda a: [1.0], "a list"),
        (lambda a: 3, "a int"),
        (lambda a: "text", "a str"),
    ],
)
def test_a_forward_makes_an_array_of_floating_point_numbers(result, said, monkeypatch):
    monkeypatch.setattr("minigrad.ops.OPS", dict(mg.OPS))

    @mg.op(lambda g, y, a: g)
    def odd(a):
        return result(a)

    with pytest.raises(TypeError, match=f"odd returned {said}, not an array of floating-point"):
        odd(mg.Tensor([1.0, 2.0], requires_grad=True))


@pytest.mark.parametrize("result", [lambda a: 2.0, lambda a: a.sum(), lambda a: mg.exp(a)])
def test_a_forward_may_make_a_number_or_call_an_op(result, monkeypatch):
    monkeypatch.setattr("minigrad.ops.OPS", dict(mg.OPS))

    @mg.op(lambda g, y, a: g)
    def odd(a):
        return result(a)

    assert odd(mg.Tensor([1.0, 2.0])).dtype == np.float64


def test_a_gradient_of_another_shape_is_not_added_to():
    x, other = (mg.Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    x.grad = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"shape \(2,\) has been given a \.grad of shape \(3, 2\)"):
        (x * other).sum().backward()
    assert other.grad is None


@pytest.mark.parametrize(
    "array", [np.ma.masked_array([1.0, 2.0], [False, True]), np.ones((2, 2)).view(np.matrix)]
)
def test_arrays_that_mean_something_else_are_refused(array):
    for use in (mg.Tensor, lambda a: mg.exp(mg.Tensor(1.0)) * a, mg.exp):
        with pytest.raises(TypeError, match="expected an array, got a"):
            use(array)


@pytest.mark.parametrize(
    "other",
    [range(2), deque([0, 1]), array.array("d", [0, 1]), memoryview(array.array("d", [0, 1]))],
)
def test_any_sequence_of_numbers_is_compared_entry_by_entry(other):
    assert_array_equal(mg.Tensor([0.0, 2.0]) == other, [True, False])
    assert_array_equal(mg.Tensor([0.0, 2.0]) != other, [False, True])


def test_a_deque_of_tensors_is_a_list_of_tensors():
    with pytest.raises(TypeError, match="a list of Tensors would lose their gradients"):
        mg.exp(deque([leaf(1.0), leaf(2.0)]))


CONSTANT = mg.Tensor([3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: np.median(t),
        lambda t: np.histogram(t)[0],
        lambda t: np.broadcast_arrays(t, 1.0)[0],
        lambda t: np.atleast_1d(t),
        lambda t: np.vstack([t, t]),
        lambda t: np.sign(t),
        lambda t: np.unique(t),
        lambda t: np.full_like(t, 2),
    ],
)
def test_what_minigrad_has_not_is_done_by_numpy_where_no_gradient_is_needed(ask):
    expected = ask(CONSTANT.data)
    assert_array_equal(ask(CONSTANT), expected)
    trained = mg.Tensor(CONSTANT.data, requires_grad=True)
    with mg.no_grad():
        assert_array_equal(ask(trained), expected)
    with pytest.raises(TypeError, match="would lose the gradient"):
        ask(trained)


@pytest.mark.parametrize("ask", [np.exp, np.sum, lambda t: np.where(t > 3, t, 0), np.linalg.norm])
def test_what_minigrad_has_is_not_done_by_numpy_even_for_constants(ask):
    with pytest.raises(TypeError, match=r"use mg\."):
        ask(CONSTANT)


def test_a_named_tuple_of_constants_stays_one():
    pair = NamedTuple("Pair", [("a", mg.Tensor), ("b", mg.Tensor)])(CONSTANT, CONSTANT)
    assert_array_equal(np.vstack(pair), [CONSTANT.data] * 2)
