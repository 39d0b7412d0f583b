"""The checker itself accepts right gradients and notices each way in which one can be wrong."""

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad as mg
from minigrad import GradcheckError, gradcheck, gradgradcheck
from minigrad.ops import Op

X = np.array([0.5, -1.5, 2.0])


def square_with(rule):
    """Return the op a ↦ a² with the given rule."""

    def square(a):
        return a * a

    return Op(square, (rule,))


square = square_with(lambda g, y, a: g * 2 * a)


# ----------------------------------------------------------------------------- what is right

RIGHT = {
    "elementwise": (square, X),
    "a number": (lambda x: mg.tanh(x) * 3, 0.7),
    "several arguments": (lambda a, b: a @ b, np.ones((2, 3)), X),
    "several broadcast arguments": (lambda a, b, c: a * b / c, X, np.ones((2, 1)), X + 5),
    "a result of another shape": (lambda x: mg.concatenate([x, x[None, 1] * x[2]]), X),
    "large and small": (square, np.array([1e6, 1e-6, 0.0])),
    "nothing": (mg.exp, np.ones((0, 3))),
    "a constant": (lambda x: mg.Tensor([1.0, 2.0]), X),
    "integers and flags on the side": (lambda x, i, keep: x[i] if keep else x, X, [0, 0, 2], True),
}


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_right_gradients_pass(case):
    assert gradcheck(*case) is True


def test_only_tensors_that_require_a_gradient_are_checked():
    frozen = mg.Tensor([3.0, 4.0, 5.0])
    gradcheck(lambda x, w: x * w.detach(), X, frozen)
    frozen.requires_grad = True
    with pytest.raises(GradcheckError, match="argument 1"):
        gradcheck(lambda x, w: x * w.detach(), X, frozen)


def test_a_tensor_is_moved_itself_so_that_a_closure_over_it_is_checked():
    w = mg.Tensor(X, requires_grad=True)
    gradcheck(lambda _: w * w, w)
    with pytest.raises(GradcheckError, match="argument 0"):
        gradcheck(lambda _: w * w.detach(), w)


def test_a_tensor_gets_its_own_array_back_and_no_gradient():
    w = mg.Tensor(X, requires_grad=True)
    array = w.data
    gradcheck(lambda w: w * w, w)
    assert w.data is array
    assert_array_equal(array, X)
    assert w.grad is None


def test_a_tensor_gets_its_own_array_back_when_the_function_fails():
    w = mg.Tensor(X, requires_grad=True)
    array = w.data

    def fails_once_moved(w):
        if not np.array_equal(w.data, X):
            raise ArithmeticError
        return w * w

    with pytest.raises(ArithmeticError):
        gradcheck(fails_once_moved, w)
    assert w.data is array
    assert_array_equal(array, X)


def test_the_arrays_of_the_caller_are_left_alone():
    x = X.copy()
    gradcheck(square, x)
    assert_array_equal(x, X)


# ----------------------------------------------------------------------------- what cannot be checked


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_fewer_digits_than_float64_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"argument 1 .*{dtype.__name__}.*float64"):
        gradcheck(lambda a, b: a * b, X, X.astype(dtype))
    with pytest.raises(TypeError, match="float64"):
        gradcheck(square, mg.Tensor(X.astype(dtype), requires_grad=True))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("inputs", [(), (3,), (np.arange(3),), (mg.Tensor(X),)], ids=str)
def test_nothing_to_check_is_refused(check, inputs):
    with pytest.raises(ValueError, match="no input"):
        check(lambda *args: mg.Tensor(1.0), *inputs)


# ----------------------------------------------------------------------------- what is wrong


def test_a_wrong_derivative_is_reported_with_place_both_values_and_error():
    wrong = square_with(lambda g, y, a: g * np.array([2.0, 2.0, 2.5]) * a)
    with pytest.raises(GradcheckError) as failure:
        gradcheck(lambda _, x: wrong(x), 1, X)
    pattern = (
        r"argument 1, d output\[2\] / d input\[2\]: analytic (\S+), numeric (\S+), error (\S+)"
    )
    found = re.fullmatch(pattern, str(failure.value))
    assert found
    assert [float(n) for n in found.groups()] == pytest.approx([5, 4, 1], rel=1e-6)


def test_the_worst_entry_is_the_one_reported():
    wrong = square_with(lambda g, y, a: g * np.array([2.1, 4.0, 2.1]) * a)
    with pytest.raises(GradcheckError, match=r"output\[1\] / d input\[1\]"):
        gradcheck(wrong, X)


def test_a_gradient_that_is_nan_is_wrong():
    with pytest.raises(GradcheckError, match="analytic nan, numeric"):
        gradcheck(square_with(lambda g, y, a: g * np.array([1, -3, np.nan])), X)


