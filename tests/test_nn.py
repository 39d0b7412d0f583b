"""Modules are plain objects: parameters are found by walking, named as in PyTorch, set all at once."""

import copy
import math
import operator
import pickle
from collections import UserList, UserString, deque
from types import MappingProxyType
from typing import ClassVar, Generic, TypeVar

import numpy as np
import pytest
from interrupting import assert_whole
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg

T = TypeVar("T")


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


class Holder(ld.Module):
    """A module with whatever it is given as the attribute ``held``."""

    def __init__(self, held):
        self.held = held


def layer():
    return ld.Linear(2, 1, bias=False, rng=0)


@pytest.mark.parametrize(
    ("held", "names"),
    [
        ([[layer(), layer()], [layer()]], ["0.0", "0.1", "1.0"]),
        ({"a": {"b": [layer()]}, 7: (layer(),)}, ["a.b.0", "7.0"]),
        ([({"x": layer()}, 3, "text", None, [1.0])], ["0.0.x"]),
    ],
)
def test_containers_are_walked_however_deep(held, names):
    model = Holder(held)
    assert list(model.state_dict()) == [f"held.{name}.weight" for name in names]
    adapted = ld.get_peft_model(model, ld.LoraConfig(r=1, target_modules="all-linear"))
    assert len(adapted.trainable_parameters()) == 2 * len(names)
    model.eval()
    assert {m.training for _, m in model.named_modules()} == {False}


def _with_object_array(part):
    array = np.empty(1, object)
    array[0] = part
    return array


@pytest.mark.parametrize(
    "held",
    [
        {layer()},
        frozenset([layer()]),
        deque([layer()]),
        UserList([layer()]),
        MappingProxyType({"a": layer()}),
        {"a": layer()}.values(),
        [deque([mg.Tensor(1.0)])],
        deque([[layer()]]),
        _with_object_array(layer()),
    ],
    ids=lambda held: type(held).__name__,
)
def test_containers_that_cannot_be_walked_are_refused(held):
    with pytest.raises(TypeError, match=r"held(\.0)? is a \w+ of tensors or modules"):
        Holder(held).parameters()
    private = Holder(None)
    private._held = held
    assert private.parameters() == []


class Lazy:
    """A collection that is expensive to read."""

    def __len__(self):
        return 10**12

    def __contains__(self, item):
        return True

    def __iter__(self):
        raise AssertionError("this was not to be read")


@pytest.mark.parametrize(
    "held",
    [
        *({1, 2}, deque([1.0]), "text", UserString("text"), b"bytes", range(3), np.ones((2, 2))),
        *(np.array([None]), np.array(None), iter([layer()]), Lazy()),
    ],
    ids=lambda held: type(held).__name__,
)
def test_containers_of_other_things_are_nobodys_business(held):
    assert Holder(held).parameters() == []


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"Holder has two parts called 'held\.1'"):
        Holder({1: layer(), "1": layer()}).state_dict()


def test_what_contains_itself_is_refused():
    model = Holder([layer()])
    model.held.append(model)
    with pytest.raises(ValueError, match=r"'held\.1' leads back to a Holder that it lies in"):
        model.parameters()
    with pytest.raises(ValueError, match="leads back"):
        ld.get_peft_model(model, ld.LoraConfig(r=1, target_modules="all-linear"))
    assert "..." in repr(model)
    loop = [layer()]
    loop.append(loop)
    with pytest.raises(ValueError, match=r"held\.1 is a list that lies in itself"):
        Holder(loop).parameters()


def test_private_names_are_free_for_the_user():
    names = [n for cls in (ld.Module, ld.Linear) for n in dir(cls) if n[0] == "_" and n[1] != "_"]
    block = Block()
    for name in {"_names", "_parts", "_describe", "_norm", "_walk", *names}:
        setattr(block, name, "mine")
        setattr(block.q, name, "mine")
    assert len(block.state_dict()) == len(NAMES)
    assert "Linear(3 -> 2" in repr(block)
    adapted = ld.get_peft_model(block, ld.LoraConfig(r=1, target_modules=["q"], use_dora=True))
    assert adapted.q(np.ones((1, 3))).shape == (1, 2)


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


