"""Adapters travel between loradora and PEFT in both directions and mean the same on both sides.

The promise is 1e-6 in float32 and 1e-12 in float64, for whatever kind of adapter ``twins.KINDS``
lists.  Since warnings are errors, each load also promises that PEFT misses no tensor.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)

every_kind = pytest.mark.parametrize("kind", twins.KINDS)
every_kind_and_dtype = pytest.mark.parametrize(("kind", "dtype"), twins.KINDS_AND_DTYPES)
both_methods = pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
both_dtypes = pytest.mark.parametrize("dtype", twins.TOLERANCE)


#: How the names of biases end that PEFT writes again, with bias="all".
TWICE = (".modules_to_save.bias", ".original_module.bias")


def merged_alike(ours, theirs) -> None:
    twins.agree(ours.merge_and_unload().state_dict(), twins.state(theirs.merge_and_unload()))


# ---------------------------------------------------------------------------------- there and back


@every_kind_and_dtype
def test_an_adapter_trained_here_works_in_peft(kind: str, dtype: str, tmp_path: Path) -> None:
    net, (x, _) = twins.net(dtype), twins.data(dtype)
    ours = twins.train(twins.adapt(twins.twin(net), **twins.KINDS[kind]), 5, dtype=dtype)
    ours.save_pretrained(tmp_path)
    theirs = twins.load(net, tmp_path)

    assert np.abs(twins.run(ours, x) - twins.run(net, x)).max() > 0.001, "it learned nothing"
    twins.agree(twins.run(ours, x), twins.run(theirs, x))
    merged_alike(ours, theirs)


@every_kind_and_dtype
def test_an_adapter_trained_in_peft_works_here(kind: str, dtype: str, tmp_path: Path) -> None:
    net, (x, _) = twins.net(dtype), twins.data(dtype)
    theirs = twins.train(twins.adapt(net, **twins.KINDS[kind]), 5, dtype=dtype)
    theirs.save_pretrained(tmp_path)
    ours = twins.load(twins.twin(net), tmp_path)

    assert np.abs(twins.run(theirs, x) - twins.run(net, x)).max() > 0.001, "it learned nothing"
    twins.agree(twins.run(ours, x), twins.run(theirs, x))
    merged_alike(ours, theirs)


@every_kind
def test_our_folder_is_like_one_of_pefts(kind: str, tmp_path: Path) -> None:
    net, options = twins.net(), twins.KINDS[kind]
    twins.adapt(twins.twin(net), **options).save_pretrained(tmp_path / "ours")
    twins.adapt(net, **options).save_pretrained(str(tmp_path / "theirs"))

    ours, theirs = twins.on_disk(tmp_path / "ours"), twins.on_disk(tmp_path / "theirs")
    theirs = {key: array for key, array in theirs.items() if not key.endswith(TWICE)}
    assert [(key, a.shape, a.dtype) for key, a in ours.items()] == [
        (key, a.shape, a.dtype) for key, a in theirs.items()
    ]


def found_by_all_linear(kind: str) -> str:
    """Return the expression in our file for the layers that are adapted."""
    excluded = twins.KINDS[kind].get("exclude_modules", ())
    return "|".join(rf"layers\.{i}" for i in "024" if i not in excluded)


@every_kind
def test_our_config_is_like_one_of_pefts(kind: str, tmp_path: Path) -> None:
    net, options = twins.net(), twins.KINDS[kind]
    configs = {}
    for side, base in (("ours", twins.twin(net)), ("theirs", net)):
        twins.adapt(base, **options).save_pretrained(str(tmp_path / side))
        configs[side] = json.loads((tmp_path / side / "adapter_config.json").read_text())
        del configs[side]["auto_mapping"]  # from which class
    for config in configs.values():  # PEFT writes a set of names
        names = config["target_modules"]
        config["target_modules"] = sorted(names) if isinstance(names, list) else names
        config["exclude_modules"] = sorted(config["exclude_modules"] or ())
    if options.get("target_modules") == "all-linear":  # and those of all layers, excluded or not
        found = configs["ours"].pop("target_modules")
        listed = configs["theirs"].pop("target_modules")
        assert found == found_by_all_linear(kind)
        assert listed == [f"layers.{i}" for i in (0, 2, 4)]
    assert configs["ours"] == configs["theirs"]


@every_kind
def test_peft_parses_our_config(kind: str, tmp_path: Path) -> None:
    options = twins.COMMON | twins.KINDS[kind]
    twins.adapt(twins.twin(twins.net()), **options).save_pretrained(tmp_path)
    read = peft.LoraConfig.from_pretrained(str(tmp_path)).to_dict()
    if options["target_modules"] == "all-linear":
        options |= {"target_modules": found_by_all_linear(kind)}
    meant = peft.LoraConfig(**options, inference_mode=True).to_dict()
    assert read == meant


@every_kind
def test_a_file_of_peft_passes_through_here_unchanged(kind: str, tmp_path: Path) -> None:
    net = twins.net()
    theirs = twins.train(twins.adapt(net, **twins.KINDS[kind]), 2)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = twins.load(twins.twin(net), tmp_path / "theirs")
    ours.save_adapter(tmp_path / "adapter.npz")
    twins.load(twins.twin(net), tmp_path / "adapter.npz").save_pretrained(tmp_path / "ours")
    again, original = twins.on_disk(tmp_path / "ours"), twins.on_disk(tmp_path / "theirs")
    twins.agree(again, {key: original[key] for key in again}, tolerance=0)
    twins.agree(twins.state(twins.load(net, tmp_path / "ours")), twins.state(theirs), tolerance=0)


def test_peft_would_say_if_our_file_missed_a_tensor(tmp_path: Path) -> None:
    net = twins.net()
    twins.adapt(twins.twin(net), use_dora=True).save_pretrained(tmp_path)
    tensors = twins.on_disk(tmp_path)
    del tensors["base_model.model.layers.0.lora_magnitude_vector"]
    twins.safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="missing adapter keys"):
        twins.load(net, tmp_path)
    with pytest.raises(ld.CheckpointError, match=r"missing layers\.0\.lora_magnitude_vector"):
        twins.load(twins.twin(net), tmp_path)


def test_an_exact_norm_is_a_dora_like_any_other_to_peft(tmp_path: Path) -> None:
    """``detach_norm`` concerns training only; PEFT says that it does not know it, and goes on."""
    net, (x, _) = twins.net(), twins.data()
    ours = ld.get_peft_model(
        twins.twin(net), ld.LoraConfig(**twins.COMMON, use_dora=True, detach_norm=False)
    )
    twins.train(ours, 5).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['detach_norm'\]"):
        theirs = twins.load(net, tmp_path)
    twins.agree(twins.run(ours, x), twins.run(theirs, x))
    merged_alike(ours, theirs)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_loading_sets_the_mode_that_peft_sets(trainable: bool, mode: bool, tmp_path: Path) -> None:
    """About layers that are not adapted: PEFT starts new ones in training mode, whatever the base's."""
    net = twins.net()
    twins.adapt(net).save_pretrained(str(tmp_path))
    for base in (net, twins.twin(net)):
        model = twins.load(base.train(mode), tmp_path, is_trainable=trainable)
        assert model.layers[4].training is (mode and trainable)
        model.train(mode)
        model.load_adapter(str(tmp_path), "other", is_trainable=trainable)
        assert model.layers[4].training is (mode and trainable)