def test_an_error_is_an_assertion_error():
    with pytest.raises(AssertionError):
        gradcheck(square_with(lambda g, y, a: g * a), X)


def test_a_kink_is_called_a_kink():
    with pytest.raises(GradcheckError, match=r"analytic 0, numeric 0\.5, .* differ: a kink"):
        gradcheck(mg.relu, np.array([1.0, 0.0]))


def test_a_smooth_error_is_not_called_a_kink():
    with pytest.raises(GradcheckError) as failure:
        gradcheck(square_with(lambda g, y, a: g * a), X)
    assert "kink" not in str(failure.value)


class Counting:
    """A rule for a² that changes from call to call, by less than any tolerance."""

    calls = 0

    def __call__(self, g, y, a):
        self.calls += 1
        return g * 2 * a * (1 + 1e-12 * self.calls)


# what the rule for a² does wrong: the rule, where it is tried, what the report says
WRONG = {
    "half of it": (lambda g, y, a: g * a, X, "error"),
    "one part in 10⁵": (lambda g, y, a: g * 2 * a * (1 + 1e-5), X, "error"),
    "nothing": (lambda g, y, a: g * 0, X, r"analytic -?0, numeric -?4"),
    "mixes entries": (lambda g, y, a: g[::-1] * 2 * a, X, r"output\[\d\] / d input\[\d\]"),
    "ignores its upstream gradient": (lambda g, y, a: 2 * a, X[:1], "random upstream gradient"),
    "takes only its sign": (lambda g, y, a: np.sign(g) * 2 * a, X, "random upstream gradient"),
    "drifts": (Counting(), X, "two different gradients"),
    "makes something of nothing": (
        lambda g, y, a: g * 2 * a + (not np.any(g)),
        X,
        "upstream gradient of 0",
    ),
}


@pytest.mark.parametrize(("rule", "x", "report"), WRONG.values(), ids=WRONG)
def test_wrong_rules_are_seen(rule, x, report):
    with pytest.raises(GradcheckError, match=report):
        gradcheck(square_with(rule), x)


# what is not linear in its upstream gradient, beside a value of 1 for each entry of it
NOT_LINEAR = {
    "squares it": lambda g, y, a: g * g * 2 * a,
    "ignores it": lambda g, y, a: 2 * a + 0 * g,
    "rounds it": lambda g, y, a: np.round(g) * 2 * a,
    "drops its sign": lambda g, y, a: abs(g) * 2 * a,
    "clips it": lambda g, y, a: np.clip(g, -1, 1) * 2 * a,
    "bends it a little": lambda g, y, a: (g + 1e-4 * g * (g - 1)) * 2 * a,
}


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("rule", NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_a_rule_that_is_not_linear_in_its_upstream_gradient_is_seen(rule, scale):
    with pytest.raises(GradcheckError, match="not linear"):
        gradcheck(lambda x: square_with(rule)(x[0]), scale * X[:1])


DRAWN = {
    "log_softmax": lambda x: mg.log_softmax(x),
    "softmax": lambda x: mg.softmax(x),
    "norm": lambda x: mg.norm(x),
    "var": lambda x: mg.var(x),
    "product": lambda x: x * x[::-1],
    "cross_entropy": lambda x: mg.cross_entropy(x[None], [0]),
    "cubes": lambda x: (x**3).sum(),
    "matmul": lambda x: x[:2, None] @ x[None],
    "mean": lambda x: x.mean() * x,
    "sigmoid": lambda x: mg.sigmoid(x),
}


@pytest.mark.parametrize("f", DRAWN.values(), ids=DRAWN)
def test_large_arguments_make_no_false_alarm(f):
    """300 draws of neighbours, whose gradients all but cancel, and of strangers."""
    rng = np.random.default_rng(0)
    for seed in range(300):
        scale = 10.0 ** (seed % 4)
        gradcheck(f, scale + rng.normal(size=3), seed=seed)
        gradcheck(f, scale * rng.normal(size=3), seed=seed)


def test_equal_large_logits_make_no_false_alarm():
    gradcheck(mg.log_softmax, np.full(3, 500.0))


def test_a_rule_that_writes_to_its_upstream_gradient_is_seen():
    def greedy(g, y, a):
        g *= 2 * a
        return g

    for f in (square_with(greedy), lambda x: square_with(greedy)(x) + x):
        with pytest.raises(ValueError, match="read-only"):
            gradcheck(f, X)


def test_a_rule_that_writes_to_its_argument_is_seen():
    def greedy(g, y, a):
        a += 1e-13
        return g * 2 * a

    with pytest.raises(GradcheckError, match="argument 1 was written to"):
        gradcheck(lambda _, x: square_with(greedy)(x), 1, mg.Tensor(X, requires_grad=True))


def test_a_large_value_beside_does_not_hide_a_wrong_derivative():
    wrong = square_with(lambda g, y, a: g * 3 * a)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: mg.concatenate([1e9 + 0 * x, wrong(x)]), X)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: 1e9 + wrong(x), X)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: 1e-8 * wrong(x), X)


