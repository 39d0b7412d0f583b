"""Modules are plain objects: parameters are found by walking, named as in PyTorch, set all at once."""

import copy
import math
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg


class Block(ld.Module):
    """A module with everything in it: a tensor, layers, lists, and things that are no parameters."""

    def __init__(self):
        self.scale = mg.Tensor(np.ones(2), requires_grad=True)
        self.q = ld.Linear(3, 2, rng=np.random.default_rng(0))
        self.heads = [ld.Linear(2, 2, bias=False), ld.ReLU(), ld.Linear(2, 1)]
        self.inner = ld.Sequential(ld.Linear(1, 1), ld.Dropout(0.5))
        self.name, self.sizes, self.table = "block", [1, 2], {"a": np.ones(3)}


NAMES = [
    "scale",
    "q.weight",
    "q.bias",
    "heads.0.weight",
    "heads.2.weight",
    "heads.2.bias",
    "inner.0.weight",
    "inner.0.bias",
]

# ----------------------------------------------------------------------------- walking


def test_parameters_are_named_by_their_path_as_in_pytorch():
    block = Block()
    assert sorted(name for name, _ in block.named_parameters()) == sorted(NAMES)
    assert block.state_dict().keys() == set(NAMES)
    assert len(block.parameters()) == len(NAMES)
    assert list(ld.MLP([4, 3, 2]).state_dict()) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.2.weight",
        "layers.2.bias",
    ]


def test_modules_are_named_by_their_path():
    found = {path: type(m).__name__ for path, m in Block().named_modules()}
    assert found == {
        "": "Block",
        "q": "Linear",
        "heads.0": "Linear",
        "heads.1": "ReLU",
        "heads.2": "Linear",
        "inner": "Sequential",
        "inner.0": "Linear",
        "inner.1": "Dropout",
    }


def test_a_shared_module_has_two_names_but_its_parameters_count_once():
    block = Block()
    block.again = block.q
    assert [path for path, m in block.named_modules() if m is block.q] == ["q", "again"]
    assert sorted(name for name, _ in block.named_parameters()) == sorted(NAMES)


def test_a_shared_tensor_counts_once():
    block = Block()
    block.heads[0].weight = block.heads[2].weight
    assert len(block.parameters()) == len(NAMES) - 1


def test_a_parameter_that_is_assigned_later_is_found():
    block = Block()
    block.heads.append(ld.Linear(1, 1, bias=False))
    block.shift = mg.Tensor(np.zeros(1))
    assert block.state_dict().keys() == {*NAMES, "heads.3.weight", "shift"}


def test_trainable_parameters_are_those_that_require_a_gradient():
    block = Block().requires_grad_(False)
    assert block.trainable_parameters() == []
    block.scale.requires_grad = True
    assert block.trainable_parameters() == [block.scale]
    assert len(block.requires_grad_().trainable_parameters()) == len(NAMES)


def test_train_and_eval_reach_every_module_and_return_the_model():
    block = Block()
    for switch, mode in ((block.eval, False), (block.train, True)):
        assert switch() is block
        assert {m.training for _, m in block.named_modules()} == {mode}


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Block does not define forward"):
        Block()(np.ones(3))


def test_a_sequential_is_a_sequence():
    layers = [ld.Linear(3, 2), ld.ReLU(), ld.Linear(2, 1)]
    model = ld.Sequential(*layers)
    assert list(model) == layers
    assert len(model) == 3
    assert model[0] is layers[0]
    assert model[-1] is layers[2]
    x = np.ones((4, 3), np.float32)
    assert_array_equal(model(x).data, layers[2](layers[1](layers[0](x))).data)


# ----------------------------------------------------------------------------- state


def test_a_state_is_a_copy():
    block = Block()
    state = block.state_dict()
    state["scale"][:] = 7
    assert_array_equal(block.scale.data, 1)


def test_loading_a_state_makes_two_models_equal():
    one, other = ld.MLP([4, 3, 2]), ld.MLP([4, 3, 2])
    x = np.ones((1, 4))
    assert not np.array_equal(one(x).data, other(x).data)
    other.load_state_dict(one.state_dict())
    assert_array_equal(one(x).data, other(x).data)