# ------------------------------------------------------------------- PEFT's files, with their quirks


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear", "modules_to_save": ["4"]},
        {"target_modules": ["0", "4"], "modules_to_save": ["layers.4"]},
        {"modules_to_save": ["4", "score"]},
        {"modules_to_save": ["4"], "bias": "all"},
    ],
    ids=[
        "all-linear, written as all layers, saved ones too",
        "a target that is saved whole",
        "a name that matches nothing",
        "biases under two more names",
    ],
)
def test_a_config_that_peft_writes_is_read_as_peft_means_it(options, tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    theirs = twins.train(twins.adapt(net, **options), 5)
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twins.twin(net), tmp_path)
    assert twins.adapted(ours) == twins.adapted(theirs)
    twins.agree(twins.run(ours, x), twins.run(theirs, x))


STARTS = {
    "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": peft.LoraGAConfig()},
    "weights of a Conv1D": {"fan_in_fan_out": True},
}
STARTS |= {f"{name}, DoRA": options | {"use_dora": True} for name, options in STARTS.items()}
STARTS["mica"] = {"init_lora_weights": "mica"}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out is set to True:UserWarning")
@pytest.mark.filterwarnings("ignore:lora with eva init.* low_cpu_mem_usage=False:UserWarning")
def test_a_trained_lora_is_read_however_it_started(start: str, tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    theirs = twins.train(twins.adapt(net, **STARTS[start]), 5)
    theirs.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for name, value in STARTS[start].items():  # PEFT forgets fan_in_fan_out when it sees a Linear
        config[name] = config[name] if name.endswith("config") else value
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for model in (theirs, twins.load(net, tmp_path)):
        twins.agree(twins.run(twins.load(twins.twin(net), tmp_path), x), twins.run(model, x))


@both_methods
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_file_of_peft_works_here(
    use_dora: bool, dtype: str, tmp_path: Path
) -> None:
    net, (x, _) = twins.net(), twins.data()
    theirs = twins.train(twins.adapt(net, use_dora=use_dora), 5)
    for p in theirs.parameters():
        if p.requires_grad:
            p.data = p.data.to(getattr(torch, dtype))
    theirs.save_pretrained(str(tmp_path))
    for p in theirs.parameters():
        p.data = p.data.float()
    assert safetensors_torch.load_file(tmp_path / "adapter_model.safetensors")[
        "base_model.model.layers.0.lora_A.weight"
    ].dtype == getattr(torch, dtype)
    ours = twins.load(twins.twin(net), tmp_path, is_trainable=True)
    twins.agree(twins.run(ours, x), twins.run(theirs, x))
    twins.agree(twins.trained(ours), twins.trained(theirs), tolerance=0)


# ------------------------------------------------------------------------------- names of adapters

NAMES = ["other", "default2", "other_default", "foodefault_bar", "efaul", "lora_A", "weight"]


@every_kind
@pytest.mark.parametrize("name", ["default", "other"])
def test_a_state_travels_without_a_file(kind: str, name: str) -> None:
    net, options = twins.net(), twins.COMMON | twins.KINDS[kind]
    theirs = peft.get_peft_model(twins.net(), peft.LoraConfig(**options), name)
    ours = ld.get_peft_model(twins.twin(net), ld.LoraConfig(**options), name)
    state = {
        n: t.numpy()
        for n, t in peft.get_peft_model_state_dict(
            twins.train(theirs, 2), adapter_name=name
        ).items()
    }
    ld.set_peft_model_state_dict(ours, state, name)
    again = ld.get_peft_model_state_dict(ours, name)
    twins.agree(again, {key: state[key] for key in again}, tolerance=0)
    assert {key for key in state if not key.endswith(TWICE)} == set(again)
    if "bias all" not in kind:  # PEFT asks for the biases under its inner names, too
        fresh = peft.get_peft_model(twins.net(), peft.LoraConfig(**options), name)
        tensors = {key: torch.from_numpy(array) for key, array in again.items()}
        assert not peft.set_peft_model_state_dict(fresh, tensors, name).unexpected_keys
        twins.agree(twins.run(fresh.eval(), twins.data()[0]), twins.run(theirs, twins.data()[0]))


@every_kind
def test_a_config_alone_travels_both_ways(kind: str, tmp_path: Path) -> None:
    options = twins.COMMON | twins.KINDS[kind]
    ours, theirs = ld.LoraConfig(**options), peft.LoraConfig(**options)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert peft.LoraConfig.from_pretrained(str(tmp_path / "ours")).to_dict() == theirs.to_dict()
    again = ld.LoraConfig.from_pretrained(tmp_path / "theirs").to_dict()
    expected = ours.to_dict()
    for name in ("target_modules", "exclude_modules"):  # which PEFT writes in the order of a set
        assert sorted(again.pop(name) or ()) == sorted(expected.pop(name) or ())
    assert again == expected


@both_methods
@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_of_any_name_travels(name: str, use_dora: bool, tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    options = {**twins.COMMON, "use_dora": use_dora}
    ours = ld.get_peft_model(
        twins.twin(net), ld.LoraConfig(**options), name, rng=np.random.default_rng(3)
    )
    theirs = peft.get_peft_model(twins.net(), peft.LoraConfig(**options), name)
    for side, model in (("ours", ours), ("theirs", theirs)):
        twins.train(model, 3).save_pretrained(str(tmp_path / side))
        assert twins.on_disk(tmp_path / side / name)
    there = twins.load(net, tmp_path / "ours" / name, name)
    here = twins.load(twins.twin(net), tmp_path / "theirs" / name, name)
    twins.agree(twins.run(ours, x), twins.run(there, x))
    twins.agree(twins.run(here, x), twins.run(theirs, x))


def test_several_adapters_travel_together(tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    options = {
        "default": {},
        "other": {"use_dora": True, "r": 2},
        "third": {"target_modules": ["4"], "use_rslora": True},
    }
    ours, theirs = twins.adapt(twins.twin(net)), twins.adapt(net)
    for side, model, library in (("ours", ours, ld), ("theirs", theirs, peft)):
        for name, changed in options.items():
            if name != "default":
                model.add_adapter(name, library.LoraConfig(**twins.COMMON | changed))
            model.set_adapter(name)
            twins.train(model, 3)
        model.save_pretrained(str(tmp_path / side))
    there = twins.load(net, tmp_path / "ours")
    here = twins.load(twins.twin(net), tmp_path / "theirs")
    for name in ("other", "third"):
        there.load_adapter(str(tmp_path / "ours" / name), name)
        here.load_adapter(tmp_path / "theirs" / name, name)
    for name in options:
        for model in (ours, theirs, there, here):
            model.set_adapter(name)
        twins.agree(twins.run(ours, x), twins.run(there.eval(), x))
        twins.agree(twins.run(here, x), twins.run(theirs, x))


def test_sums_of_adapters_are_pefts(tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    theirs = twins.adapt(net, init_lora_weights=False)
    other = {"r": 2, "lora_alpha": 5, "target_modules": ["2", "4"], "init_lora_weights": False}
    theirs.add_adapter("other", peft.LoraConfig(**other))
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twins.twin(net), tmp_path)
    ours.load_adapter(tmp_path / "other", "other")
    for model in (ours, theirs.eval()):
        model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum", combination_type="cat")
    for active in ("default", "other", "sum", ["default", "other"]):
        ours.set_adapter(active)
        theirs.base_model.set_adapter(active)
        twins.agree(twins.run(ours, x), twins.run(theirs, x))


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"use_dora": True, "target_modules": ["0"]}, {"use_dora": True, "target_modules": ["2"]}),
        ({"use_dora": True, "target_modules": ["0"]}, {"target_modules": ["2"]}),
        ({"modules_to_save": ["4"]}, {}),
        ({"target_modules": ["0"], "modules_to_save": ["4"]}, {"target_modules": ["2"]}),
    ],
    ids=str,
)
def test_adapters_of_different_layers_act_together_as_in_peft(
    options, other, tmp_path: Path
) -> None:
    net, (x, _) = twins.net(), twins.data()
    random = {"init_lora_weights": False}
    ours, theirs = pair(net, tmp_path, options | random, other | random)
    for model in (ours, theirs.base_model):
        model.set_adapter(["default", "other"])
    twins.agree(twins.run(ours, x), twins.run(theirs, x))


