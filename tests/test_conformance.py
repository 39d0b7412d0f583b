"""What PEFT's own tests promise for a multilayer perceptron, kept for LoRA and DoRA alike.

The net and the input are theirs: 10 → 20 → ReLU → dropout ½ → 2 → log-softmax on ``arange(90)`` (here
divided by 20, so that their learning rate of ½ does not run away).
Where PEFT breaks a promise of its own, it is kept here or refused in so many words.
"""

import copy
import json
import math
import pickle
import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora.low_rank import LowRankLinear

X = np.arange(90.0, dtype=np.float32).reshape(9, 10)


class Net(ld.Module):
    def __init__(self, seed=0, bias=True):
        rng = np.random.default_rng(seed)
        self.lin0 = ld.Linear(10, 20, bias=bias, rng=rng)
        self.relu = ld.ReLU()
        self.drop = ld.Dropout(0.5, rng=rng)
        self.lin1 = ld.Linear(20, 2, bias=bias, rng=rng)

    def forward(self, x):
        return mg.log_softmax(self.lin1(self.drop(self.relu(self.lin0(x / 20)))), axis=-1)


METHODS = {
    "LoRA": {"target_modules": ["lin0"]},
    "LoRA on both": {"target_modules": ["lin0", "lin1"]},
    "rsLoRA": {"target_modules": ["lin0", "lin1"], "use_rslora": True},
    "LoRA with dropout": {"target_modules": ["lin0"], "lora_dropout": 0.1},
    "LoRA with lora_bias": {"target_modules": ["lin0"], "lora_bias": True},
    "DoRA": {"target_modules": ["lin0"], "use_dora": True},
    "DoRA on both": {"target_modules": ["lin0", "lin1"], "use_dora": True},
    "rsDoRA": {"target_modules": ["lin0", "lin1"], "use_dora": True, "use_rslora": True},
    "LoRA and a whole layer": {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
}
LORA, DORA = METHODS["LoRA on both"], METHODS["DoRA on both"]
every_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
lora_and_dora = pytest.mark.parametrize("options", [LORA, DORA], ids=["LoRA", "DoRA"])


def config(**options):
    return ld.LoraConfig(**{"r": 8, "lora_alpha": 8, "target_modules": ["lin0", "lin1"], **options})


def adapted(seed=0, base=None, name="default", **options):
    rng = np.random.default_rng(seed)
    return ld.get_peft_model(Net() if base is None else base, config(**options), name, rng=rng)


def train(model, steps=3, lr=0.5):
    """Take the steps of PEFT's tests: plain gradient descent on the mean of the outputs."""
    model.train()
    optimizer = ld.SGD(model.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).mean().backward()
        optimizer.step()
    return model.eval()


def trained(*args, **options):
    return train(adapted(*args, **options))


def out(model):
    return model.eval()(X).data


def tensors(model):
    return {name: p.data.copy() for name, p in model.named_parameters()}


def layers(model):
    return {
        path.removeprefix("base_model."): m
        for path, m in model.named_modules()
        if isinstance(m, LowRankLinear)
    }


def far(a, b, by=1e-4):
    return np.abs(a - b).max() > by


BASE = out(Net())

# ----------------------------------------------------------------------------- 1–4: initialisation


@lora_and_dora
def test_01_by_default_A_is_uniform_and_B_exactly_zero(options):
    layer = layers(adapted(**options | {"r": 200}))["lin0"]
    A, bound = layer.A.data, 1 / math.sqrt(10)
    assert np.abs(A).max() <= bound
    assert_allclose(
        np.quantile(A, [0.1, 0.25, 0.5, 0.75, 0.9]) / bound, [-0.8, -0.5, 0, 0.5, 0.8], atol=0.06
    )
    assert not np.any(layer.B.data)


@lora_and_dora
def test_02_gaussian_A_is_normal_with_deviation_1_over_r_and_B_zero(options):
    layer = layers(adapted(init_lora_weights="gaussian", **options | {"r": 200}))["lin0"]
    A = layer.A.data * 200
    assert_allclose(np.quantile(A, [0.159, 0.5, 0.841]), [-1, 0, 1], atol=0.1)
    assert not np.any(layer.B.data)


@lora_and_dora
def test_03_without_initialisation_B_is_not_zero(options):
    for layer in layers(adapted(init_lora_weights=False, **options)).values():
        assert np.all(layer.B.data != 0)


@lora_and_dora
def test_04_orthogonal_initialisation_has_BA_zero_and_an_even_rank(options):
    for layer in layers(adapted(init_lora_weights="orthogonal", **options)).values():
        assert np.abs(layer.B.data @ layer.A.data).max() < 1e-6
        assert np.any(layer.B.data)
    with pytest.raises(ValueError, match="even r, not 7"):
        adapted(init_lora_weights="orthogonal", **options | {"r": 7})


# ----------------------------------------------------------------------------- 5–6: scaling, patterns


@pytest.mark.parametrize(("use_rslora", "power"), [(False, 1), (True, 0.5)])
@lora_and_dora
def test_05_the_scaling_is_alpha_over_r_or_its_root_with_patterns_too(options, use_rslora, power):
    patterns = {"rank_pattern": {"lin1": 2}, "alpha_pattern": {"lin0": 5}}
    model = adapted(**options, lora_alpha=6, use_rslora=use_rslora, **patterns)
    found = {path: layer.scaling for path, layer in layers(model).items()}
    assert found == {"lin0": pytest.approx(5 / 8**power), "lin1": pytest.approx(6 / 2**power)}


def test_06_patterns_match_whole_names_and_do_not_disturb_each_other():
    class Deep(ld.Module):
        def __init__(self):
            self.foo, self.barfoo, self.x = (ld.Linear(4, 4), ld.Linear(4, 4), ld.Sequential())
            self.x.foo = ld.Linear(4, 4)

    def found(**patterns):
        model = ld.get_peft_model(Deep(), config(target_modules="all-linear", **patterns))
        return {path: (m.r, m.scaling * m.r) for path, m in layers(model).items()}

    plain = (8, 8)
    assert found(rank_pattern={"foo": 2}) == {"foo": (2, 8), "barfoo": plain, "x.foo": (2, 8)}
    assert found(rank_pattern={"^foo": 2}) == {"foo": (2, 8), "barfoo": plain, "x.foo": plain}
    assert found(rank_pattern={"x.foo": 2}, alpha_pattern={"foo": 4}) == {
        "foo": (8, 4),
        "barfoo": plain,
        "x.foo": (2, 4),
    }


# ----------------------------------------------------------------------------- 7–13: training, on and off


@every_method
def test_07_at_the_start_the_model_is_the_base_unless_init_is_false(options):
    model = adapted(**options)
    assert_array_equal(out(model), BASE)
    with model.disable_adapter():
        assert_array_equal(out(model), BASE)
    assert far(out(adapted(init_lora_weights=False, **options)), BASE)


@every_method
def test_08_three_steps_change_every_adapter_tensor_and_no_other(options):
    model = adapted(**options)
    before = tensors(model)
    train(model)
    whole = [f"lin1.{n}" for n in ("weight", "bias") if "modules_to_save" in options]
    for name, p in model.named_parameters():
        own = name.rpartition(".")[2] in ("A", "B", "B_bias", "m")
        if own or name.removeprefix("base_model.") in whole:
            assert far(p.data, before[name]), name
        else:
            assert p.data.tobytes() == before[name].tobytes(), name


def test_09_the_magnitude_gets_a_gradient():
    model = adapted(**DORA)
    model(X).sum().backward()
    for layer in layers(model).values():
        assert np.all(np.isfinite(layer.m.grad))
        assert np.any(layer.m.grad)


@every_method
def test_10_trained_differs_disabled_is_the_base_enabled_again_is_trained(options):
    model = trained(**options)
    after = out(model)
    assert far(after, BASE)
    with model.disable_adapter():
        assert_array_equal(out(model), BASE)
    assert_array_equal(out(model), after)


@every_method
def test_11_the_same_holds_around_a_merge(options):
    model = trained(**options)
    after = out(model)
    assert_allclose(out(model.merge_and_unload()), after, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert_array_equal(out(model), BASE)
        assert_array_equal(out(model.merge_and_unload()), BASE)
    assert_array_equal(out(model), after)


@every_method
def test_12_leaving_disable_adapter_restores_what_was_before(options):
    model = trained(**options)
    after, flags = out(model), [p.requires_grad for p in model.parameters()]
    with model.disable_adapter():
        with pytest.raises(ZeroDivisionError), model.disable_adapter():
            raise ZeroDivisionError
        assert_array_equal(out(model), BASE)
    assert_array_equal(out(model), after)
    with pytest.raises(ZeroDivisionError), model.disable_adapter():
        raise ZeroDivisionError
    assert_array_equal(out(model), after)
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@lora_and_dora
def test_13_with_trained_biases_the_base_is_restored_exactly_so_nothing_warns(options, bias):
    model = trained(bias=bias, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.disable_adapter():
            assert_array_equal(out(model), BASE)
    assert far(out(model), BASE)
    assert_allclose(out(model.merge_and_unload()), out(model), rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------- 14–18: merging


@every_method
def test_14_merged_is_live_plain_different_from_the_base_and_can_be_pickled(options):
    model = trained(**options)
    merged = model.merge_and_unload()
    assert type(merged) is Net
    assert not layers(merged)
    assert_allclose(out(merged), out(model), rtol=1e-5, atol=1e-5)
    assert far(out(merged), BASE)
    assert_array_equal(out(pickle.loads(pickle.dumps(merged))), out(merged))
    assert_array_equal(out(pickle.loads(pickle.dumps(model))), out(model))


@every_method
def test_15_merging_twice_changes_nothing(options):
    model = trained(**options)
    first, second = model.merge_and_unload(), model.merge_and_unload()
    assert all(
        a.tobytes() == second.state_dict()[n].tobytes() for n, a in first.state_dict().items()
    )


@every_method
def test_16_nan_in_an_adapter_is_refused_at_merge_with_the_weights_intact(options):
    names = [name for name, p in trained(**options).named_parameters() if p.requires_grad]
    for name in names:
        model = trained(**options)
        dict(model.named_parameters())[name].data.flat[0] = np.nan
        before = tensors(model)
        with pytest.raises(
            ValueError, match=f"NaN or infinity in {re.escape(name.split('.', 1)[1])}"
        ):
            model.merge_and_unload()
        assert all(a.tobytes() == before[n].tobytes() for n, a in tensors(model).items())
        with model.disable_adapter():
            assert_array_equal(out(model), BASE)


def test_17_a_lora_bias_on_a_layer_without_bias_cannot_be_merged():
    model = trained(base=Net(bias=False), lora_bias=True)
    with pytest.raises(ValueError, match="lora_bias into a layer without a bias"):
        model.merge_and_unload()


@lora_and_dora
def test_18_after_a_change_merge_and_disable_W0_is_what_it_was_bit_by_bit(options):
    base = Net()
    W0 = base.lin0.weight.data.tobytes()
    model = trained(base=base, **options)
    layer = layers(model)["lin0"]
    moved = getattr(layer, "m", layer.B)
    model.merge_and_unload()
    moved.data = moved.data + 0.5
    model.merge_and_unload()
    assert base.lin0.weight.data.tobytes() == layer.base_layer.weight.data.tobytes() == W0


# ----------------------------------------------------------------------------- 19–22: files

needs_safetensors = pytest.mark.usefixtures("safetensors_is_installed")


@pytest.fixture
def safetensors_is_installed():
    pytest.importorskip("safetensors", reason="PEFT's file format needs safetensors")


@needs_safetensors
@every_method
def test_19_a_folder_restores_the_model_under_another_seed_without_a_warning(options, tmp_path):
    model = trained(**options)
    model.save_pretrained(tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        file.name for file in tmp_path.iterdir()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ld.PeftModel.from_pretrained(Net(), tmp_path)
    assert_array_equal(out(loaded), out(model))
    assert {n: a.tobytes() for n, a in tensors(loaded).items()} == {
        n: a.tobytes() for n, a in tensors(model).items()
    }


NAMES = ["default2", "other_default", "foodefault_bar", "efaul"]


@needs_safetensors
def test_20_adapters_with_similar_names_do_not_leak_into_each_other(tmp_path):
    model = trained()
    for seed, name in enumerate(NAMES, 1):
        model.add_adapter(name, config(r=seed), rng=np.random.default_rng(seed))
        model.set_adapter(name)
        train(model)
    model.save_pretrained(tmp_path)
    folders = {"default": tmp_path, **{name: tmp_path / name for name in NAMES}}
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == set(NAMES)
    for name, folder in folders.items():
        loaded = ld.PeftModel.from_pretrained(Net(), folder)
        model.set_adapter(name)
        assert_array_equal(out(loaded), out(model))
        assert len(loaded._adapters["default"].trained) == 4


@needs_safetensors
def test_20b_one_adapter_alone_can_be_saved(tmp_path):
    model = trained()
    model.add_adapter("other", config(r=1))
    model.save_pretrained(tmp_path / "peft", selected_adapters=["other"])
    assert [p.name for p in (tmp_path / "peft").iterdir()] == ["other"]
    assert (
        ld.PeftModel.from_pretrained(Net(), tmp_path / "peft" / "other").peft_config["default"].r
        == 1
    )
    with pytest.raises(ValueError, match="no adapter named 'else'"):
        model.save_pretrained(tmp_path / "none", selected_adapters=["else"])
    assert not (tmp_path / "none").exists()
    model.save_adapter(tmp_path / "other.npz", "other")
    loaded = ld.PeftModel.from_pretrained(Net(), tmp_path / "other.npz", "renamed")
    assert loaded.active_adapter == "renamed"
    assert loaded.peft_config["renamed"].r == 1


@needs_safetensors
def test_21_a_magnitude_on_disk_has_no_weight_in_its_name(tmp_path):
    import safetensors.numpy

    trained(**DORA).save_pretrained(tmp_path)
    keys = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors").keys()
    assert sorted(key for key in keys if "magnitude" in key) == [
        "base_model.model.lin0.lora_magnitude_vector",
        "base_model.model.lin1.lora_magnitude_vector",
    ]


@needs_safetensors
@lora_and_dora
def test_22_the_name_of_an_adapter_makes_no_difference_to_its_numbers(options, tmp_path):
    one, other = trained(name="default", **options), trained(name="custom", **options)
    assert_array_equal(out(one), out(other))
    one.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    files = [folder / "adapter_model.safetensors" for folder in (tmp_path, tmp_path / "custom")]
    assert files[0].read_bytes() == files[1].read_bytes()


# ----------------------------------------------------------------------------- 23–27: several adapters


@lora_and_dora
def test_23_the_active_adapter_is_named_and_others_can_be_chosen(options):
    model = trained(**options | {"target_modules": ["lin0"]})
    first = out(model)
    model.add_adapter("other", config(**options | {"target_modules": ["lin1"]}))
    assert list(model.peft_config) == ["default", "other"]
    assert (model.active_adapter, model.active_adapters) == ("default", ["default"])
    assert_array_equal(out(model), first)
    model.set_adapter("other")
    assert (model.active_adapter, model.active_adapters) == ("other", ["other"])
    assert list(layers(model)) == ["lin1"]
    assert_array_equal(out(model), BASE)
    model.set_adapter("default")
    assert list(layers(model)) == ["lin0"]
    assert_array_equal(out(model), first)


@lora_and_dora
def test_23b_a_name_that_is_taken_is_refused_without_mutation(options, tmp_path):
    model = trained(**options)
    model.save_adapter(tmp_path / "a.npz")
    before = tensors(model)
    for attempt in (
        lambda: model.add_adapter("default", config(**options | {"r": 1})),
        lambda: model.add_weighted_adapter(["default"], [1.0], "default"),
        lambda: model.load_adapter(tmp_path / "a.npz", "default"),
    ):
        with pytest.raises(ValueError, match="there is an adapter named 'default' already"):
            attempt()
    assert list(model.peft_config) == ["default"]
    assert model.peft_config["default"].r == 8
    assert all(a.tobytes() == before[n].tobytes() for n, a in tensors(model).items())


@lora_and_dora
def test_24_adapters_are_deleted_inactive_active_or_last_but_not_unknown(options):
    model = trained(**options)
    first, count = out(model), model.get_nb_trainable_parameters()[0]
    for name in ("b", "c"):
        model.add_adapter(name, config(**options))
    model.delete_adapter("b")
    assert (model.active_adapters, list(model.peft_config)) == (["default"], ["default", "c"])
    assert_array_equal(out(model), first)
    model.delete_adapter("default")
    assert (model.active_adapters, list(model.peft_config)) == (["c"], ["c"])
    assert model.get_nb_trainable_parameters()[0] == count
    assert_array_equal(out(model), BASE)
    with pytest.raises(ValueError, match="no adapter named 'b'"):
        model.delete_adapter("b")
    model.delete_adapter("c")
    assert (model.active_adapters, list(model.peft_config)) == ([], [])
    assert_array_equal(out(model), BASE)
    assert not model.trainable_parameters()
    with pytest.raises(ValueError, match="no adapter left"):
        _ = model.active_adapter
    assert "active: none" in repr(model)


def two(other=None, **options):
    """Return a model with the trained adapters "default" and "other"."""
    model = train(adapted(**options), lr=0.05)
    options = options | {"r": 3} | (other or {})
    model.add_adapter("other", config(**options), rng=np.random.default_rng(5))
    model.set_adapter("other")
    train(model, lr=0.05)
    model.set_adapter("default")
    return model


@pytest.mark.parametrize("other", [{}, {"use_rslora": True}, {"target_modules": ["lin1"]}], ids=str)
@pytest.mark.parametrize("options", [LORA, METHODS["rsLoRA"]], ids=["LoRA", "rsLoRA"])
def test_25_two_loras_together_are_their_combination_live_and_merged(options, other):
    model = two(other, **options)
    model.add_weighted_adapter(["default", "other"], [1, 1], "both")
    alone = out(model)
    model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default", "other"]
    together = out(model)
    assert_allclose(out(model.merge_and_unload()), together, rtol=1e-5, atol=1e-5)
    model.set_adapter("both")
    assert_allclose(out(model), together, rtol=1e-5, atol=1e-5)
    assert far(together, BASE)
    assert far(together, alone)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_26_weights_negate_cancel_and_halve(use_rslora):
    model = two(use_rslora=use_rslora, target_modules=["lin1"])
    W0 = model.get_base_model().lin1.weight.data
    model.add_weighted_adapter(["default"], [-1], "minus")
    model.add_weighted_adapter(["default", "default"], [1, -1], "nothing")
    model.add_weighted_adapter(["default"], [0.5], "half", "svd")
    change = {}
    for name in ("default", "minus", "nothing", "half"):
        model.set_adapter(name)
        change[name] = model.merge_and_unload().lin1.weight.data - W0
    assert far(change["default"], 0)
    for name, weight in (("minus", -1), ("nothing", 0), ("half", 0.5)):
        rounding = 1e-6 * np.abs(change["default"]).max()
        assert_allclose(change[name], weight * change["default"], atol=rounding)


@every_method
def test_26b_a_copy_with_weight_1_equals_its_source_bit_by_bit_and_is_its_own(options):
    model = trained(**options)
    expected = out(model)
    model.add_weighted_adapter(["default"], [1.0], "copy")
    model.set_adapter("copy")
    assert_array_equal(out(model), expected)
    for p in model.trainable_parameters():
        p.data /= 2  # in place, which would be seen in an array that is shared
    assert far(out(model), expected)
    model.set_adapter("default")
    assert_array_equal(out(model), expected)


@lora_and_dora
def test_27_ranks_differ_per_adapter_and_per_layer(options):
    model = trained(rank_pattern={"lin1": 3}, **options)
    model.add_adapter("other", config(**options | {"r": 5}))
    found = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        found[name] = {path: layer.r for path, layer in layers(model).items()}
        assert np.all(np.isfinite(out(model)))
    assert found == {"default": {"lin0": 8, "lin1": 3}, "other": {"lin0": 5, "lin1": 5}}


# ----------------------------------------------------------------------------- 28–30: the rest

MATCHES = [
    ({"target_modules": ["lin0"]}, ["lin0"]),
    ({"target_modules": ["lin1", "lin0"]}, ["lin0", "lin1"]),
    ({"target_modules": "lin."}, ["lin0", "lin1"]),
    ({"target_modules": "lin"}, None),
    ({"target_modules": ["lin"]}, None),
    ({"target_modules": ".*1"}, ["lin1"]),
    ({"target_modules": "all-linear"}, ["lin0", "lin1"]),
    ({"target_modules": "all-linear", "exclude_modules": ["lin0"]}, ["lin1"]),
    ({"target_modules": ["lin0"], "exclude_modules": ["lin0"]}, None),
    ({"target_modules": "lin.", "exclude_modules": ".*0"}, ["lin1"]),
    ({"target_modules": ["relu"]}, None),
    ({"target_modules": []}, None),
]


@pytest.mark.parametrize(("options", "paths"), MATCHES, ids=str)
def test_28_targets_match_by_name_or_expression_and_exclusion_goes_first(options, paths):
    """Some fifty more rows are in ``test_config.py``."""
    if paths is None:
        with pytest.raises(ValueError, match=r"no Linear layer|only Linear layers"):
            adapted(**options)
    else:
        assert list(layers(adapted(**options))) == paths


@pytest.mark.parametrize(
    ("bias", "expected"), [("none", set()), ("lora_only", {"lin0"}), ("all", {"lin0", "lin1"})]
)
@pytest.mark.parametrize("use_dora", [False, True])
def test_29_the_bias_mode_says_which_biases_train(bias, expected, use_dora):
    model = adapted(target_modules=["lin0"], bias=bias, use_dora=use_dora)
    before = tensors(model)
    train(model)
    moved = {n for n, a in tensors(model).items() if n.endswith("bias") and far(a, before[n], 0)}
    names = {"lin0": "base_model.lin0.base_layer.bias", "lin1": "base_model.lin1.bias"}
    assert moved == {names[layer] for layer in expected}


@lora_and_dora
def test_29b_there_is_only_one_adapter_if_biases_train(options, tmp_path):
    free, bound = adapted(**options), adapted(bias="all", **options)
    bound.save_adapter(tmp_path / "a.npz")
    for model, attempt in (
        (free, lambda: free.add_adapter("b", config(bias="lora_only", **options))),
        (free, lambda: free.load_adapter(tmp_path / "a.npz", "b")),
        (bound, lambda: bound.add_adapter("b", config(**options))),
        (bound, lambda: bound.add_adapter("b", config(bias="all", **options))),
        (bound, lambda: bound.add_weighted_adapter(["default"], [1.0], "b")),
    ):
        with pytest.raises(ValueError, match="there can be only one adapter"):
            attempt()
        assert list(model.peft_config) == ["default"]


@lora_and_dora
def test_30_requires_grad_follows_the_active_adapter(options, tmp_path):
    own = {"A", "B", "m"} if options is DORA else {"A", "B"}
    options = options | {"target_modules": ["lin0"]}  # so that lin1 stays plain, and frozen
    model = trained(**options)
    model.save_adapter(tmp_path / "a.npz")

    def trainable(model):
        return {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}

    assert trainable(model) == own
    model.add_adapter("other", config(**options))
    assert trainable(model) == own
    model.load_adapter(tmp_path / "a.npz", "loaded")
    model.set_adapter("loaded", inference_mode=True)
    assert trainable(model) == set()
    model.set_adapter("loaded")
    assert trainable(model) == own
    model.load_adapter(tmp_path / "a.npz", "again", is_trainable=True)
    model.set_adapter("again")
    assert trainable(model) == own
    loaded = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz")
    assert trainable(loaded) == set()
    assert not any(m.training for _, m in loaded.named_modules())


@lora_and_dora
def test_30b_the_model_shows_what_is_adapted_active_and_frozen(options):
    model = adapted(**options | {"target_modules": ["lin0"]})
    kind, numbers = ("DoRALinear", 260) if options is DORA else ("LoRALinear", 240)
    for part in (
        f"PeftModel(active: default, {numbers} of {numbers + 262} trainable",
        f"(lin0): {kind}(10 -> 20, r=8, scaling=1, {numbers} trainable",
        "(base_layer): Linear(10 -> 20, frozen)",
        "(lin1): Linear(20 -> 2, frozen)",
    ):
        assert part in repr(model)


@every_method
def test_30c_a_config_survives_json_and_keys_of_the_future_warn(options):
    values = json.loads(json.dumps(config(**options).to_dict()))
    assert ld.LoraConfig.from_dict(values) == config(**options)
    with pytest.warns(UserWarning, match=r"unknown keys .*\['newer'\]"):
        assert ld.LoraConfig.from_dict(values | {"newer": 1}) == config(**options)


@lora_and_dora
def test_30d_a_trained_whole_module_switches_with_its_adapter(options):
    options = options | {"target_modules": ["lin0"]}
    model = trained(modules_to_save=["lin1"], **options)
    first, W0 = out(model), model.get_base_model().lin1.weight
    assert far(model.lin1.weight.data, W0.data)
    model.add_adapter("other", config(modules_to_save=["lin1"], **options))
    model.add_adapter("plain", config(**options))
    for name in ("other", "plain"):
        model.set_adapter(name)
        assert model.lin1.weight.requires_grad is (name == "other")
        assert_array_equal(out(model), BASE)
    assert model.lin1.weight.data is W0.data
    model.set_adapter("default")
    assert_array_equal(out(model), first)
    with model.disable_adapter():
        assert_array_equal(out(model), BASE)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_30e_the_norm_kept_in_evaluation_gives_the_same_numbers_and_is_dropped_on_change(
    use_rslora,
):
    model = trained(**DORA, use_rslora=use_rslora)
    first = out(model)
    assert_array_equal(out(model), first)
    assert_array_equal(out(copy.deepcopy(model)), first)
    layer = layers(model)["lin0"]
    layer.B.data = layer.B.data + 0.5
    changed = out(model)
    assert far(changed, first)
    V = layer.base_layer.weight.data + layer.scaling * (layer.B.data @ layer.A.data)
    fresh = layer.m.data / np.linalg.norm(V, axis=1)
    assert_allclose(layer.weight.data, fresh[:, None] * V, rtol=1e-5, atol=1e-6)
    assert_allclose(out(model.merge_and_unload()), changed, rtol=1e-5, atol=1e-5)