def test_loading_keeps_the_dtype_of_the_parameters_and_their_identity():
    model = ld.MLP([2, 1])
    weight = model.layers[0].weight
    model.load_state_dict(
        {"layers.0.weight": [[0.5, 1.5]], "layers.0.bias": np.ones(1, np.float16)}
    )
    assert model.layers[0].weight is weight
    assert weight.dtype == model.layers[0].bias.dtype == np.float32
    assert_array_equal(weight.data, [[0.5, 1.5]])


def test_a_state_that_does_not_fit_is_refused_with_all_its_problems_and_nothing_is_changed():
    model = ld.MLP([4, 3, 2])
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    state["layers.0.weight"] = state["layers.0.weight"].T
    state["layers.0.bias"] = np.arange(3)
    state["layers.2.biass"] = state.pop("layers.2.bias")
    with pytest.raises(ValueError, match="the state does not fit") as caught:
        model.load_state_dict(state)
    for problem in (
        "missing layers.2.bias (2,)",
        "unexpected layers.2.biass (2,)",
        "layers.0.weight has shape (4, 3), expected (3, 4)",
        "layers.0.bias has dtype int64, expected a float dtype",
    ):
        assert problem in str(caught.value)
    assert all(a.tobytes() == before[name].tobytes() for name, a in model.state_dict().items())


def test_a_value_too_large_for_the_dtype_changes_nothing_either():
    model = ld.MLP([1, 1, 1])
    before = model.state_dict()
    state = {name: array + 1.0 for name, array in before.items()}
    state["layers.2.bias"] = np.array([1e300])
    with pytest.raises(RuntimeWarning, match="overflow"):
        model.load_state_dict(state)
    assert all(a.tobytes() == before[name].tobytes() for name, a in model.state_dict().items())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_computes_the_same_and_shares_nothing(copied):
    model = ld.MLP([3, 2, 2])
    twin, x = copied(model), np.ones((1, 3))
    assert_array_equal(twin(x).data, model(x).data)
    for p in twin.parameters():
        assert p.requires_grad
        p.data[:] = 0
    assert np.all(twin(x).data == 0)
    assert np.any(model(x).data != 0)


def test_a_deep_copy_keeps_what_is_tied_tied():
    block = Block()
    block.again = block.q
    twin = copy.deepcopy(block)
    assert twin.again is twin.q
    assert twin.q is not block.q


# ----------------------------------------------------------------------------- looks


def test_repr_shows_the_tree_the_sizes_and_what_is_frozen():
    model = ld.MLP([784, 16, 10])
    model.layers[0].requires_grad_(False)
    assert repr(model) == (
        "MLP(\n"
        "  (layers): Sequential(\n"
        "    (0): Linear(784 → 16, frozen)\n"
        "    (1): ReLU()\n"
        "    (2): Linear(16 → 10, 170 trainable)\n"
        "  )\n"
        ")"
    )
    assert repr(ld.Linear(3, 2, bias=False)) == "Linear(3 → 2, no bias, 6 trainable)"
    assert repr(ld.Dropout(0.25)) == "Dropout(p=0.25)"


# ----------------------------------------------------------------------------- Linear


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_x_times_W_transposed_plus_b(dtype, bias):
    layer = ld.Linear(3, 4, bias=bias, rng=np.random.default_rng(0), dtype=dtype)
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(dtype)
    y = layer(x)
    expected = x.astype(float) @ layer.weight.data.T.astype(float)
    expected = expected + layer.bias.data if bias else expected
    assert (y.shape, y.dtype) == ((2, 5, 4), dtype)
    assert_allclose(y.data, expected, rtol=10 * np.finfo(dtype).eps, atol=5 * np.finfo(dtype).eps)


def test_linear_starts_uniform_as_in_pytorch():
    layer = ld.Linear(100, 400, rng=np.random.default_rng(0))
    for p in (layer.weight, layer.bias):
        assert p.requires_grad
        assert p.dtype == np.float32
        assert 0.95 * 0.1 < np.abs(p.data).max() <= 0.1
        assert abs(p.data.mean()) < 0.01
        assert_allclose(p.data.std(), 0.1 / math.sqrt(3), rtol=0.1)


