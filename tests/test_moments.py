"""An optimizer's state by name, as a file: loaded whole or refused, whatever the order of parameters."""

import tracemalloc

import numpy as np
import pytest

import loradora as ld
import minigrad as mg
from loradora import CheckpointError, files, moments

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)).astype(np.float32), RNG.integers(2, size=8)
OPTIMIZERS = {
    "AdamW": lambda params: ld.AdamW(params, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1),
    "SGD": lambda params: ld.SGD(params, lr=0.1, momentum=0.9),
    "SGD without momentum": lambda params: ld.SGD(params, lr=0.1),
}
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
A = "base_model.model.layers.0.lora_A.default.weight"


def base(sizes=(3, 4, 2)):
    return ld.MLP(sizes, rng=0)


def adapted(net=None, name="default", **options):
    options = {"r": 2, "target_modules": ["0", "2"], "use_dora": True} | options
    return ld.get_peft_model(net or base(), ld.LoraConfig(**options), name, rng=1)


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        mg.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return optimizer


def same(one, other):
    np.testing.assert_equal(one.state_dict(), other.state_dict())


@pytest.fixture(params=[".npz", ".safetensors"])
def file(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="such files need safetensors")
    return tmp_path / f"optimizer{request.param}"


@every_optimizer
@pytest.mark.parametrize("make", [base, adapted])
def test_a_file_restores_the_state_bit_by_bit(make, kind, file):
    model = make()
    optimizer = train(model, OPTIMIZERS[kind](model.parameters()))
    ld.save_optimizer(file, optimizer, model)
    again = type(optimizer)(model.parameters(), lr=1.0)
    ld.load_optimizer(file, again, model)
    same(again, optimizer)


@every_optimizer
def test_the_order_of_the_parameters_does_not_matter(kind, file):
    """Numbering would give the moments of one parameter to another of the same shape."""
    model = ld.get_peft_model(base((3, 3, 3)), ld.LoraConfig(r=3, target_modules=["0", "2"]), rng=1)
    make = OPTIMIZERS[kind]
    optimizer = train(model, make(model.trainable_parameters()))
    ld.save_optimizer(file, optimizer, model)
    turned = make(model.trainable_parameters()[::-1])
    ld.load_optimizer(file, turned, model)
    for p in model.trainable_parameters():
        np.testing.assert_equal(turned.state.get(p, {}), optimizer.state.get(p, {}))


