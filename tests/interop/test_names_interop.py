"""What PyTorch and PEFT name like we do is told apart in errors."""

import re

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)

X, LABELS = np.ones((2, 4), np.float32), [0, 1]


def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 3))


def base():
    return ld.Sequential(ld.Linear(4, 3, rng=0))


def adapted():
    return ld.get_peft_model(base(), ld.LoraConfig(r=2, target_modules=["0"]), rng=0)


def theirs():
    return peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["0"]))


def tensor():
    return torch.ones(2, 4, requires_grad=True)


def adamw():
    return torch.optim.AdamW(net().parameters())


def ours():
    return ld.AdamW(base().parameters())


def fit(model, optimizer):
    return list(ld.fit(model, X, LABELS, optimizer=optimizer, steps=1, rng=0))


#: A call, and what its error must name.
CALLS = {
    "a result to check": (
        lambda file: mg.gradcheck(lambda a: torch.ones((), dtype=torch.float64), np.ones(2)),
        "torch.Tensor",
    ),
    "an input to check": (
        lambda file: mg.gradcheck(mg.exp, torch.ones(2, dtype=torch.float64)),
        "torch.Tensor",
    ),
    "a result to differentiate": (
        lambda file: mg.grad(tensor(), mg.Tensor(1.0, requires_grad=True)),
        "torch.Tensor",
    ),
    "what to differentiate by": (
        lambda file: mg.grad(mg.Tensor(1.0, requires_grad=True) * 1, [tensor()]),
        "torch.Tensor",
    ),
    "a layer to adapt": (
        lambda file: ld.DoRALinear(torch.nn.Linear(2, 3), r=1, lora_alpha=1),
        "torch.nn.modules.linear.Linear",
    ),
    "a part": (
        lambda file: ld.Sequential(torch.nn.Linear(2, 3)),
        "torch.nn.modules.linear.Linear",
    ),
    "an attribute": (
        lambda file: setattr(base(), "extra", torch.nn.Linear(2, 3)),
        "torch.nn.modules.linear.Linear",
    ),
    "a parameter": (
        lambda file: setattr(base(), "extra", torch.nn.Parameter(torch.ones(2))),
        "torch.nn.parameter.Parameter",
    ),
    "a base": (
        lambda file: ld.get_peft_model(net(), ld.LoraConfig(r=2, target_modules=["0"])),
        "torch.nn.modules.container.Sequential: build it of loradora's layers",
    ),
    "a config": (
        lambda file: ld.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0"])),
        "peft.tuners.lora.config.LoraConfig: ld.LoraConfig.from_dict(config.to_dict())",
    ),
    "another config": (
        lambda file: adapted().add_adapter("b", peft.LoraConfig(r=2, target_modules=["0"])),
        "peft.tuners.lora.config.LoraConfig: ld.LoraConfig.from_dict(config.to_dict())",
    ),
    "an adapted model": (
        lambda file: ld.get_peft_model_state_dict(theirs()),
        "peft.peft_model.PeftModel",
    ),
    "a base for a file": (
        lambda file: ld.PeftModel.from_pretrained(net(), file),
        "torch.nn.modules.container.Sequential",
    ),
    "a model to train": (lambda file: fit(net(), ours()), "torch.nn.modules.container.Sequential"),
    "an optimizer": (lambda file: fit(base(), adamw()), "torch.optim.adamw.AdamW"),
    "a model to evaluate": (
        lambda file: ld.evaluate(net(), X, LABELS),
        "torch.nn.modules.container.Sequential",
    ),
    "parameters": (lambda file: ld.AdamW(net().parameters()), "torch.nn.parameter.Parameter"),
    "gradients to clip": (
        lambda file: ld.clip_grad_norm_(net().parameters(), 1.0),
        "torch.nn.parameter.Parameter",
    ),
    "groups": (lambda file: ld.lora_plus(theirs(), lr=0.1), "peft.peft_model.PeftModel"),
    "a model to save": (
        lambda file: ld.save_model(file, net()),
        "torch.nn.modules.container.Sequential",
    ),
    "a model to load": (
        lambda file: ld.load_model(file, net()),
        "torch.nn.modules.container.Sequential",
    ),
    "a file in the place of a model": (lambda file: ld.save_model(base(), file), "not a str"),
    "an optimizer to save": (
        lambda file: ld.save_optimizer(file, adamw(), base()),
        "torch.optim.adamw.AdamW",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_has_the_same_name_in_pytorch_or_peft_is_named_with_its_module(name, tmp_path):
    call, named = CALLS[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(named)):
        call(str(tmp_path / "file.npz"))
    assert list(tmp_path.iterdir()) == []


def test_what_numpy_has_no_numbers_for_is_named():
    words = r"NumPy has no bfloat16: give float32, as by \.float\(\)"
    with pytest.raises(TypeError, match=rf"^0\.weight: {words}"):
        base().load_state_dict(net().bfloat16().state_dict())
    with pytest.raises(TypeError, match=rf"^{words}"):
        mg.exp(torch.ones(2, dtype=torch.bfloat16))
    state = {key: a.bfloat16() for key, a in peft.get_peft_model_state_dict(theirs()).items()}
    with pytest.raises(TypeError, match=rf"0\.lora_A\.weight: {words}"):
        ld.set_peft_model_state_dict(adapted(), state)
    base().load_state_dict(net().bfloat16().float().state_dict())


def test_peft_s_config_becomes_ours_as_the_error_says():
    config = ld.LoraConfig.from_dict(peft.LoraConfig(r=2, target_modules=["0"]).to_dict())
    assert config == ld.LoraConfig(r=2, target_modules=["0"])