def test_a_shared_parameter_may_be_given_under_each_of_its_names_with_one_value():
    block = Block()
    block.again = block.q
    state = block.state_dict()
    state |= {f"again.{name}": value for name, value in block.q.state_dict().items()}
    block.load_state_dict(state)
    state["again.bias"][0] = np.nan
    with pytest.raises(
        ValueError, match=r"again\.bias and q\.bias differ, and are one tensor here$"
    ):
        block.load_state_dict(state)
    state["q.bias"][0] = np.nan
    block.load_state_dict(state)
    assert np.isnan(block.q.bias.data[0])
    state["again.bias"] = np.array(["text", "text"])
    with pytest.raises(ValueError, match="expected a float dtype"):
        block.load_state_dict(state)


@pytest.mark.parametrize("names", ["", "0", "1", "2", "01", "02", "12", "012"])
def test_a_shared_parameter_is_complete_under_any_of_its_names(names):
    """safetensors of PyTorch keep one of them, not always the first."""
    model = ld.Sequential(*(ld.Linear(2, 2, bias=False, rng=0) for _ in range(3)))
    for layer in model:
        layer.weight = model[0].weight
    state = {f"{i}.weight": np.full((2, 2), np.nan) for i in names}
    if names:
        model.load_state_dict(state)
        assert_array_equal(model[2].weight.data, np.full((2, 2), np.nan))
        for i in names[1:]:
            words = rf"{i}\.weight and {names[0]}\.weight differ, and are one"
            with pytest.raises(ValueError, match=words):
                model.load_state_dict(state | {f"{i}.weight": np.ones((2, 2))})
    else:
        with pytest.raises(ValueError, match=r"fit: missing 0\.weight \(2, 2\)$"):
            model.load_state_dict(state)


def test_children_are_the_modules_held_directly_a_shared_one_once():
    block = Block()
    block.again = block.heads[0]
    block.held = {"a": [block.q, ld.Dropout(0.1)]}
    expected = [block.q, *block.heads, block.inner, block.held["a"][1]]
    assert list(block.children()) == expected
    assert list(ld.ReLU().children()) == []
    assert next(block.children()) is block.q


def test_modules_are_the_model_and_all_inside_a_shared_one_once():
    block = Block()
    block.again, block.inner.tied = block.inner, block.q
    assert list(block.modules()) == [block, block.q, *block.heads, block.inner, *block.inner[:2]]
    assert next(block.modules()) is block


def test_zero_grad_of_a_model_forgets_the_gradients_of_all_its_parameters():
    block = Block()
    block.again = block.q
    frozen = block.scale
    frozen.requires_grad = False
    for p in block.parameters():
        p.grad = np.ones(p.shape, p.dtype)
    block.zero_grad()
    assert [p.grad for p in block.parameters()] == [None] * len(NAMES)


def test_an_interrupt_leaves_all_gradients_of_a_model_or_none():
    def prepare():
        block = Block()
        for p in block.parameters():
            p.grad = np.ones(p.shape, p.dtype)
        return block, block.zero_grad

    assert_whole(prepare, lambda block: [p.grad is None for p in block.parameters()])


def test_an_adapted_model_walks_and_forgets_as_any_other():
    config = ld.LoraConfig(r=1, target_modules="all-linear")
    model = ld.get_peft_model(ld.MLP([3, 4, 2], rng=0), config, rng=0)
    assert list(model.children()) == [model.base_model]
    assert {type(m) for m in model.modules()} >= {ld.PeftModel, ld.LoRALinear, ld.ReLU}
    mg.cross_entropy(model(np.ones((1, 3))), [0]).backward()
    assert any(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


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
    with pytest.raises(
        ValueError, match=r"layers\.2\.bias has numbers that are too large for float32"
    ):
        model.load_state_dict(state)
    assert all(a.tobytes() == before[name].tobytes() for name, a in model.state_dict().items())


def test_an_interrupt_leaves_a_state_loaded_or_not_loaded():
    state = ld.MLP([4, 3, 2], rng=1).state_dict()

    def prepare():
        model = ld.MLP([4, 3, 2], rng=0)
        return model, lambda: model.load_state_dict(state)

    assert_whole(prepare, lambda model: [p.data.tobytes() for p in model.parameters()])


def test_an_interrupt_leaves_a_model_frozen_or_not_frozen():
    def prepare():
        model = ld.MLP([4, 3, 2])
        return model, lambda: model.requires_grad_(False)

    assert_whole(prepare, lambda model: [p.requires_grad for p in model.parameters()])


def test_a_model_that_cannot_be_frozen_as_a_whole_is_not_frozen_at_all(monkeypatch):
    model = ld.MLP([4, 3, 2])
    first, *others = model.parameters()
    monkeypatch.setattr(model, "parameters", lambda: [first, first * 2])
    with pytest.raises(RuntimeError, match="of the result of mul"):
        model.requires_grad_(False)
    assert all(p.requires_grad for p in (first, *others))


def test_a_state_that_was_loaded_is_a_copy_of_it():
    model = ld.MLP([4, 3, 2])
    state = {name: array.copy() for name, array in model.state_dict().items()}
    model.load_state_dict(state)
    for name, p in model.named_parameters():
        assert not np.shares_memory(p.data, state[name])
        assert p.data.flags.writeable


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
        "    (0): Linear(784 -> 16, frozen)\n"
        "    (1): ReLU()\n"
        "    (2): Linear(16 -> 10, 170 trainable)\n"
        "  )\n"
        ")"
    )
    assert repr(ld.Linear(3, 2, bias=False)) == "Linear(3 -> 2, no bias, 6 trainable)"
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


