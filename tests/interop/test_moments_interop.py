"""A training can be interrupted here, go on in PyTorch, and come back, as if nothing had happened."""

from pathlib import Path

import numpy as np
import pytest

import loradora as ld

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("peft", reason=NEEDED)
safetensors = pytest.importorskip("safetensors.torch", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)
distributed = pytest.importorskip("torch.distributed.checkpoint.state_dict", reason=NEEDED)

OPTIMIZERS = {
    "AdamW": ("AdamW", {"lr": 0.01}),
    "AdamW of other options": (
        "AdamW",
        {"lr": 0.003, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3},
    ),
    "SGD with momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "SGD": ("SGD", {"lr": 0.1}),
}
KINDS = ["LoRA", "DoRA", "bias all, DoRA", "modules_to_save, bias all", "lora_bias"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
every_dtype = pytest.mark.parametrize("dtype", twins.TOLERANCE)


class Training:
    """A model of either side with its optimizer, and the steps that it has taken."""

    def __init__(self, model, optimizer, named=True):
        self.model, self.taken = model.train(), 0
        name, options = OPTIMIZERS[optimizer]
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.theirs = isinstance(model, torch.nn.Module)
        self.names = [n for n, _ in trained]
        library = torch.optim if self.theirs else ld
        params = trained if self.theirs and named else [p for _, p in trained]
        self.optimizer = getattr(library, name)(params, **options)

    def go_on(self, steps, dtype):
        """Take some steps, each on another batch."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            twins.backward(self.model, *twins.data(dtype, seed=self.taken))
            self.optimizer.step()
            self.taken += 1
        return self


def start(kind, dtype, folder):
    """Return the base there, and a model here and there that start from the same adapter."""
    net = twins.net(dtype)
    theirs = twins.adapt(net, **twins.KINDS[kind])
    theirs.save_pretrained(str(folder))
    return twins.load(twins.twin(net), folder, is_trainable=True), theirs


def hand_over(one, other, folder):
    """Let ``other``, of the other side, go on with the adapter and the optimizer of ``one``."""
    one.model.save_pretrained(str(folder))
    there, here = (one, other) if one.theirs else (other, one)
    names = None if "param_names" in there.optimizer.param_groups[0] else there.names
    torch.save(there.optimizer.state_dict(), folder / "optimizer.pt")
    state = torch.load(folder / "optimizer.pt")
    if one.theirs:
        ld.set_peft_model_state_dict(here.model, twins.on_disk(folder))
        ld.optimizer_from_torch(here.optimizer, here.model, state, names)
    else:
        twins.peft.set_peft_model_state_dict(
            there.model, {k: torch.from_numpy(a) for k, a in twins.on_disk(folder).items()}
        )
        state = ld.optimizer_to_torch(here.optimizer, here.model, state, names)
        there.optimizer.load_state_dict(state)
    other.taken = one.taken


@every_dtype
@every_optimizer
@every_kind
@pytest.mark.parametrize("named", [True, False])
def test_a_training_goes_there_and_comes_back(kind, optimizer, dtype, named, tmp_path):
    """Ten steps here, ten there and ten here are thirty on either side."""
    here, there = (Training(m, optimizer, named) for m in start(kind, dtype, tmp_path))
    whole = [Training(m, optimizer) for m in start(kind, dtype, tmp_path)]
    for one, other in ((here, there), (there, here)):
        one.go_on(10, dtype)
        hand_over(one, other, tmp_path)
    here.go_on(10, dtype)
    for training in whole:
        training.go_on(30, dtype)
        twins.agree(twins.trained(here.model), twins.trained(training.model))


@every_optimizer
@every_kind
def test_both_sides_remember_the_same_under_the_same_names(kind, optimizer, tmp_path):
    """The file is PyTorch's flattened state: as its own function makes it, and read from that."""
    here, there = (
        Training(m, optimizer).go_on(3, "float32") for m in start(kind, "float32", tmp_path)
    )
    ld.save_optimizer(tmp_path / "here.safetensors", here.optimizer, here.model)
    ours = safetensors.load_file(tmp_path / "here.safetensors")
    flat = distributed.StateDictOptions(flatten_optimizer_state_dict=True)
    state = distributed.get_optimizer_state_dict(there.model, there.optimizer, options=flat)
    theirs = {
        key: torch.as_tensor(value)
        for key, value in state.items()
        if value is not None and not key.endswith("param_names")
    }
    assert {key for key in theirs if key.startswith("state.")} <= set(ours) <= set(theirs)
    for key, value in ours.items():
        assert value.shape == theirs[key].shape
        np.testing.assert_allclose(value, theirs[key], rtol=1e-6, atol=1e-6)

    safetensors.save_file(theirs, tmp_path / "there.safetensors")
    again = Training(here.model, optimizer)
    ld.load_optimizer(tmp_path / "there.safetensors", again.optimizer, again.model)
    twins.agree(remembered(again), remembered(here))


def remembered(training):
    """Return the moments here, by name."""
    ids = {p: name for name, p in training.model.named_parameters()}
    return {
        f"{ids[p]}.{name}": np.asarray(value, np.float32)
        for p, state in training.optimizer.state.items()
        for name, value in state.items()
    }


@every_dtype
def test_a_state_by_name_is_read_as_pytorch_returns_it(dtype, tmp_path):
    """That of ``torch.distributed.checkpoint`` is nested, with names in the place of numbers."""
    here, there = (Training(m, "AdamW") for m in start("DoRA", dtype, tmp_path))
    there.go_on(4, dtype)
    state = distributed.get_optimizer_state_dict(there.model, there.optimizer)
    ld.optimizer_from_torch(here.optimizer, here.model, state)
    numbered = Training(here.model, "AdamW")
    ld.optimizer_from_torch(numbered.optimizer, here.model, there.optimizer.state_dict())
    twins.agree(remembered(here), remembered(numbered), tolerance=0)


def test_groups_may_differ_if_their_options_agree(tmp_path):
    """LoRA+ has three groups here and four in PEFT; a single one there cannot hold two rates."""
    from peft.optimizers import create_loraplus_optimizer

    ours, theirs = start("bias all, DoRA", "float32", tmp_path)
    here = ld.AdamW(ld.lora_plus(ours, 0.01, 4.0, weight_decay=0.3))
    for _ in range(3):
        here.zero_grad()
        twins.backward(ours, *twins.data())
        here.step()
    one = torch.optim.AdamW(p for p in theirs.named_parameters() if p[1].requires_grad)
    with pytest.raises(
        ValueError, match=r"lr is 0\.04 for .* and 0\.01 for .*, which are one group there"
    ):
        ld.optimizer_to_torch(here, ours, one.state_dict())

    there = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=1.0, loraplus_weight_decay=0.3
    )
    known = {id(p): name for name, p in theirs.named_parameters()}
    names = [known[id(p)] for group in there.param_groups for p in group["params"]]
    with pytest.raises(ValueError, match=r"weight_decay is .* one group there"):  # see lora_plus
        ld.optimizer_to_torch(here, ours, there.state_dict(), names)
    for group in here.param_groups:
        group["weight_decay"] = 0.3
    there.load_state_dict(ld.optimizer_to_torch(here, ours, there.state_dict(), names))
    assert {(g["lr"], g["weight_decay"]) for g in there.param_groups if g["params"]} == {
        (0.01, 0.3),
        (0.04, 0.3),
    }
    back = ld.AdamW(ld.lora_plus(ours, 1.0, 1.0))
    ld.optimizer_from_torch(back, ours, there.state_dict(), names)
    np.testing.assert_equal(back.state_dict(), here.state_dict())