def test_a_seed_determines_the_start():
    one, same, other = (ld.MLP([4, 3, 2], rng=np.random.default_rng(s)) for s in (0, 0, 1))
    assert all(a.tobytes() == same.state_dict()[n].tobytes() for n, a in one.state_dict().items())
    assert not any(np.array_equal(a, other.state_dict()[n]) for n, a in one.state_dict().items())


def test_models_without_a_seed_differ():
    assert not np.array_equal(ld.Linear(3, 3).weight.data, ld.Linear(3, 3).weight.data)


@pytest.mark.parametrize("x", [np.ones((2, 3)), np.ones((2, 3), int), [[1, 2, 3]]], ids=repr)
def test_an_array_takes_the_dtype_of_the_layer(x):
    assert ld.MLP([3, 2])(x).dtype == np.float32
    assert ld.Linear(3, 2, dtype=np.float64)(x).dtype == np.float64


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((0, 2), ValueError, "in_features must be at least 1, not 0"),
        ((3, -1), ValueError, "out_features must be at least 1, not -1"),
        ((3.0, 2), TypeError, r"in_features must be an integer, not 3\.0"),
        ((3, "2"), TypeError, "out_features must be an integer, not '2'"),
        ((True, 2), TypeError, "in_features must be an integer, not True"),
    ],
)
def test_linear_refuses_bad_sizes(sizes, error, message):
    with pytest.raises(error, match=message):
        ld.Linear(*sizes)


# ----------------------------------------------------------------------------- MLP, ReLU, Dropout


def test_an_mlp_is_linear_relu_linear():
    model = ld.MLP([3, 4, 2], rng=np.random.default_rng(0), dtype=np.float64)
    (W0, b0), (W2, b2) = ((m.weight.data, m.bias.data) for m in (model.layers[0], model.layers[2]))
    x = np.random.default_rng(1).normal(size=(5, 3))
    assert_allclose(model(x).data, np.maximum(x @ W0.T + b0, 0) @ W2.T + b2, rtol=1e-12)
    assert [type(m) for m in ld.MLP([3, 2]).layers] == [ld.Linear], "no ReLU at the end"


@pytest.mark.parametrize("sizes", [[], [3]])
def test_an_mlp_needs_two_sizes(sizes):
    with pytest.raises(ValueError, match="needs an input and an output width"):
        ld.MLP(sizes)


def test_an_mlp_refuses_a_width_of_0():
    with pytest.raises(ValueError, match="out_features must be at least 1, not 0"):
        ld.MLP([3, 0, 2])


def test_relu_is_the_positive_part():
    assert_array_equal(ld.ReLU()(mg.Tensor([-1.0, 0, 2])).data, [0, 0, 2])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_p_and_keeps_the_mean(p):
    y = ld.Dropout(p, rng=np.random.default_rng(0))(np.ones(20_000, np.float32))
    assert y.dtype == np.float32
    assert_allclose(np.unique(y.data), [0, 1 / (1 - p)], rtol=1e-6)
    assert abs(np.mean(y.data == 0) - p) < 0.015
    assert abs(y.data.mean() - 1) < 0.05


def test_dropout_is_the_identity_in_evaluation_and_at_0():
    x = mg.Tensor(np.ones(5))
    assert ld.Dropout(0.5).eval()(x) is x
    assert ld.Dropout(0.0)(x) is x


def test_the_gradient_of_dropout_is_zero_where_the_input_was_dropped():
    x = mg.Tensor(np.ones(50), requires_grad=True)
    y = ld.Dropout(0.5, rng=np.random.default_rng(0))(x)
    y.sum().backward()
    assert_array_equal(x.grad, y.data)


@pytest.mark.parametrize("p", [-0.1, 1, 1.0, math.nan])
def test_dropout_refuses_a_rate_outside_0_to_1(p):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\), not {p}"):
        ld.Dropout(p)