STEEP = {
    "log": (mg.log, np.array([1e-3, 1.0])),
    "sqrt": (mg.sqrt, np.array(1e-3)),
    "a quotient": (lambda x: 1 / x, np.array(1e-3)),
    "norm": (mg.norm, np.array([1e-3, 2e-3])),
    "relu just beside its kink": (mg.relu, np.array([1e-6, -1e-6])),
}


@pytest.mark.parametrize("case", STEEP.values(), ids=STEEP)
def test_what_the_step_has_missed_is_looked_at_from_nearer(case):
    assert gradcheck(*case) is True


def test_a_curve_is_not_called_a_kink():
    with pytest.raises(GradcheckError) as failure:
        gradcheck(
            lambda x: 1e6 * square_with(lambda g, y, a: g * (2 * a + 1e-3))(x), np.array([0.0])
        )
    assert "kink" not in str(failure.value)


@pytest.mark.parametrize(
    "f",
    [np.exp, lambda x: (x,), lambda x: None, float],
    ids=["an array", "a tuple", "None", "a number"],
)
def test_a_function_that_returns_no_tensor_is_refused(f):
    with pytest.raises(TypeError):
        gradcheck(lambda x: f(x.data[0] if f is float else x.data), X)


def test_a_float32_result_is_refused():
    with pytest.raises(TypeError, match=r"returns float32.*float64"):
        gradcheck(lambda x: x.astype(np.float32), X)


def test_results_and_no_grad_are_refused():
    with pytest.raises(ValueError, match="argument 0 is a result"):
        gradcheck(square, square(mg.Tensor(X, requires_grad=True)))
    with mg.no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        gradcheck(square, X)


def test_a_function_that_detaches_is_seen():
    with pytest.raises(GradcheckError, match=r"analytic 0\.5, numeric 1"):
        gradcheck(lambda x: x * x.detach(), np.array([0.5]))


def test_a_function_that_forgets_its_argument_is_seen():
    with pytest.raises(GradcheckError, match="analytic 0, numeric 1"):
        gradcheck(lambda x: x.detach() * x.detach(), np.array([0.5]))


def test_tolerances_can_be_chosen():
    nearly = square_with(lambda g, y, a: g * 2 * a * (1 + 1e-5))
    gradcheck(nearly, X, rtol=1e-4)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: x**3, X, step=0.1)


# ----------------------------------------------------------------------------- second derivatives

SMOOTH = {
    "cube": (lambda x: x**3, X),
    "linear, so without a second derivative": (lambda x: 3 * x, X),
    "products": (lambda a, b: mg.tanh(a @ b), np.ones((2, 3)) / 3, X),
    "a number": (lambda x: mg.exp(x), 0.3),
    "a constant": (lambda x: mg.Tensor([1.0, 2.0]), X),
    "an op made here": (square, X),
}


@pytest.mark.parametrize("case", SMOOTH.values(), ids=SMOOTH)
def test_right_second_derivatives_pass(case):
    assert gradgradcheck(*case) is True


def test_a_rule_on_detached_values_passes_at_first_order_and_fails_at_second():
    detached = square_with(lambda g, y, a: g * 2 * np.asarray(a))
    gradcheck(detached, X)
    with pytest.raises(GradcheckError, match="argument 0"):
        gradgradcheck(detached, X)


def test_checking_enters_no_op_in_the_table():
    assert "square" not in mg.ops.OPS


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize(
    "rule",
    [
        lambda g, y, a: np.minimum(g, 1) * np.cos(a),
        lambda g, y, a: np.maximum(g, -0.4) * np.cos(a),
        lambda g, y, a: abs(g) * np.cos(a),
        lambda g, y, a: np.sign(g) * np.cos(a),
    ],
)
def test_a_rule_that_depends_on_the_sign_or_size_of_its_gradient_is_seen(rule, shape, monkeypatch):
    monkeypatch.setattr("minigrad.ops.OPS", dict(mg.OPS))

    @mg.op(rule)
    def sine(a):
        return np.sin(a)

    for seed in range(5):
        with pytest.raises(GradcheckError):
            gradcheck(sine, np.full(shape, 0.7), seed=seed)