def test_a_schedule_there_leaves_the_rate_that_it_began_with(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    schedule = torch.optim.lr_scheduler.LinearLR(there.optimizer, 1.0, 0.0, total_iters=20)
    for _ in range(10):
        there.go_on(1, "float32")
        schedule.step()
    here.optimizer.param_groups[0]["lr"] = 0.5
    ld.optimizer_from_torch(here.optimizer, here.model, there.optimizer.state_dict())
    assert here.optimizer.param_groups[0]["lr"] == 0.01
    here.optimizer.param_groups[0]["lr"] = 0.5
    state = ld.optimizer_to_torch(here.optimizer, here.model, there.optimizer.state_dict())
    assert state["param_groups"][0]["lr"] == state["param_groups"][0]["initial_lr"] == 0.5


def test_what_only_pytorch_has_stays_as_it_is_there(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    there.optimizer.param_groups[0]["foreach"] = True
    state = ld.optimizer_to_torch(
        here.go_on(2, "float32").optimizer, here.model, there.optimizer.state_dict()
    )
    there.optimizer.load_state_dict(state)
    assert there.optimizer.param_groups[0]["foreach"] is True


REFUSED = {
    "amsgrad": (lambda p: torch.optim.AdamW(p, amsgrad=True), "no amsgrad=True here"),
    "maximize": (lambda p: torch.optim.AdamW(p, maximize=True), "no maximize=True here"),
    "Adam with decay": (
        lambda p: torch.optim.Adam(p, weight_decay=0.1),
        "no decoupled_weight_decay=False here",
    ),
    "SGD": (lambda p: torch.optim.SGD(p, momentum=0.9), "missing betas of"),
    "RMSprop": (lambda p: torch.optim.RMSprop(p), "missing betas of"),
    "RAdam": (lambda p: torch.optim.RAdam(p), "no amsgrad=unknown here"),
    "NAdam": (lambda p: torch.optim.NAdam(p), "no momentum_decay=0.004 here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_formula_is_refused_in_both_directions(case, tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    make, message = REFUSED[case]
    there.optimizer = make([(n, p) for n, p in there.model.named_parameters() if p.requires_grad])
    state = there.go_on(2, "float32").optimizer.state_dict()
    before = here.go_on(1, "float32").optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        ld.optimizer_from_torch(here.optimizer, here.model, state)
    np.testing.assert_equal(here.optimizer.state_dict(), before)
    message = message.replace("missing betas of", "it does not belong to AdamW: it has no betas")
    with pytest.raises(ValueError, match=message):
        ld.optimizer_to_torch(here.optimizer, here.model, state)


def test_another_formula_is_refused_in_a_file_of_pytorch_too(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    trained = [(n, p) for n, p in there.model.named_parameters() if p.requires_grad]
    there.optimizer = torch.optim.RAdam(trained)
    flat = distributed.StateDictOptions(flatten_optimizer_state_dict=True)
    optimizer = there.go_on(2, "float32").optimizer
    state = distributed.get_optimizer_state_dict(there.model, optimizer, options=flat)
    kept = {k: v for k, v in state.items() if v is not None and not k.endswith("param_names")}
    tensors = {key: torch.as_tensor(value) for key, value in kept.items()}
    safetensors.save_file(tensors, tmp_path / "there.safetensors")
    with pytest.raises(ld.CheckpointError, match="no amsgrad=unknown here"):
        ld.load_optimizer(tmp_path / "there.safetensors", here.optimizer, here.model)


@pytest.mark.parametrize("options", [{"nesterov": True}, {"dampening": 0.1}, {"weight_decay": 0.1}])
def test_another_sgd_is_refused(options, tmp_path):
    here, there = (Training(m, "SGD with momentum") for m in start("LoRA", "float32", tmp_path))
    there.optimizer = torch.optim.SGD(there.model.named_parameters(), momentum=0.9, **options)
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"no {name}={value} here"):
        ld.optimizer_from_torch(here.optimizer, here.model, there.optimizer.state_dict())


@pytest.mark.parametrize(("ours", "theirs", "fits"), [(0.5, 0, False), (0, 0.5, True)])
def test_the_decay_that_counts_there_is_ours(ours, theirs, fits, tmp_path):
    """Adam would take our decay for a part of the gradient."""
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    here.optimizer.param_groups[0]["weight_decay"] = ours
    adam = torch.optim.Adam(there.optimizer.param_groups[0]["params"], weight_decay=theirs)
    if fits:
        state = ld.optimizer_to_torch(here.optimizer, here.model, adam.state_dict(), there.names)
        assert state["param_groups"][0]["weight_decay"] == ours
    else:
        with pytest.raises(ValueError, match="no decoupled_weight_decay=False here"):
            ld.optimizer_to_torch(here.optimizer, here.model, adam.state_dict(), there.names)


def test_moments_that_would_be_lost_there_are_named(tmp_path):
    """If only the other side has trained a parameter, its moments are kept, or the state is refused."""
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    head = "base_model.model.layers.4.weight"
    there.model.get_parameter(head).requires_grad_(True)
    wide = Training(there.model, "AdamW").go_on(2, "float32").optimizer.state_dict()
    with pytest.raises(ValueError, match=f"unexpected {head}"):
        ld.optimizer_to_torch(here.go_on(2, "float32").optimizer, here.model, wide)

    A = "base_model.model.layers.0.lora_A.default.weight"
    named = [(n, p) for n, p in there.model.named_parameters() if p.requires_grad and n != A]
    for _ in range(2):  # trained here, or frozen by now
        state = torch.optim.AdamW(named).state_dict()
        with pytest.raises(ValueError, match=f"missing {A}"):
            ld.optimizer_to_torch(here.optimizer, here.model, state)
        here.model.requires_grad_(False)


def test_moments_of_another_shape_are_refused_before_they_go(tmp_path):
    here = Training(start("LoRA", "float32", tmp_path)[0], "AdamW").go_on(1, "float32")
    options = twins.KINDS["LoRA"] | {"r": 5}
    there = Training(twins.adapt(twins.net(), **options), "AdamW").go_on(1, "float32")
    with pytest.raises(
        ValueError, match=r"lora_A.*exp_avg has the shape \(5, 7\), and \(3, 7\) here"
    ):
        ld.optimizer_to_torch(here.optimizer, here.model, there.optimizer.state_dict())


def test_a_step_there_does_not_change_what_is_here(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("DoRA", "float32", tmp_path))
    hand_over(here.go_on(2, "float32"), there, tmp_path)
    before = here.optimizer.state_dict()
    there.go_on(3, "float32")
    np.testing.assert_equal(here.optimizer.state_dict(), before)
    hand_over(there, here, tmp_path)
    before = here.optimizer.state_dict()
    there.go_on(3, "float32")
    np.testing.assert_equal(here.optimizer.state_dict(), before)


def test_options_may_be_tensors(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float64", tmp_path))
    trained = [(n, p) for n, p in there.model.named_parameters() if p.requires_grad]
    rate, *betas = (torch.tensor(value, dtype=torch.float64) for value in (0.02, 0.5, 0.75))
    there.optimizer = torch.optim.AdamW(trained, lr=rate, betas=tuple(betas), foreach=False)
    hand_over(there.go_on(3, "float64"), here, tmp_path)
    group = here.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.02, (0.5, 0.75))
    twins.agree(
        twins.trained(here.go_on(3, "float64").model),
        twins.trained(there.go_on(3, "float64").model),
    )


@pytest.mark.parametrize("kind", ["DoRA", "modules_to_save, bias all", "lora_bias"])
def test_another_name_of_the_adapter_is_a_part_of_the_names(kind, tmp_path):
    net, options = twins.net(), twins.COMMON | twins.KINDS[kind]
    theirs = twins.peft.get_peft_model(net, twins.peft.LoraConfig(**options), adapter_name="new")
    ours = ld.get_peft_model(twins.twin(twins.net()), ld.LoraConfig(**options), "new", rng=0)
    names = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert {name for p, name in ours.torch_names().items() if p.requires_grad} == names


def test_unfrozen_weights_of_the_base_have_pefts_names(tmp_path):
    ours, theirs = start("DoRA", "float32", tmp_path)
    ours.requires_grad_(True)
    assert set(ours.torch_names().values()) == {name for name, _ in theirs.named_parameters()}


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
        lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
        lambda o: o.param_groups[0].update(name="decay"),
    ],
)
def test_what_schedules_write_into_a_group_is_no_other_formula(make, tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    make(there.optimizer)
    hand_over(there.go_on(2, "float32"), here, tmp_path)
    hand_over(here.go_on(2, "float32"), there, tmp_path)


def test_a_state_by_name_needs_no_other_names(tmp_path):
    """An optimizer that knows no names, asked by PyTorch's own function, which does."""
    here, there = (Training(m, "AdamW", named=False) for m in start("LoRA", "float32", tmp_path))
    there.go_on(2, "float32")
    state = distributed.get_optimizer_state_dict(there.model, there.optimizer)
    assert "param_names" not in state["param_groups"][0]
    ld.optimizer_from_torch(here.optimizer, here.model, state)
    other = Training(here.model, "AdamW")
    ld.optimizer_from_torch(other.optimizer, here.model, there.optimizer.state_dict(), there.names)
    twins.agree(remembered(here), remembered(other), tolerance=0)


def test_adam_without_decay_is_adamw(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    here.optimizer.param_groups[0]["weight_decay"] = 0.0
    there.optimizer = torch.optim.Adam(there.model.named_parameters(), lr=0.01)
    hand_over(here.go_on(5, "float32"), there, tmp_path)
    twins.agree(
        twins.trained(here.go_on(5, "float32").model),
        twins.trained(there.go_on(5, "float32").model),
    )


def test_moments_that_are_no_arrays_are_named(tmp_path):
    here, there = (Training(m, "AdamW") for m in start("LoRA", "float32", tmp_path))
    state = there.go_on(1, "float32").optimizer.state_dict()
    state["state"][1]["exp_avg"] = state["state"][1]["exp_avg"].bfloat16()
    name = r"base_model\.model\.layers\.0\.lora_B\.default\.weight\.exp_avg"
    with pytest.raises(TypeError, match=f"{name} must be a float32 or float64 tensor on the CPU"):
        ld.optimizer_from_torch(here.optimizer, here.model, state)


def test_moments_of_float64_are_not_rounded_without_a_word(tmp_path: Path) -> None:
    here = Training(start("LoRA", "float32", tmp_path)[0], "AdamW")
    there = Training(start("LoRA", "float64", tmp_path)[1], "AdamW").go_on(1, "float64")
    with pytest.raises(
        ValueError, match=r"base_model\..*\.exp_avg is float64 .*, expected float32"
    ):
        ld.optimizer_from_torch(here.optimizer, here.model, there.optimizer.state_dict())