def test_the_names_are_those_of_pytorch_and_peft(tmp_path):
    model, file = adapted(modules_to_save=["2"], target_modules=["0"]), tmp_path / "a.npz"
    ld.save_optimizer(file, train(model, ld.SGD(model.trainable_parameters(), momentum=0.5)), model)
    with np.load(file) as arrays:
        names = {key.removesuffix(".momentum_buffer") for key in arrays if key.startswith("state")}
    assert names == {
        f"state.base_model.model.layers.{rest}"
        for rest in (
            "0.lora_A.default.weight",
            "0.lora_B.default.weight",
            "0.lora_magnitude_vector.default.weight",
            "2.modules_to_save.default.weight",
            "2.modules_to_save.default.bias",
        )
    }
    plain = base()
    assert list(moments.remembered(ld.SGD(plain.parameters()), plain)) == [
        *("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
    ]


def test_several_adapters_have_names_of_their_own(file):
    model = adapted(name="one", use_dora=False)
    model.add_adapter("two", ld.LoraConfig(r=2, target_modules=["2"]), rng=2)
    model.set_adapter(["one", "two"])
    optimizer = train(model, ld.AdamW(model.trainable_parameters()))
    state = moments.remembered(optimizer, model)
    path = "base_model.model.layers.2.lora_A"
    assert {f"{path}.one.weight", f"{path}.two.weight"} <= set(state)
    assert len(state) == 6
    ld.save_optimizer(file, optimizer, model)
    again = ld.AdamW(model.trainable_parameters())
    ld.load_optimizer(file, again, model)
    same(again, optimizer)


class Scaled(ld.LowRankLinear):
    """A formula that PEFT does not have: s B A, and a factor for each output."""

    def __init__(self, base, **options):
        super().__init__(base, **options)
        self.d = mg.Tensor(np.ones(base.out_features, self.A.dtype), requires_grad=True)

    def forward(self, x):
        return mg.linear(self.as_input(x), self.weight, self.base_layer.bias)

    @property
    def weight(self):
        return self.base_layer.weight + self.B @ self.A * self.d[:, None]


def test_a_formula_of_ones_own_has_names_of_its_own(file):
    config = ld.LoraConfig(r=2, target_modules=["0", "2"])
    model = ld.get_peft_model(base(), config, "one", layer=Scaled, rng=1)
    first = model.trainable_parameters()
    model.add_adapter("two", config, layer=Scaled, rng=2)
    model.set_adapter("two")
    for p in first:
        p.requires_grad = True
    optimizer = train(model, ld.SGD([*first, *model.trainable_parameters()], momentum=0.5))
    names = list(moments.remembered(optimizer, model))
    assert len(set(names)) == len(names) == 12
    ld.save_optimizer(file, optimizer, model)
    again = ld.SGD([*first, *model.trainable_parameters()], momentum=0.5)
    ld.load_optimizer(file, again, model)
    same(again, optimizer)


def test_frozen_parameters_need_not_be_in_the_file(file):
    model = adapted()
    optimizer = train(model, ld.AdamW(model.trainable_parameters()))
    ld.save_optimizer(file, optimizer, model)
    everything = ld.AdamW(model.parameters())
    ld.load_optimizer(file, everything, model)
    for p in model.trainable_parameters():
        np.testing.assert_equal(everything.state[p], optimizer.state[p])
    ld.save_optimizer(file, everything, model)
    again = ld.AdamW(model.trainable_parameters())
    ld.load_optimizer(file, again, model)
    same(again, optimizer)


def test_what_has_not_been_moved_has_no_state(file):
    model = base()
    ld.save_optimizer(file, ld.AdamW(model.parameters(), lr=0.5), model)
    optimizer = train(model, ld.AdamW(model.parameters()))
    ld.load_optimizer(file, optimizer, model)
    assert optimizer.state == {}
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_groups_have_their_own_options(file):
    model = adapted()
    optimizer = train(model, ld.AdamW(ld.lora_plus(model, 0.01)))
    ld.save_optimizer(file, optimizer, model)
    again = ld.AdamW(ld.lora_plus(model, 1.0))
    ld.load_optimizer(file, again, model)
    same(again, optimizer)
    one = ld.AdamW(model.trainable_parameters())
    refused(
        file, one, model, r"lr is 0\.01 for .*lora_A.* and 0\.16 for .*lora_B.*, .* one group here"
    )


def refused(file, optimizer, model, message):
    """Loading is refused with one clear message, and nothing has changed."""
    before, content = optimizer.state_dict(), file.read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        ld.load_optimizer(file, optimizer, model)
    assert str(file) in str(caught.value)
    np.testing.assert_equal(optimizer.state_dict(), before)
    assert file.read_bytes() == content


#: How a file is changed, and what is said of it.
FAULTS = {
    "another shape": (
        lambda a: a | {f"state.{A}.exp_avg": np.zeros((2, 5), np.float32)},
        rf"{A}.exp_avg is float32 of shape \(2, 5\), expected float32 of shape \(2, 3\)",
    ),
    "another dtype": (
        lambda a: a | {f"state.{A}.exp_avg": np.zeros((2, 3))},
        rf"{A}.exp_avg is float64",
    ),
    "NaN": (
        lambda a: a | {f"state.{A}.exp_avg": np.full((2, 3), np.nan, np.float32)},
        rf"{A}.exp_avg holds NaN or infinity",
    ),
    "negative squares": (
        lambda a: a | {f"state.{A}.exp_avg_sq": np.full((2, 3), -1, np.float32)},
        rf"{A}.exp_avg_sq is negative",
    ),
    "half a step": (lambda a: a | {f"state.{A}.step": np.float32(2.5)}, rf"{A}.step is float32"),
    "an endless step": (lambda a: a | {f"state.{A}.step": np.float32(np.inf)}, rf"{A}.step is"),
    "a negative step": (
        lambda a: a | {f"state.{A}.step": np.float32(-1)},
        rf"{A}.step is negative",
    ),
    "a step too many": (lambda a: a | {f"state.{A}.step": np.float32(1e30)}, rf"{A}.step is"),
    "a missing moment": (
        lambda a: {k: v for k, v in a.items() if k != f"state.{A}.step"},
        rf"missing {A}.step",
    ),
    "another moment": (
        lambda a: a | {f"state.{A}.max_exp_avg_sq": np.zeros((2, 3), np.float32)},
        rf"unexpected {A}.max_exp_avg_sq",
    ),
    "a missing parameter": (
        lambda a: {k: v for k, v in a.items() if A not in k},
        rf"missing {A}",
    ),
    "a parameter of another model": (
        lambda a: a | {"state.layers.9.weight.exp_avg": np.zeros(2, np.float32)},
        r"unexpected layers\.9\.weight",
    ),
    "a missing option": (
        lambda a: {k: v for k, v in a.items() if not k.endswith(".eps")},
        rf"missing eps of {A}",
    ),
    "an option of PyTorch": (
        lambda a: a | {f"param_groups.{A}.amsgrad": np.array(True)},
        rf"there is no amsgrad=True here, as {A} has it",
    ),
    "an option out of range": (
        lambda a: a | {k: np.array([0.9, 1.5]) for k in a if k.endswith(".betas")},
        r"must lie in \[0, 1\)",
    ),
    "options that differ": (
        lambda a: a | {f"param_groups.{A}.lr": np.array(7.0)},
        r"lr is 7\.0 for",
    ),
    "text": (lambda a: a | {f"param_groups.{A}.lr": np.array("1")}, "lr"),
    "something else": (
        lambda a: a | {"hello": np.zeros(3)},
        "hello is not part of an optimizer's state",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_whole(fault, tmp_path):
    model, file = adapted(), tmp_path / "optimizer.npz"
    optimizer = train(model, ld.AdamW(model.trainable_parameters()))
    ld.save_optimizer(file, optimizer, model)
    with np.load(file) as archive:
        arrays = dict(archive)
    change, message = FAULTS[fault]
    np.savez(file, **change(arrays))
    refused(file, optimizer, model, message)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    model, file = adapted(), tmp_path / "optimizer.npz"
    optimizer = train(model, ld.AdamW(model.trainable_parameters()))
    ld.save_optimizer(
        file, train(other := adapted(base((3, 5, 2)), r=3), ld.AdamW(other.parameters())), other
    )
    refused(file, optimizer, model, rf"{A}\.exp_avg is .*; {A}\.exp_avg_sq is")


def test_a_damaged_file_is_a_checkpoint_error(file):
    model = base()
    optimizer = train(model, ld.AdamW(model.parameters()))
    ld.save_optimizer(file, optimizer, model)
    file.write_bytes(file.read_bytes()[:-30])
    refused(file, optimizer, model, "is not a valid|is damaged")


def test_the_state_of_another_optimizer_is_refused(file):
    model = base()
    ld.save_optimizer(file, train(model, ld.SGD(model.parameters(), momentum=0.5)), model)
    refused(file, train(model, ld.AdamW(model.parameters())), model, "missing betas of layers")
    ld.save_optimizer(file, train(model, ld.AdamW(model.parameters())), model)
    refused(file, train(model, ld.SGD(model.parameters())), model, "missing momentum of layers")


@pytest.mark.parametrize("function", [ld.save_optimizer, ld.load_optimizer])
def test_an_optimizer_of_another_model_is_refused(function, tmp_path):
    net = base()
    file, optimizer = tmp_path / "optimizer.npz", ld.AdamW(net.parameters())
    ld.save_optimizer(file, optimizer, net)
    for model in (adapted(), base()):
        with pytest.raises(
            ValueError, match=r"a parameter of shape \(4, 3\) that this model lacks"
        ):
            function(file, optimizer, model)
    with pytest.raises(TypeError, match="expected an optimizer"):
        function(file, net, net)
    with pytest.raises(TypeError, match=r"expected a model, a loradora\.Module, not a list"):
        function(file, optimizer, net.parameters())


def test_a_file_of_another_suffix_is_not_written(tmp_path):
    model = base()
    with pytest.raises(CheckpointError, match=r"ends in neither \.npz nor \.safetensors"):
        ld.save_optimizer(tmp_path / "optimizer.pt", ld.SGD(model.parameters()), model)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------- from PyTorch's dictionary


def nested(optimizer, names):
    """Return a state as ``torch.optim`` has it, of arrays."""
    state = {
        i: {k: np.float32(v) if k == "step" else v for k, v in optimizer.state[p].items()}
        for i, p in enumerate(optimizer.param_groups[0]["params"])
    }
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    options |= {"amsgrad": False, "decoupled_weight_decay": True}
    return {"state": state, "param_groups": [{**options, "params": list(range(len(names)))}]}


def test_a_nested_state_is_read_by_the_names_that_are_given():
    model = base()
    optimizer = train(model, ld.AdamW(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    there, again = nested(optimizer, names), ld.AdamW(model.parameters())
    ld.optimizer_from_torch(again, model, there, names)
    same(again, optimizer)

    for wrong in (names[:-1], [*names, "x"], names[:-1] + names[:1]):
        with pytest.raises(ValueError, match="expected 4 different names, one for each"):
            ld.optimizer_from_torch(again, model, there, wrong)
    with pytest.raises(ValueError, match="does not know its parameters by name"):
        ld.optimizer_from_torch(again, model, there)
    with pytest.raises(ValueError, match=r"layers\.0\.weight\.exp_avg is float32 of shape \(2,\)"):
        ld.optimizer_from_torch(again, model, there, names[::-1])
    for thing in (optimizer, [], {}, {"state": {}}):
        with pytest.raises(TypeError, match="expected what state_dict"):
            ld.optimizer_from_torch(again, model, thing, names)
    same(again, optimizer)


def test_names_in_another_order_than_those_of_the_state_are_refused():
    """All four matrices could be swapped unnoticed, because they have the same shape."""
    model = base((4, 4, 4))
    optimizer = train_on_zeros(model, ld.AdamW(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    state, before = nested(optimizer, names), optimizer.state_dict()
    state["param_groups"][0]["param_names"] = names
    message = r"'layers\.2\.weight' stands in the place of 'layers\.0\.weight'"
    with pytest.raises(ValueError, match=message):
        ld.optimizer_from_torch(optimizer, model, state, names[2:] + names[:2])
    np.testing.assert_equal(optimizer.state_dict(), before)
    ld.optimizer_from_torch(optimizer, model, state, names)


def train_on_zeros(model, optimizer):
    for p in model.parameters():
        p.grad = np.ones_like(p.data)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("option", ["amsgrad", "decoupled_weight_decay"])
def test_a_state_that_does_not_say_its_formula_is_refused(option):
    """RAdam has all of AdamW's options except one.  Adam used to have all of them."""
    model = base()
    optimizer = train(model, ld.AdamW(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    state = nested(optimizer, names)
    del state["param_groups"][0][option]
    with pytest.raises(ValueError, match=f"there is no {option}=unknown here"):
        ld.optimizer_from_torch(optimizer, model, state, names)
    if option == "decoupled_weight_decay":
        state["param_groups"][0]["weight_decay"] = 0
        ld.optimizer_from_torch(optimizer, model, state, names)


def test_no_momentum_yet_is_no_momentum():
    """PyTorch writes None for it."""
    model = base()
    optimizer = ld.SGD(model.parameters(), momentum=0.5)
    names = [name for name, _ in model.named_parameters()]
    state = {i: {"momentum_buffer": None} for i in range(4)}
    group = {"lr": 0.1, "momentum": 0.5, "params": [0, 1, 2, 3]}
    ld.optimizer_from_torch(optimizer, model, {"state": state, "param_groups": [group]}, names)
    assert optimizer.state == {}


@pytest.mark.parametrize(
    "state",
    [
        {"state": None, "param_groups": []},
        {"state": {}, "param_groups": None},
        {"state": {}, "param_groups": [{}]},
        {"state": {}, "param_groups": [3]},
        {"state": {0: 5}, "param_groups": [{"params": [0]}]},
    ],
)
def test_what_is_no_state_is_a_type_error(state):
    model = ld.Linear(2, 1, bias=False)
    with pytest.raises(TypeError, match="in a state"):
        ld.optimizer_from_torch(ld.SGD(model.parameters()), model, state, ["weight"])


def test_the_rate_is_the_one_that_a_schedule_began_with_in_a_file_too(tmp_path):
    model, file = base(), tmp_path / "optimizer.npz"
    optimizer = train(model, ld.SGD(model.parameters(), lr=0.1))
    ld.save_optimizer(file, optimizer, model)
    with np.load(file) as archive:
        arrays = dict(archive)
    names = [name for name, _ in model.named_parameters()]
    np.savez(file, **arrays, **{f"param_groups.{name}.initial_lr": np.array(0.8) for name in names})
    ld.load_optimizer(file, optimizer, model)
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_a_step_is_a_float_in_the_file_as_in_pytorch(file):
    model = base()
    ld.save_optimizer(file, train(model, ld.AdamW(model.parameters())), model)
    entries, _ = files.described(file, file.read_bytes())
    assert {e.dtype for key, e in entries.items() if key.endswith(".step")} == {np.dtype("f4")}


def test_moments_of_what_is_frozen_now_are_not_lost(tmp_path):
    model, file = base(), tmp_path / "optimizer.npz"
    optimizer = train(model, ld.AdamW(model.parameters()))
    model.layers[0].requires_grad_(False)
    ld.save_optimizer(file, optimizer, model)
    again = ld.AdamW(model.parameters())
    ld.load_optimizer(file, again, model)
    same(again, optimizer)
    few = ld.AdamW(model.layers[2].parameters())
    refused(file, few, model, r"unexpected layers\.0\.weight")
    ld.save_optimizer(file, few, model)
    refused(file, optimizer, model, r"missing layers\.0\.weight")


def test_a_small_file_costs_little(tmp_path):
    """What cannot fit is not unpacked."""
    model, file = base(), tmp_path / "optimizer.npz"
    optimizer = train(model, ld.AdamW(model.parameters()))
    ld.save_optimizer(file, optimizer, model)
    with np.load(file) as archive:
        arrays = dict(archive)
    large = np.zeros(10_000_000)
    name = "layers.0.weight"
    for key, message in {
        "state.elsewhere.exp_avg": "unexpected elsewhere",
        f"state.{name}.exp_avg": rf"{name}\.exp_avg is float64 of shape \(10000000,\)",
        f"param_groups.{name}.lr": rf"param_groups\.{name}\.lr is not an option: it has the shape",
        f"state.{name}.step": rf"{name}\.step is float64 of shape",
    }.items():
        np.savez_compressed(file, **(arrays | {key: large}))
        tracemalloc.start()
        refused(file, optimizer, model, message)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


def test_a_model_of_many_tensors_has_room(tmp_path):
    """DoRA on seven matrices of 80 blocks, with the moments and options of each."""
    model = ld.Module()
    model.tensors = [mg.Tensor([1.0], requires_grad=True) for _ in range(80 * 7 * 3)]
    optimizer = train_on_zeros(model, ld.AdamW(model.parameters()))
    ld.save_optimizer(tmp_path / "optimizer.npz", optimizer, model)
    again = ld.AdamW(model.parameters())
    ld.load_optimizer(tmp_path / "optimizer.npz", again, model)
    same(again, optimizer)


def test_names_that_all_differ_are_said_once():
    """As those of a net that DistributedDataParallel wraps."""
    model = base()
    optimizer = train(model, ld.AdamW(model.parameters()))
    names = [f"module.{name}" for name, _ in model.named_parameters()]
    message = (
        r"all names differ: there is module\.layers\.0\.weight, and here layers\.0\.weight \(names"
    )
    with pytest.raises(ValueError, match=message):
        ld.optimizer_from_torch(optimizer, model, nested(optimizer, names), names)


def test_a_pickle_is_called_one(tmp_path):
    (tmp_path / "optimizer.pt").write_bytes(b"PK\3\4 and so on")
    model = base()
    for load in (
        lambda: ld.load_model(tmp_path / "optimizer.pt", model),
        lambda: ld.load_optimizer(tmp_path / "optimizer.pt", ld.SGD(model.parameters()), model),
    ):
        with pytest.raises(
            CheckpointError, match=r"optimizer\.pt is a pickle, which can run any code"
        ):
            load()


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    model = base()
    optimizer = ld.SGD(model.parameters())
    with pytest.raises(ImportError, match=r"extra 'interop'.*save_optimizer"):
        ld.optimizer_to_torch(optimizer, model, {"state": {}, "param_groups": []})