#: layers without parameters: the function, and what NumPy makes of it
ELEMENTWISE = {
    "ReLU": (ld.ReLU(), mg.relu, lambda x: np.maximum(x, 0)),
    "Tanh": (ld.Tanh(), mg.tanh, np.tanh),
    "Sigmoid": (ld.Sigmoid(), mg.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "GELU": (
        ld.GELU(),
        mg.gelu,
        lambda x: x / 2 * np.vectorize(math.erfc)(-x / np.sqrt(2)),
    ),
    "GELU with tanh": (
        ld.GELU("tanh"),
        lambda x: mg.gelu(x, "tanh"),
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(("layer", "function", "in_numpy"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_a_layer_of_a_function_is_that_function(layer, function, in_numpy, dtype):
    x = np.array([[-2.0, -0.5, 0.25], [0.0, 1.0, 3.0]], dtype)
    y = layer(mg.Tensor(x))
    assert_array_equal(y.data, function(x).data, strict=True)
    assert_allclose(y.data, in_numpy(x.astype(float)), rtol=10 * np.finfo(dtype).eps)
    assert_array_equal(layer(x).data, y.data, strict=True)
    assert layer(np.zeros((0, 3), dtype)).shape == (0, 3)
    mg.gradcheck(layer, np.array([-2.0, -0.5, 0.25]))
    assert (layer.parameters(), layer.state_dict()) == ([], {})


def test_a_gelu_that_is_unknown_is_refused_when_the_layer_is_made():
    assert repr(ld.GELU()) == repr(ld.GELU("none")) == "GELU(approximate='none')"  # as in PyTorch
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', not 'erf'"):
        ld.GELU("erf")


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 6), (5,), (0, 2, 3), (5, 0, 3)], ids=str)
def test_flatten_keeps_the_examples_of_a_batch_apart(shape):
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    if len(shape) == 1:
        with pytest.raises(IndexError, match=r"flatten of shape \(5,\): axis 1"):
            ld.Flatten()(x)
        return
    y = ld.Flatten()(x)
    assert_array_equal(y.data, x.reshape(shape[0], math.prod(shape[1:])), strict=True)


def test_flatten_begins_where_it_is_told_to():
    x = mg.Tensor(np.ones((2, 3, 4)), requires_grad=True)
    assert [ld.Flatten(k)(x).shape for k in (0, 1, 2, -2)] == [(24,), (2, 12), (2, 3, 4), (2, 12)]
    assert (repr(ld.Flatten()), repr(ld.Flatten(0))) == (
        "Flatten(start_dim=1)",
        "Flatten(start_dim=0)",
    )
    assert mg.grad(ld.Flatten()(x).sum(), x).shape == (2, 3, 4)


@pytest.mark.parametrize("wrong", ["a", None, True, 1.0, (1, -1)], ids=repr)
def test_flatten_is_given_the_number_of_an_axis(wrong):
    with pytest.raises(TypeError, match="start_dim must be an integer, not"):
        ld.Flatten(wrong)


def test_layers_of_functions_make_a_network_that_is_adapted_and_learns():
    rng = np.random.default_rng(0)
    layers = [
        ld.Flatten(),
        ld.Linear(6, 8, rng=rng),
        ld.Tanh(),
        ld.Linear(8, 8, rng=rng),
        ld.GELU(),
    ]
    base = ld.Sequential(*layers, ld.Linear(8, 3, rng=rng), ld.Sigmoid())
    config = ld.LoraConfig(r=2, target_modules="all-linear")
    model = ld.get_peft_model(base, config, rng=rng)
    x, labels = rng.normal(size=(30, 2, 3)).astype(np.float32), np.arange(30) % 3
    optimizer = ld.AdamW(model.parameters(), lr=0.03)
    steps = list(ld.fit(model, x, labels, optimizer=optimizer, steps=30, batch_size=30, rng=0))
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert_allclose(model.merge_and_unload()(x).data, model.eval()(x).data, atol=1e-5)


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


@pytest.mark.parametrize("wrong", [lambda z: z - 5.0, mg.relu, np.tanh, [ld.ReLU()], None])
def test_a_sequential_of_anything_but_modules_is_refused(wrong):
    with pytest.raises(TypeError, match="Sequential takes Modules, but number 1 is of type"):
        ld.Sequential(ld.ReLU(), wrong)


@pytest.mark.parametrize(
    "x", [[mg.Tensor([1.0, 2.0])], [[mg.Tensor(1.0), 2.0]], ["a", "b"], [1j, 2]]
)
def test_a_layer_is_given_numbers_not_a_list_of_tensors(x):
    adapted = [kind(layer(), r=1, lora_alpha=1) for kind in (ld.LoRALinear, ld.DoRALinear)]
    for linear in (layer(), *adapted):
        with pytest.raises(TypeError, match=r"list of Tensors|real numbers"):
            linear(x)


def test_a_seed_will_do_for_a_generator():
    def made(rng):
        base = ld.MLP([4, 3, 2], rng=rng)
        config = ld.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5)
        model = ld.get_peft_model(base, config, rng=rng)
        model.add_adapter("other", config, rng=rng)
        parts = [model.state_dict(), ld.Linear(3, 2, rng=rng).state_dict()]
        parts += [ld.LoRALinear(layer(), r=1, lora_alpha=1, rng=rng).state_dict()]
        parts += [{"dropped": ld.Dropout(0.5, rng=rng)(mg.Tensor(np.ones(9))).data}]
        return [value for part in parts for value in part.values()]

    for seeded, drawn in zip(made(3), made(3), strict=True):
        assert_array_equal(seeded, drawn)
    one, generator = ld.MLP([4, 3, 2], rng=3), ld.MLP([4, 3, 2], rng=np.random.default_rng(3))
    assert_array_equal(one.layers[0].weight.data, generator.layers[0].weight.data)


# ----------------------------------------------------------------------------- what is set in vain


TRAINED = mg.Tensor(1.0, requires_grad=True)


@pytest.mark.parametrize("part", [TRAINED, layer(), [layer()], {"a": (TRAINED,)}, ld.Dropout(0.5)])
def test_parameters_of_a_class_are_refused(part):
    with pytest.raises(TypeError, match=r"Shared\.held belongs to the class"):
        type("Shared", (ld.Module,), {"held": part})


def test_a_class_may_have_constants_parameters_of_type_and_other_bases():
    class Registered:
        found: ClassVar = []

        def __init_subclass__(cls, tag=None, **options):
            super().__init_subclass__(**options)
            cls.found.append(tag)

    class Scaled(ld.Module, Generic[T], Registered, tag="scaled"):
        scale, sizes, act = mg.Tensor(2.0), [1, 2], ld.ReLU()

        def forward(self, x: T) -> T:
            return x * self.scale

    assert Registered.found == ["scaled"]
    assert Scaled[int]()(mg.Tensor(3.0)).item() == 6

    class Typed(ld.LoRALinear, Generic[T]):
        pass

    assert Typed[int](layer(), r=1, lora_alpha=1).r == 1


@pytest.mark.parametrize("value", [np.zeros((1, 2)), [[0.0, 0.0]], 0.0])
def test_a_parameter_is_not_replaced_by_an_array(value):
    model = layer()
    with pytest.raises(TypeError, match=r"weight must be a Tensor, not a \w+"):
        model.weight = value
    with pytest.raises(TypeError, match=r"weight must be a Tensor, not a \w+"):
        model.requires_grad_(False).weight = value
    with pytest.raises(TypeError, match=r"bias must be a Tensor, not a \w+"):
        model.bias = value
    model.requires_grad_(True)
    held = Holder(mg.Tensor([1.0], requires_grad=True))
    with pytest.raises(TypeError, match=r"held is trained, and a \w+ in its place is not"):
        held.held = value
    assert list(model.state_dict()) == ["weight"]
    model.weight = mg.Tensor(np.zeros((1, 2)), requires_grad=True)
    assert not model.weight.data.any()
    model.bias = None
    model.loss = mg.exp(mg.Tensor(0.0, requires_grad=True))
    model.loss = 1.0
    model.constant = mg.Tensor(1.0)
    model.constant = 2.0


@pytest.mark.parametrize("scale", [operator.imul, operator.mul, operator.isub])
def test_a_parameter_is_not_replaced_by_what_was_computed_from_it(scale):
    """``layer.weight *= 0.5`` would leave a layer without a weight to train or to save."""
    model = layer()
    with pytest.raises(
        TypeError, match=r"weight is trained, and the result of an operation in its"
    ):
        model.weight = scale(model.weight, 0.5)
    assert list(model.state_dict()) == ["weight"]


def test_the_result_of_an_operation_is_no_parameter():
    """An activation that was kept is not trained, saved or handed to an optimizer."""
    model = Holder(layer())
    model.kept = [model.held(np.ones((1, 2)))]
    assert list(model.state_dict()) == ["held.weight"]
    ld.SGD(model.parameters())


@pytest.mark.parametrize("value", [mg.relu, None, [ld.ReLU()]])
def test_a_part_of_a_sequential_stays_a_module(value):
    model = ld.Sequential(ld.ReLU(), layer())
    with pytest.raises(TypeError, match="Sequential takes Modules, but number 1 is of type"):
        setattr(model, "1", value)
    model._private = layer()
    assert len(model) == 2


def test_requires_grad_of_a_module_is_not_set_in_vain():
    model = ld.MLP([3, 2])
    with pytest.raises(AttributeError, match=r"call requires_grad_\(value\)"):
        model.requires_grad = False
    assert len(model.trainable_parameters()) == 2


@pytest.mark.parametrize(
    ("p", "error"), [(1.5, ValueError), (-0.1, ValueError), (1, ValueError), ("0.5", TypeError)]
)
def test_a_dropout_rate_is_checked_whenever_it_is_set(p, error):
    dropout = ld.Dropout(0.5)
    with pytest.raises(error, match="the dropout rate must"):
        dropout.p = p
    assert dropout.p == 0.5


def test_the_layout_of_an_array_is_kept_because_sums_depend_on_it(tmp_path):
    def made():
        return ld.Sequential(ld.Linear(3, 4, bias=False, rng=0))

    one, other = made(), made()
    one[0].weight.data = np.asfortranarray(one[0].weight.data)
    other.load_state_dict(one.state_dict())
    ld.save_model(tmp_path / "m.npz", one)
    read = made()
    ld.load_model(tmp_path / "m.npz", read)
    adapted = ld.get_peft_model(one, ld.LoraConfig(r=1, target_modules=["0"]), rng=0)
    copies = [other, read, adapted.unload(), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
    for model in copies:
        assert model[0].weight.data.flags.f_contiguous


@pytest.mark.parametrize("copied", [True, False])
def test_a_state_is_copied_unless_it_is_given_away(copied):
    model = ld.Sequential(ld.Linear(3, 4, rng=0))
    config = ld.LoraConfig(r=1, target_modules=["0"])
    for each in (model, ld.get_peft_model(ld.Sequential(ld.Linear(3, 4, rng=0)), config, rng=0)):
        state = each.state_dict()
        each.load_state_dict(state, assign=not copied)
        for name, p in each.named_parameters():
            if p.requires_grad:
                assert (p.data is state[name]) is not copied
    wide = {name: a.astype(np.float64) for name, a in model.state_dict().items()}
    model.load_state_dict(wide, assign=not copied)
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("rng", ["a", 1.0, -1, True, [None]])
def test_what_is_no_source_of_randomness_is_refused_by_name(rng):
    base = ld.Linear(2, 1)
    for make in (
        lambda: ld.Linear(2, 1, rng=rng),
        lambda: ld.Dropout(0.5, rng=rng),
        lambda: ld.LoRALinear(base, r=1, lora_alpha=1, rng=rng),
        lambda: ld.get_peft_model(
            ld.MLP([2, 1]), ld.LoraConfig(r=1, target_modules="all-linear"), rng=rng
        ),
    ):
        with pytest.raises(
            (TypeError, ValueError), match="rng must be a Generator, a seed or None"
        ):
            make()


def test_dropout_takes_what_a_layer_takes():
    for mode in (True, False):
        assert ld.Dropout(0.5, rng=0).train(mode)([1.0, 2.0]).shape == (2,)


def test_a_module_with_parameters_is_not_replaced_by_a_function():
    model = ld.MLP([3, 2])
    with pytest.raises(TypeError, match="layers has parameters, which a function in its place"):
        model.layers = lambda x: x
    model.act = ld.ReLU()
    model.act = lambda x: x
    model.layers = None