@pytest.mark.parametrize("inference_mode", [False, True])
def test_activating_an_adapter_trains_it_as_in_peft(inference_mode: bool, tmp_path: Path) -> None:
    net = twins.net()
    twins.adapt(net).save_pretrained(str(tmp_path))
    for base in (net, twins.twin(net)):
        for model in (twins.load(base, tmp_path), twins.adapt(base, inference_mode=True)):
            assert not any(p.requires_grad for p in model.parameters())
            model.set_adapter("default", inference_mode=inference_mode)
            assert any(p.requires_grad for p in model.parameters()) is not inference_mode


RANKS = {
    "one layer has a higher rank": ({"rank_pattern": {"0": 5}}, {"r": 2}),
    "one adapter has a higher rank elsewhere": ({"r": 2}, {"r": 4, "target_modules": ["2", "4"]}),
    "no layer has the rank of the config": ({"r": 6, "rank_pattern": {"0": 2, "2": 2}}, {"r": 1}),
    "all have the same": ({}, {}),
}


@pytest.mark.parametrize("svd_rank", [None, 1])
@pytest.mark.parametrize("ranks", RANKS)
def test_truncated_sums_of_adapters_are_pefts(ranks: str, svd_rank: int, tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    options = {"init_lora_weights": False, "alpha_pattern": {"2": 5}}
    ours, theirs = pair(net, tmp_path, *(options | changed for changed in RANKS[ranks]))
    for model in (ours, theirs):
        model.add_weighted_adapter(
            ["default", "other"], [0.7, -1.5], "sum", combination_type="svd", svd_rank=svd_rank
        )
        model.set_adapter("sum")
    twins.agree(twins.run(ours, x), twins.run(theirs, x), tolerance=1e-5)


@pytest.mark.parametrize("weights", [[0.5, 2.0], [0.7, -1.5], [-1.0, -0.3]], ids=str)
def test_linear_combinations_are_pefts(weights: list[float], tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    random = {"init_lora_weights": False}
    other = {"lora_alpha": -4, "target_modules": ["2", "4"]}
    ours, theirs = pair(net, tmp_path, random, other | random)
    for model in (ours, theirs):
        model.add_weighted_adapter(
            ["default", "other"], weights, "mixed", combination_type="linear"
        )
        model.set_adapter("mixed")
    twins.agree(twins.run(ours, x), twins.run(theirs, x))


def pair(net, folder: Path, options, other):
    """Return models of ours and PEFT's with the same two adapters."""
    theirs = twins.adapt(net, **options)
    theirs.add_adapter("other", peft.LoraConfig(**twins.COMMON | other))
    theirs.save_pretrained(str(folder))
    ours = twins.load(twins.twin(net), folder)
    ours.load_adapter(folder / "other", "other")
    return ours, theirs.eval()


# ------------------------------------------------------------------------- the same layer, call by call


@both_dtypes
@both_methods
def test_modes_agree(use_dora: bool, dtype: str, tmp_path: Path) -> None:
    """Training and evaluation mode, the adapter disabled, and any number of leading axes."""
    net, (x, _) = twins.net(dtype), twins.data(dtype)
    theirs = twins.train(twins.adapt(net, use_dora=use_dora), 5, dtype=dtype)
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twins.twin(net), tmp_path)
    for mode in (True, False):
        ours.train(mode)
        theirs.train(mode)
        for batch in (x, x[:1], x[:0], x.reshape(2, 4, 2, -1)):
            twins.agree(twins.run(ours, batch), twins.run(theirs, batch))
    with ours.disable_adapter(), theirs.disable_adapter():
        twins.agree(twins.run(ours, x), twins.run(theirs, x))
        twins.agree(twins.run(ours, x), twins.run(net, x))


@both_dtypes
@both_methods
def test_dropout_falls_on_the_same_terms(use_dora: bool, dtype: str, tmp_path: Path) -> None:
    """With the same mask on both sides, outputs and gradients with dropout agree."""
    net, (x, labels) = twins.net(dtype), twins.data(dtype)
    theirs = twins.train(twins.adapt(net, use_dora=use_dora), 5, dtype=dtype)
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twins.twin(net), tmp_path, is_trainable=True)
    rng = np.random.default_rng(4)
    masks = {i: (rng.random((16, twins.SIZES[i // 2])) < 0.5) * 2.0 for i in (0, 2)}

    class TheirMask(torch.nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.mask = torch.from_numpy(masks[i].astype(dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.mask

    class OurMask(ld.Module):
        def __init__(self, i: int) -> None:
            self.mask = masks[i].astype(dtype)

        def forward(self, x):
            return x * self.mask

    for i in masks:
        theirs.base_model.model.layers[i].lora_dropout["default"] = TheirMask(i)
        dict(ours.named_modules())[f"base_model.layers.{i}"].lora_dropout = OurMask(i)
    undropped = twins.run(twins.load(net, tmp_path), x)
    theirs.zero_grad()
    for model in (ours.train(), theirs.train()):
        twins.backward(model, x, labels)
    assert np.abs(twins.run(ours, x) - undropped).max() > 0.001, "the mask does nothing"
    twins.agree(twins.run(ours, x), twins.run(theirs, x))
    twins.agree(twins.trained(ours, "grad"), twins.trained(theirs, "grad"))


@every_kind
def test_the_report_reads_the_same(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    net, options = twins.net(), twins.KINDS[kind]
    ours, theirs = twins.adapt(twins.twin(net), **options), twins.adapt(net, **options)
    if "modules_to_save" in options:  # PEFT also counts the module that the saved one stands in for
        replaced = sum(p.numel() for p in net.layers[4].parameters())
        trainable, total = ours.get_nb_trainable_parameters()
        assert (trainable, total + replaced) == theirs.get_nb_trainable_parameters()
        return
    said = []
    for model in (ours, theirs):
        model.print_trainable_parameters()
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_the_output_layer_of_a_language_model_is_read_with_its_weight(tmp_path: Path) -> None:
    """PEFT writes the weight of an adapted ``lm_head`` of a transformers model into the file."""
    net, (x, _) = Speaker(), twins.data()
    ours_net = TwinSpeaker()
    ours_net.load_state_dict(twins.state(net))
    theirs = twins.adapt(net, target_modules=["q", "lm_head"])
    twins.train(theirs, 3).save_pretrained(str(tmp_path), save_embedding_layers=True)
    assert "base_model.model.lm_head.base_layer.weight" in twins.on_disk(tmp_path)
    twins.agree(twins.run(twins.load(ours_net, tmp_path), x), twins.run(theirs, x))
    ours_net.lm_head.weight.data = ours_net.lm_head.weight.data * 2
    with pytest.raises(ld.CheckpointError, match=r"lm_head\.base_layer\.weight differs from"):
        twins.load(ours_net, tmp_path)


class Speaker(torch.nn.Module):
    """A net with an ``lm_head``, which it names as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.lm_head = torch.nn.Linear(7, 6), torch.nn.Linear(6, 5)

    def forward(self, x):
        return self.lm_head(self.q(x))

    def get_input_embeddings(self):
        return self.q

    def get_output_embeddings(self):
        return self.lm_head


class TwinSpeaker(ld.Module):
    """The same here."""

    def __init__(self) -> None:
        self.q, self.lm_head = ld.Linear(7, 6), ld.Linear(6, 5)

    def forward(self, x):
        return self.lm_head(self.q(x))


# -------------------------------------------------------------------------------------- base models


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_base_model_of_pytorch_is_read_from_safetensors(dtype: str, tmp_path: Path) -> None:
    net, (x, _) = twins.net(dtype), twins.data("float64")
    safetensors_torch.save_file(net.state_dict(), tmp_path / "base.safetensors")
    ours = ld.MLP(twins.SIZES, dtype=np.float64)
    ld.load_model(tmp_path / "base.safetensors", ours)
    twins.agree(twins.run(ours, x), twins.run(net.double(), x))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_base_model_of_ours_is_read_by_pytorch_from_safetensors(
    dtype: str, tmp_path: Path
) -> None:
    net = twins.net(dtype)
    ld.save_model(tmp_path / "ours.safetensors", twins.twin(net))
    again = twins.Net().to(getattr(torch, dtype))
    again.load_state_dict(safetensors_torch.load_file(tmp_path / "ours.safetensors"))
    twins.agree(twins.state(again), twins.state(net), tolerance=0)


@both_dtypes
def test_a_base_model_travels_as_npz(dtype: str, tmp_path: Path) -> None:
    net, (x, _) = twins.net(dtype), twins.data(dtype)
    np.savez(tmp_path / "theirs.npz", **twins.state(net))
    ours = ld.MLP(twins.SIZES, dtype=dtype)
    ld.load_model(tmp_path / "theirs.npz", ours)
    twins.agree(twins.run(ours, x), twins.run(net, x))

    ld.save_model(tmp_path / "ours.npz", ours)
    with np.load(tmp_path / "ours.npz") as arrays:
        again = {name: torch.from_numpy(array) for name, array in arrays.items()}
    twins.agree(twins.state(net), {name: t.numpy() for name, t in again.items()}, tolerance=0)


@both_methods
def test_a_merged_model_of_ours_is_a_checkpoint_for_pytorch(use_dora: bool, tmp_path: Path) -> None:
    net, (x, _) = twins.net(), twins.data()
    ours = twins.train(twins.adapt(twins.twin(net), use_dora=use_dora), 5)
    ld.save_model(tmp_path / "merged.npz", ours.merge_and_unload())
    with np.load(tmp_path / "merged.npz") as arrays:
        net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    twins.agree(twins.run(ours, x), twins.run(net, x))


# ---------------------------------------------------------------------------------- a tree trained whole


class Tree(torch.nn.Module):
    """A net whose head is itself a net, called as PEFT expects of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        linear = torch.nn.Linear
        self.q = linear(7, 6)
        self.classifier = torch.nn.Sequential(linear(6, 6), torch.nn.ReLU(), linear(6, 5))

    def forward(self, x):
        return self.classifier(self.q(x))


class TwinTree(ld.Module):
    """The same here."""

    def __init__(self) -> None:
        self.q = ld.Linear(7, 6)
        self.classifier = ld.Sequential(ld.Linear(6, 6), ld.ReLU(), ld.Linear(6, 5))

    def forward(self, x):
        return self.classifier(self.q(x))


@pytest.mark.parametrize("bias", ["none", "all"])
@both_methods
def test_a_head_of_several_layers_travels_both_ways(bias, use_dora, tmp_path):
    net, (x, _) = Tree(), twins.data()
    ours_net = TwinTree()
    ours_net.load_state_dict(twins.state(net))
    options = {"target_modules": ["q"], "modules_to_save": ["classifier"], "bias": bias}
    options["use_dora"] = use_dora
    theirs = twins.train(twins.adapt(net, **options), 3)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    loaded = twins.load(ours_net, tmp_path / "theirs")
    twins.agree(twins.run(loaded, x), twins.run(theirs, x))

    ours = twins.train(twins.adapt(ours_net, **options), 3)
    ours.save_pretrained(tmp_path / "ours")
    if bias == "none":  # with "all", PEFT asks for the biases under its inner names, too
        twins.agree(twins.run(ours, x), twins.run(twins.load(net, tmp_path / "ours"), x))


class Encoder(torch.nn.Module):
    """A net with RoBERTa's head, whose layers have the names of others, and DistilBERT's second name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        linear = torch.nn.Linear
        self.query, self.dense, self.pre_classifier = linear(7, 6), linear(6, 6), linear(6, 6)
        self.classifier = Head()

    def forward(self, x):
        return self.classifier(self.pre_classifier(self.dense(self.query(x))))


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.out_proj = torch.nn.Linear(6, 6), torch.nn.Linear(6, 5)

    def forward(self, x):
        return self.out_proj(torch.tanh(self.dense(x)))


class TwinEncoder(ld.Module):
    """The same here."""

    def __init__(self) -> None:
        self.query, self.dense, self.pre_classifier = (ld.Linear(n, 6) for n in (7, 6, 6))
        self.classifier = ld.Module()
        self.classifier.dense, self.classifier.out_proj = ld.Linear(6, 6), ld.Linear(6, 5)

    def forward(self, x):
        head = self.classifier
        h = self.pre_classifier(self.dense(self.query(x)))
        return head.out_proj(mg.tanh(head.dense(h)))


@both_methods
def test_heads_whose_names_are_like_others_travel_both_ways(use_dora, tmp_path):
    net, (x, _) = Encoder(), twins.data()
    ours_net = TwinEncoder()
    ours_net.load_state_dict(twins.state(net))
    options = {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}
    theirs = twins.train(twins.adapt(net, use_dora=use_dora, **options), 3)
    ours = twins.train(twins.adapt(ours_net, use_dora=use_dora, **options), 3)
    for side, model in (("theirs", theirs), ("ours", ours)):
        model.save_pretrained(str(tmp_path / side))
    assert twins.on_disk(tmp_path / "ours").keys() == twins.on_disk(tmp_path / "theirs").keys()
    twins.agree(twins.run(twins.load(ours_net, tmp_path / "theirs"), x), twins.run(theirs, x))
    twins.agree(twins.run(ours, x), twins.run(twins.load(net, tmp_path / "ours"), x))


HEADS = {"SEQ_CLS": "classifier", "TOKEN_CLS": "score", "QUESTION_ANS": "qa_outputs"}


@pytest.mark.parametrize("task_type", HEADS)
def test_a_task_trains_the_head_that_peft_trains(task_type, tmp_path):
    trained = {}
    for side, module, linear, library in (
        ("ours", ld.Module, ld.Linear, ld),
        ("theirs", torch.nn.Module, torch.nn.Linear, peft),
    ):
        net = module()
        net.q = linear(4, 4)
        setattr(net, HEADS[task_type], linear(4, 2))
        net.prepare_inputs_for_generation = None  # which PEFT asks for
        config = library.LoraConfig(target_modules=["q"], task_type=task_type)
        library.get_peft_model(net, config).save_pretrained(str(tmp_path / side))
        trained[side] = twins.on_disk(tmp_path / side).keys()
    assert f"base_model.model.{HEADS[task_type]}.weight" in trained["ours"]
    assert trained["ours"] == trained["theirs"]


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_task_of_classification_saves_the_head_as_peft_reads_it(task_type, tmp_path):
    net, (x, _) = Tree(), twins.data()
    ours_net = TwinTree()
    ours_net.load_state_dict(twins.state(net))
    ours = twins.train(twins.adapt(ours_net, target_modules=["q"], task_type=task_type), 3)
    ours.save_pretrained(tmp_path)
    keys = set(twins.on_disk(tmp_path))
    assert {
        f"base_model.model.classifier.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")
    } < keys
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"task_type": None}))
    theirs = twins.load(net, tmp_path)  # a task's own class would ask for a transformers model
    twins.agree(twins.run(ours, x), twins.run(theirs, x))
