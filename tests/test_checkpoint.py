"""Files hold what PEFT's hold, load only if all of it fits, and are never executed or half written."""

import builtins
import copy
import dataclasses
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz_adapter_files import Net, fuzz, try_hostile
from hostile_files import HOSTILE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import loradora as ld
import minigrad as mg
from loradora import CheckpointError, checkpoint, files, formats

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

KINDS = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 3},
    "rsDoRA": {"use_rslora": True, "use_dora": True},
    "biases of adapted layers": {"bias": "lora_only", "target_modules": ["0"]},
    "all biases": {"bias": "all", "target_modules": ["0"], "use_dora": True},
    "a whole layer": {"target_modules": ["0"], "modules_to_save": ["2"]},
    "a bias in B": {"lora_bias": True},
    "ranks and alphas": {"rank_pattern": {"0": 3}, "alpha_pattern": {"2": 1}},
    "pissa": {"init_lora_weights": "pissa"},
    "dropout": {"lora_dropout": 0.25, "task_type": "CAUSAL_LM"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.numpy", reason="PEFT's file format needs safetensors")


def base(dtype=np.float32):
    return ld.MLP([3, 4, 2], rng=np.random.default_rng(0), dtype=dtype)


def trained(kind="LoRA", name="default"):
    """Return a model whose adapter's tensors are random."""
    options = {"r": 2, "target_modules": ["0", "2"]} | KINDS[kind]
    rng = np.random.default_rng(1)
    model = ld.get_peft_model(base(), ld.LoraConfig(**options), name, rng=rng)
    for p in model.trainable_parameters():
        p.data = rng.normal(size=p.shape).astype(p.dtype)
    return model.eval()


def load(source, net=None, **options):
    return ld.PeftModel.from_pretrained(base() if net is None else net, source, **options)


def refuse(source, message, **options):
    """Loading is refused with a clear message; the base and a model with adapters stay as they are."""
    net, model = base(), trained()
    before, expected = state_of(net), model(X).data
    for attempt in (
        lambda: load(source, net, **options),
        lambda: model.load_adapter(source, "new", **options),
    ):
        with pytest.raises(CheckpointError, match=message):
            attempt()
    assert state_of(net) == before
    assert list(model.peft_config) == ["default"]
    assert_array_equal(model(X).data, expected)


def state_of(model):
    return {name: (a.dtype, a.tobytes()) for name, a in model.state_dict().items()}


def read(file):
    with np.load(file) as archive:
        return dict(archive)


def rewritten(folder, kind="LoRA", drop=(), config=None, **arrays):
    """Return an ``.npz`` file of an adapter with some tensors and config values replaced."""
    trained(kind).save_adapter(folder / "a.npz")
    values = read(folder / "a.npz") | {
        name if name == CONFIG else PREFIX + name: a for name, a in arrays.items()
    }
    if config is not None:
        text = json.dumps(json.loads(values[CONFIG].tobytes()) | config)
        values[CONFIG] = np.frombuffer(text.encode(), np.uint8)
    for name in drop:
        del values[name if name in values else PREFIX + name]
    np.savez(folder / "a.npz", **values)
    return folder / "a.npz"


A, B, M = (
    "layers.0." + name for name in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
)

# ----------------------------------------------------------------------------- round trips


@every_kind
def test_npz_restores_the_adapter_bit_by_bit(kind, tmp_path):
    model = trained(kind)
    model.save_adapter(tmp_path / "a.npz")
    loaded = load(tmp_path / "a.npz")
    assert_array_equal(loaded(X).data, model(X).data)
    assert state_of(loaded) == state_of(model)


@every_kind
def test_a_folder_restores_the_adapter_bit_by_bit(kind, tmp_path, safetensors):
    model = trained(kind)
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = load(tmp_path / "new" / "folder")
    assert_array_equal(loaded(X).data, model(X).data)
    assert state_of(loaded) == state_of(model)


@every_kind
def test_both_formats_hold_the_same(kind, tmp_path, safetensors):
    model = trained(kind)
    model.save_pretrained(tmp_path)
    model.save_adapter(tmp_path / "a.npz")
    arrays = read(tmp_path / "a.npz")
    assert arrays.pop(CONFIG).tobytes() == (tmp_path / CONFIG).read_bytes()
    tensors = safetensors.load_file(tmp_path / WEIGHTS)
    assert arrays.keys() == tensors.keys()
    assert all(arrays[name].tobytes() == tensors[name].tobytes() for name in arrays)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_loaded_adapter_is_frozen_and_evaluated_unless_asked_for_training(
    trainable, mode, tmp_path
):
    """With is_trainable, the mode is that of the base, or of the model that loads the adapter."""
    trained("DoRA").save_adapter(tmp_path / "a.npz")
    model = load(tmp_path / "a.npz", base().train(mode), is_trainable=trainable)
    assert bool(model.trainable_parameters()) is trainable
    expected = {mode and trainable}
    assert {m.training for _, m in model.named_modules()} == expected
    model = trained().train(mode)
    model.load_adapter(tmp_path / "a.npz", "other", is_trainable=trainable)
    for name in ("default", "other"):
        model.set_adapter(name)
        assert {m.training for _, m in model.named_modules()} == expected
        assert model.training is (mode and trainable)


def test_a_load_that_fails_leaves_the_mode(tmp_path):
    model = trained().train()
    with pytest.raises(CheckpointError):
        model.load_adapter(tmp_path / "none.npz", "other")
    assert {m.training for _, m in model.named_modules()} == {True}


def test_every_adapter_has_a_folder_of_its_name(tmp_path, safetensors):
    model = trained()
    model.add_adapter("second", ld.LoraConfig(r=1, target_modules=["2"]))
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", CONFIG, WEIGHTS, "second"]
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert load(tmp_path / "second", adapter_name="x").peft_config["x"].r == 1


def test_a_model_is_saved_and_loaded_by_name(tmp_path):
    net, other = base(), ld.MLP([3, 4, 2])
    ld.save_model(tmp_path / "net.npz", net)
    ld.load_model(tmp_path / "net.npz", other)
    assert state_of(other) == state_of(net)
    assert read(tmp_path / "net.npz").keys() == net.state_dict().keys()


def test_a_model_saved_by_another_library_is_loaded_from_safetensors(tmp_path, safetensors):
    net, other = base(), ld.MLP([3, 4, 2])
    safetensors.save_file(net.state_dict(), tmp_path / "net.safetensors")
    ld.load_model(tmp_path / "net.safetensors", other)
    assert state_of(other) == state_of(net)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_suffix_of_a_model_decides_what_is_written(dtype, tmp_path, safetensors):
    net, other = base(dtype), ld.MLP([3, 4, 2], dtype=dtype)
    net.layers[0].weight._data = np.asfortranarray(net.layers[0].weight.data)
    ld.save_model(tmp_path / "net.safetensors", net)
    tensors = safetensors.load_file(tmp_path / "net.safetensors")
    assert state_of(net) == {n: (a.dtype, a.tobytes()) for n, a in tensors.items()}
    header, _ = parts(tmp_path / "net.safetensors")
    assert header["__metadata__"] == {"format": "pt"}
    ld.load_model(tmp_path / "net.safetensors", other)
    assert state_of(other) == state_of(net)


@pytest.mark.parametrize("name", ["net", "net.bin", "net.pt", "net.npy", "net.NPZ", ".npz"])
def test_a_model_is_written_under_no_other_suffix(name, tmp_path):
    with pytest.raises(CheckpointError, match=r"ends in neither \.npz nor \.safetensors"):
        ld.save_model(tmp_path / name, base())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.safetensors", r"save_adapter\(\) writes \.npz; save_pretrained\(\) writes .*folder"),
        ("a", r"save_adapter\(\) writes \.npz"),
        ("a.bin", r"save_adapter\(\) writes \.npz"),
    ],
)
def test_an_adapter_is_written_under_no_other_suffix(name, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        trained().save_adapter(tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_model_that_is_not_finite_is_refused_as_an_adapter_is(suffix, value, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="it writes and reads the file")
    wide, net = base(np.float64), base()
    wide.layers[2].weight.data[0, 1] = value
    ld.save_model(tmp_path / f"net{suffix}", wide)
    before = state_of(net)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in layers\.2\.weight \(see allow"):
        ld.load_model(tmp_path / f"net{suffix}", net)
    assert state_of(net) == before
    ld.load_model(tmp_path / f"net{suffix}", net, allow_nan=True)
    expected = np.nan if np.isnan(value) else np.inf
    assert_array_equal(net.layers[2].weight.data[0, 1], np.float32(expected))


def test_everything_that_is_wrong_with_a_model_is_listed_at_once(tmp_path):
    state = base().state_dict()
    state["layers.0.weight"] *= np.nan
    state["stray"] = state.pop("layers.2.bias")
    np.savez(tmp_path / "net.npz", **state)
    with pytest.raises(CheckpointError) as failure:
        ld.load_model(tmp_path / "net.npz", base())
    for part in ("missing layers.2.bias", "unexpected stray", "NaN or infinity in layers.0.weight"):
        assert part in str(failure.value)


def test_a_model_that_does_not_fit_is_refused_and_stays(tmp_path):
    ld.save_model(tmp_path / "net.npz", ld.MLP([3, 5, 2]))
    net = base()
    before = state_of(net)
    with pytest.raises(
        CheckpointError, match=r"layers.0.weight has shape \(5, 3\), expected \(4, 3\)"
    ):
        ld.load_model(tmp_path / "net.npz", net)
    assert state_of(net) == before


# ----------------------------------------------------------------------------- models in several files

INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
#: Which file holds which tensor of ``base()``; the files are in no order, and nor are their tensors.
PLACES = {
    "layers.2.bias": THREE,
    "layers.0.weight": ONE,
    "layers.2.weight": ONE,
    "layers.0.bias": TWO,
}


def sharded(folder, state=None, places=PLACES, index=None):
    """Write a model in several files and their index; return the latter."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="shards are of its format")
    state = base().state_dict() if state is None else state
    for shard in set(places.values()):
        held = {name: state[name] for name in places if places[name] == shard}
        safetensors.save_file(held, folder / shard)
    return indexed(folder, {"metadata": {"total_size": 1}, "weight_map": places | (index or {})})


def indexed(folder, content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / INDEX).write_bytes(text)
    return folder / INDEX


def refuse_model(file, *messages, net=None, **options):
    """Loading is refused with these messages, in one error, and the model stays as it is."""
    net = ld.MLP([3, 4, 2], rng=5) if net is None else net
    before = state_of(net)
    with pytest.raises(CheckpointError) as failure:
        ld.load_model(file, net, **options)
    for message in messages:
        assert message in str(failure.value)
    assert state_of(net) == before
    return str(failure.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_in_several_files_is_read_by_their_index(dtype, tmp_path):
    net = ld.MLP([3, 4, 2])
    ld.load_model(sharded(tmp_path, base(dtype).state_dict()), net)
    expected = {name: a.astype(np.float32) for name, a in base(dtype).state_dict().items()}
    assert state_of(net) == {name: (a.dtype, a.tobytes()) for name, a in expected.items()}


def test_bfloat16_shards_are_read(tmp_path):
    file, net = sharded(tmp_path), ld.MLP([3, 4, 2])
    replace_tensor(tmp_path / TWO, "layers.0.bias", "BF16", struct.pack("<4H", *[0x3FC0] * 4))
    ld.load_model(file, net)
    assert_array_equal(net.layers[0].bias.data, np.full(4, 1.5))


def test_shards_and_their_index_may_be_links_as_in_the_cache_of_hugging_face(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    sharded(tmp_path)
    for i, name in enumerate((INDEX, ONE, TWO, THREE)):
        (tmp_path / name).rename(tmp_path / "blobs" / f"{i}")
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{i}")
    net = ld.MLP([3, 4, 2])
    ld.load_model(tmp_path / "snapshot" / INDEX, net)
    assert state_of(net) == state_of(base())


def test_a_tied_tensor_may_lie_in_one_shard_or_in_two(tmp_path):
    net = ld.Sequential(ld.Linear(2, 2, rng=0), ld.ReLU())
    net.tied = net[0]
    values = {name: p.data + 1 for name, p in net[0].named_parameters()}
    state = {f"{path}.{name}": a for path in ("0", "tied") for name, a in values.items()}
    for places in (
        {"tied.weight": ONE, "0.bias": TWO},
        {"tied.weight": ONE, "0.weight": TWO, "0.bias": TWO, "tied.bias": THREE},
    ):
        net.load_state_dict({"0.weight": values["weight"] * 0, "0.bias": values["bias"] * 0})
        ld.load_model(sharded(tmp_path, state, places), net)
        assert_array_equal(net[0].weight.data, values["weight"])
        assert_array_equal(net.tied.bias.data, values["bias"])
    state["0.weight"] = state["0.weight"] + 1
    file = sharded(tmp_path, state, places)
    refuse_model(file, "tied.weight and 0.weight differ, and are one tensor here", net=net)


def test_an_adapted_model_takes_its_shards_if_the_base_is_the_same(tmp_path):
    model = trained("DoRA")
    places = {name: (ONE, TWO)[i % 2] for i, name in enumerate(model.state_dict())}
    file = sharded(tmp_path, model.state_dict(), places)
    other = ld.get_peft_model(base(), model.peft_config["default"], rng=3)
    ld.load_model(file, other)
    assert state_of(other) == state_of(model)
    foreign = ld.get_peft_model(ld.MLP([3, 4, 2], rng=9), model.peft_config["default"], rng=3)
    refuse_model(file, "the state is that of another base", net=foreign)


def test_nan_in_a_shard_is_refused_unless_asked_for(tmp_path):
    state = base().state_dict()
    state["layers.2.bias"] *= np.nan
    file, net = sharded(tmp_path, state), ld.MLP([3, 4, 2])
    refuse_model(file, "NaN or infinity in layers.2.bias (see allow_nan)")
    ld.load_model(file, net, allow_nan=True)
    assert np.isnan(net.layers[2].bias.data).all()


def test_everything_that_is_wrong_with_shards_is_listed_at_once(tmp_path):
    state = base().state_dict() | {"stray": np.zeros(7, np.float32)}
    state["layers.2.weight"] = np.zeros((2, 5), np.float32)
    state["layers.0.weight"] *= np.inf
    state["mine"] = state.pop("layers.2.bias")
    places = {"layers.2.weight": TWO, "layers.0.weight": TWO, "mine": TWO, "stray": THREE}
    index = {"layers.0.bias": ONE, "lost": THREE, "stray": TWO}
    file = sharded(tmp_path, state, places, index)
    message = refuse_model(
        file,
        f"cannot read {tmp_path / ONE}: No such file",
        f"{THREE} lacks lost, which the index gives to it",
        f"{TWO} lacks stray, which the index gives to it",
        f"stray is in {THREE}, but the index gives it to {TWO}",
        "missing layers.2.bias (2,)",
        "layers.2.weight has shape (2, 5), expected (2, 4)",
        "unexpected mine (2,)",
        "unexpected stray (7,)",
        "NaN or infinity in layers.0.weight",
    )
    assert message.count("missing") == 1  # what is lacking in a shard has been named


def edit_shard(name):
    def change(folder, **arrays):
        from safetensors.numpy import load_file, save_file

        save_file({**load_file(folder / name), **arrays}, folder / name)

    return change


def with_a_second_copy(folder):
    edit_shard(TWO)(folder, **{"layers.2.weight": np.zeros((2, 4), np.float32)})


def with_an_unlisted_tensor(folder):
    edit_shard(TWO)(folder, more=np.zeros(1, np.float32))


def cut_off(folder):
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-1])


def a_folder_for_a_shard(folder):
    (folder / TWO).unlink()
    (folder / TWO).mkdir()


def a_link_to_nothing(folder):
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("nowhere")


def a_pickle_for_a_shard(folder):
    (folder / TWO).write_bytes(pickle.dumps(Trap(folder / "trapped")))


SHARDS = {
    "two copies": (
        with_a_second_copy,
        f"layers.2.weight is in {TWO}, but the index gives it to {ONE}",
    ),
    "unlisted": (with_an_unlisted_tensor, f"more is in {TWO}, but the index gives it to no file"),
    "cut off": (cut_off, f"{TWO} is not a valid safetensors file"),
    "a folder": (a_folder_for_a_shard, f"{TWO}: Is a directory"),
    "a link to nothing": (a_link_to_nothing, f"{TWO}: No such file"),
    "a pickle": (a_pickle_for_a_shard, f"{TWO} is not a valid safetensors file"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_is_not_what_the_index_says_is_refused(name, tmp_path):
    change, message = SHARDS[name]
    file = sharded(tmp_path)
    change(tmp_path)
    refuse_model(file, message)
    assert not (tmp_path / "trapped").exists()


def placed(name):
    return {"weight_map": PLACES | {"layers.0.bias": name}}


BESIDE = "which is not a .safetensors file beside it"
INDICES = {
    "no JSON": (b"{", f"{INDEX} in "),
    "no text": (b"\xff\xfe", f"{INDEX} in "),
    "a list": (b"[]", "expected an object, got list"),
    "nothing": ({}, "it has no weight_map"),
    "an empty map": ({"weight_map": {}}, "it has no weight_map"),
    "a list for a map": ({"weight_map": [ONE]}, "it has no weight_map"),
    "a map twice": (b'{"weight_map": {}, "weight_map": {}}', "a key occurs twice"),
    "a name twice": (b'{"weight_map": {"a": "a.safetensors", "a": "b"}}', "a key occurs twice"),
    "deep": (b'{"weight_map":' * 70_000, f"{INDEX} in "),
    "long": (b" " * 2**20 + b"{}", "it is larger than 1048576 bytes"),
    "half a character": (placed(ONE) | {"weight_map": {"\ud800": ONE}}, "surrogates not allowed"),
    "many names": (
        {"weight_map": {f"{i}": "m.safetensors" for i in range(30_001)}},
        "there are 30001 arrays, and a file holds at most 30000",
    ),
    "a pickle": (placed("pytorch_model-00001-of-00002.bin"), "is a pickle, which can run any code"),
    "a number": (placed(7), f"it names 7, {BESIDE}"),
    "null": (placed(None), f"it names None, {BESIDE}"),
    "a list of files": (placed([ONE, TWO]), BESIDE),
    "another index": (placed(INDEX), BESIDE),
    "an npz": (placed("a.npz"), BESIDE),
    "no stem": (placed(".safetensors"), BESIDE),
    "an empty name": (placed(""), BESIDE),
    "a long name": (placed(f"{'a' * 300}.safetensors"), BESIDE),
    "a line break": (placed("a\nb.safetensors"), BESIDE),
} | {
    f"outside: {name!r}": (placed(f"{name}.safetensors"), BESIDE)
    for name in (
        "../x",
        "/x",
        "a/b",
        "a/../x",
        "..\\x",
        "C:x",
        "C:\\x",
        "x\0",
        "\\\\host\\x",
        "./x",
    )
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_is_not_valid_is_refused(name, tmp_path):
    content, message = INDICES[name]
    sharded(tmp_path)
    (tmp_path / "x.safetensors").write_bytes((tmp_path / TWO).read_bytes())
    (tmp_path / "inner").mkdir()
    for i in (ONE, TWO, THREE):
        (tmp_path / i).rename(tmp_path / "inner" / i)
    assert len(refuse_model(indexed(tmp_path / "inner", content), message)) < 5000


def test_shards_that_hold_more_arrays_than_any_file_are_refused(tmp_path, monkeypatch):
    file = sharded(tmp_path)
    monkeypatch.setattr(formats, "MOST_ARRAYS", 4)
    ld.load_model(file, base())
    with_an_unlisted_tensor(tmp_path)
    refuse_model(file, "there are 5 arrays, and a file holds at most 4")


def test_of_a_single_file_that_cannot_be_read_nothing_else_is_said(tmp_path):
    message = refuse_model(tmp_path / "m.npz")
    assert message == f"cannot read {tmp_path / 'm.npz'}: No such file or directory"


def test_of_a_folder_the_file_is_to_be_named(tmp_path):
    refuse_model(tmp_path, f"it is a folder: give the file in it, {INDEX} or model.safetensors")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_no_more_than_one_shard_is_held_beside_the_arrays(dtype, tmp_path):
    """While a shard is split into arrays it is held twice; then its bytes are dropped."""
    net = ld.Sequential(*[ld.Linear(256, 256, bias=False, rng=0) for _ in range(8)])
    places = {name: f"{name}.safetensors" for name in net.state_dict()}
    state = {name: a.astype(dtype) for name, a in net.state_dict().items()}
    file, shard = sharded(tmp_path, state, places), 256 * 256 * np.dtype(dtype).itemsize
    array = 256 * 256 * 4

    def peak(path):
        tracemalloc.start()
        try:
            ld.load_model(path, net)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(file)  # what is imported at the first time
    slack = array // 4
    # seven arrays and the last shard twice, or eight arrays and its bytes
    assert peak(file) < max(7 * array + 2 * shard, 8 * array + shard) + slack
    # a model in one file is one shard
    one = sharded(tmp_path, state, dict.fromkeys(places, ONE))
    assert peak(one) < 8 * array + 8 * shard + slack
    np.savez(tmp_path / "m.npz", **state)
    assert peak(tmp_path / "m.npz") < 8 * array + 9 * shard + slack  # a member is unpacked


# ----------------------------------------------------------------------------- names with a prefix


def prefixed(prefix):
    """Return the state of ``base()``, doubled, under other names."""
    return {prefix + name: 2 * a for name, a in base().state_dict().items()}


every_prefix = pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "layers.", "0.", "bert."]
)


def assert_doubled(net):
    for name, p in base().named_parameters():
        assert_array_equal(dict(net.named_parameters())[name].data, 2 * p.data)


@every_prefix
def test_a_prefix_that_all_names_have_is_left_off(prefix, tmp_path):
    np.savez(tmp_path / "m.npz", **prefixed(prefix))
    net = base()
    ld.load_model(tmp_path / "m.npz", net)
    assert_doubled(net)


@every_prefix
def test_a_prefix_that_all_names_in_shards_have_is_left_off(prefix, tmp_path):
    state = prefixed(prefix)
    places = {name: (ONE, TWO)[i % 2] for i, name in enumerate(state)}
    net = base()
    ld.load_model(sharded(tmp_path, state, places), net)
    assert_doubled(net)


@every_prefix
def test_what_else_is_wrong_with_names_that_have_a_prefix_is_listed(prefix, tmp_path):
    state = prefixed(prefix)
    state[f"{prefix}a.stray"] = state.pop(f"{prefix}layers.0.bias")
    np.savez(tmp_path / "m.npz", **state)
    wrong = "missing layers.0.bias (4,)", "unexpected a.stray (4,)"
    message = refuse_model(tmp_path / "m.npz", *wrong)
    assert message.count("missing") == message.count("unexpected") == 1
    places = {name: (ONE, TWO)[i % 2] for i, name in enumerate(state)}
    file = sharded(tmp_path, state, places, index={f"{prefix}layers.0.bias": ONE})
    message = refuse_model(file, f"{ONE} lacks {prefix}layers.0.bias", "unexpected a.stray (4,)")
    assert "missing" not in message


def in_any_file(folder, state):
    """Yield the state in one file, and in two shards."""
    np.savez(folder / "m.npz", **state)
    yield folder / "m.npz"
    yield sharded(folder, state, {name: (ONE, TWO)[i % 2] for i, name in enumerate(state)})


def test_names_says_what_the_tensors_of_a_file_are_called_here(tmp_path):
    """As for a net that was saved with another head, in a framework with other names."""

    def names(name):
        if name.startswith("head."):
            return None
        return name.removeprefix("net.").replace("kernel", "weight")

    doubled = {f"net.{name}": 2 * a for name, a in base().state_dict().items()}
    doubled = {name.replace("weight", "kernel"): a for name, a in doubled.items()}
    for file in in_any_file(tmp_path, doubled | {"head.ids": np.arange(3)}):
        net = base()
        ld.load_model(file, net, names=names)
        assert_doubled(net)


@pytest.mark.parametrize("names", ["layers.", {"a": "b"}, False, 0])
def test_names_that_are_no_function_are_refused(names, tmp_path):
    ld.save_model(tmp_path / "m.npz", base())
    with pytest.raises(TypeError, match="names must be a function of a tensor's name in the file"):
        ld.load_model(tmp_path / "m.npz", base(), names=names)


@pytest.mark.parametrize("answer", [3, b"layers.0.bias", ["layers.0.bias"], True])
def test_names_that_return_something_else_are_refused(answer, tmp_path):
    net = base()
    before = state_of(net)
    for file in in_any_file(tmp_path, prefixed("")):
        with pytest.raises(TypeError, match="names must return a str or None, not"):
            ld.load_model(file, net, names=lambda name: answer)
        assert state_of(net) == before


def test_what_is_wrong_with_renamed_tensors_is_listed(tmp_path):
    state = base().state_dict()
    del state["layers.2.weight"]
    state |= {"other": np.ones(7, np.float32), "again": np.ones((4, 3), np.float32)}
    names = {name: name for name in state} | {"other": "layers.2.bias", "again": "layers.0.weight"}
    for file in in_any_file(tmp_path, state):
        refuse_model(
            file,
            "missing layers.2.weight (2, 4)",
            "would both be layers.2.bias",
            "would both be layers.0.weight",
            names=names.get,
        )


@pytest.mark.parametrize("names", [["module.a.weight"], ["module.layers.0.weight", "other"], []])
def test_other_names_are_listed(names, tmp_path):
    np.savez(tmp_path / "m.npz", **{name: np.zeros((4, 3)) for name in names})
    message = refuse_model(tmp_path / "m.npz", *(f"unexpected {name}" for name in names))
    assert "begin with" not in message


def test_a_name_that_another_one_ends_with_is_no_sign_of_a_prefix(tmp_path):
    net = ld.Module()
    net.a = ld.Linear(2, 2, rng=0)
    net.a.a = ld.Linear(2, 2, rng=1)
    ld.save_model(tmp_path / "m.npz", net)
    ld.load_model(tmp_path / "m.npz", net)
    np.savez(
        tmp_path / "m.npz", **{name: net.state_dict()[name] for name in ("a.bias", "a.a.bias")}
    )
    assert "begin with" not in refuse_model(tmp_path / "m.npz", "missing a.weight", net=net)


# ----------------------------------------------------------------------------- saved is what ran


def of(model, path="layers.0"):
    return dict(model.base_model.named_modules())[path]


def another(tensor):
    return mg.Tensor(tensor.data + 1, requires_grad=True)


def train_all(model):
    model.requires_grad_(True)
    model(X).sum().backward()
    ld.SGD(model.parameters(), 0.1).step()


#: What is done to a model, to what kind of adapter, and what saving it then complains of.
class Tanh(ld.Module):
    def forward(self, x):
        return mg.tanh(x)


CHANGES = {
    "the scaling": (
        "LoRA",
        lambda m: setattr(of(m), "scaling", 2.0),
        r"layers\.0\.scaling is 2\.0, but was 4\.0 when the adapter was made \(multiply B",
    ),
    "dropout": (
        "dropout",
        lambda m: setattr(of(m).lora_dropout, "p", 0.5),
        r"layers\.0\.lora_dropout is Dropout\(p=0\.5\), but was Dropout\(p=0\.25\)",
    ),
    "another dropout": (
        "dropout",
        lambda m: setattr(of(m), "lora_dropout", ld.ReLU()),
        r"layers\.0\.lora_dropout is ReLU, but was Dropout\(p=0\.25\)",
    ),
    "the gradient of the norm": (
        "DoRA",
        lambda m: setattr(of(m), "detach_norm", False),
        r"layers\.0\.detach_norm is False, but was True",
    ),
    "another B": (
        "LoRA",
        lambda m: setattr(of(m), "B", another(of(m).B)),
        r"layers\.0\.B is no longer the tensor of the adapter: set its \.data instead",
    ),
    "another m": ("DoRA", lambda m: setattr(of(m), "m", another(of(m).m)), r"layers\.0\.m is no"),
    "no bias in B": (
        "a bias in B",
        lambda m: setattr(of(m), "B_bias", None),
        r"layers\.0\.B_bias is no longer",
    ),
    "another bias": (
        "biases of adapted layers",
        lambda m: setattr(of(m).base_layer, "bias", another(of(m).base_layer.bias)),
        r"layers\.0\.base_layer\.bias is no longer",
    ),
    "a tensor in a whole layer": (
        "a whole layer",
        lambda m: setattr(of(m, "layers.2"), "weight", another(of(m, "layers.2").weight)),
        r"layers\.2\.weight is no longer",
    ),
    "a plain layer in the place of an adapted one": (
        "LoRA",
        lambda m: setattr(of(m, "layers"), "0", of(m).merge()),
        r"layers\.0\.A is no longer",
    ),
    "a new layer": (
        "LoRA",
        lambda m: setattr(of(m, "layers"), "3", ld.Linear(2, 2)),
        r"layers\.3\.weight is not one of its tensors",
    ),
    "a layer without parameters": (
        "LoRA",
        lambda m: setattr(of(m, "layers"), "1", Tanh()),
        r"layers\.1 is Tanh, but was ReLU",
    ),
    "one more of them": (
        "LoRA",
        lambda m: setattr(of(m, "layers"), "3", ld.ReLU()),
        r"layers\.3 is new",
    ),
    "the forward of a layer": (
        "LoRA",
        lambda m: setattr(of(m), "forward", of(m).base_layer.forward),
        r"layers\.0\.forward is <bound method",
    ),
    "the forward of the model": (
        "LoRA",
        lambda m: setattr(m.base_model, "forward", of(m, "layers").forward),
        r"the model\.forward is <bound method",
    ),
    "the frozen weight": (
        "LoRA",
        lambda m: setattr(of(m).base_layer.weight, "data", 0 * of(m).base_layer.weight.data),
        r"layers\.0\.base_layer\.weight has changed, but belongs to the base",
    ),
    "what is left of the weight": (
        "pissa",
        lambda m: setattr(of(m).base_layer.weight, "data", 0 * of(m).base_layer.weight.data),
        r"layers\.0\.base_layer\.weight has changed",
    ),
    "the training of all": ("DoRA", train_all, r"layers\.2\.base_layer\.bias has changed"),
    "a bias that does not train along": (
        "biases of adapted layers",
        lambda m: setattr(of(m, "layers.2").bias, "data", 1 + of(m, "layers.2").bias.data),
        r"layers\.2\.bias has changed, but belongs to the base",
    ),
}


@pytest.mark.parametrize("copied", [False, True], ids=["the model", "a copy of it"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_file_would_not_bring_back_is_not_saved(change, copied, tmp_path):
    kind, make, message = CHANGES[change]
    model = trained(kind)
    model = pickle.loads(pickle.dumps(copy.deepcopy(model))) if copied else model
    make(model)
    for save in (
        lambda: model.save_adapter(tmp_path / "a.npz"),
        lambda: model.save_pretrained(tmp_path),
        lambda: model.add_weighted_adapter(["default"], [1.0], "copy"),
    ):
        with pytest.raises(ValueError, match=f"cannot save or copy 'default': .* {message}"):
            save()
    assert not any(tmp_path.iterdir())
    assert list(model.peft_config) == ["default"]


def test_all_that_would_be_lost_is_listed(tmp_path):
    model = trained("DoRA")
    of(model).scaling, of(model).detach_norm = 1.0, False
    with pytest.raises(ValueError, match=r"layers\.0\.scaling .*; layers\.0\.detach_norm"):
        model.save_adapter(tmp_path / "a.npz")


@every_kind
def test_whatever_leaves_the_function_of_an_adapter_to_its_tensors_is_saved(kind, tmp_path):
    """New values, flags, modes, loaded states and copies change at most the tensors."""
    model = trained(kind)
    model.load_state_dict(model.state_dict())
    model.train().requires_grad_(False)
    model = pickle.loads(pickle.dumps(copy.deepcopy(model))).eval()
    model.requires_grad_(True)
    for p in model._adapters["default"].saved.values():
        p.data = p.data * np.float32(1.5)
    model.save_adapter(tmp_path / "a.npz")
    assert_array_equal(load(tmp_path / "a.npz")(X).data, model(X).data)


# ----------------------------------------------------------------------------- without a file


@every_kind
def test_a_state_is_what_a_file_holds(kind, tmp_path):
    model = trained(kind)
    state = ld.get_peft_model_state_dict(model)
    model.save_adapter(tmp_path / "a.npz")
    arrays = read(tmp_path / "a.npz")
    del arrays[CONFIG]
    assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in arrays.items()}

    options = {"r": 2, "target_modules": ["0", "2"]} | KINDS[kind]
    other = ld.get_peft_model(base(), ld.LoraConfig(**options), "other").eval()
    ld.set_peft_model_state_dict(other, state, "other")
    assert_array_equal(other(X).data, model(X).data)
    assert state_of(other) == state_of(model)
    expected = model(X).data
    for array in state.values():
        array += 1  # it is a copy
    assert_array_equal(model(X).data, expected)
    assert_array_equal(other(X).data, expected)


WRONG_STATES = {
    "a tensor is missing": (
        lambda s: s.pop(PREFIX + A),
        r"missing layers\.0\.lora_A\.weight \(2, 3\)",
    ),
    "one is too much": (
        lambda s: s.update({PREFIX + M: np.ones(4)}),
        r"unexpected layers\.0\.lora_m",
    ),
    "no prefix": (
        lambda s: s.update({A: s.pop(PREFIX + A)}),
        f"without the prefix '{PREFIX}': {A}",
    ),
    "another shape": (
        lambda s: s.update({PREFIX + A: s[PREFIX + A].T}),
        r"lora_A\.weight has shape \(3, 2\), expected \(2, 3\)",
    ),
    "integers": (
        lambda s: s.update({PREFIX + A: np.ones((2, 3), int)}),
        "has dtype int64, expected",
    ),
    "NaN": (
        lambda s: s.update({PREFIX + A: np.full((2, 3), np.nan)}),
        r"NaN or infinity in layers\.0\.lora_A\.weight \(see allow_nan\)",
    ),
    "too large": (
        lambda s: s.update({PREFIX + A: np.full((2, 3), 1e300)}),
        "NaN or infinity in lay",
    ),
    "another base": (
        lambda s: s.update({PREFIX + "layers.0.base_layer.weight": np.ones((4, 3))}),
        r"layers\.0\.base_layer\.weight differs from the base's",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_state_is_checked_as_a_file_is(wrong):
    change, message = WRONG_STATES[wrong]
    model = trained()
    state = ld.get_peft_model_state_dict(model)
    change(state)
    before = state_of(model)
    with pytest.raises(CheckpointError, match=f"the state for 'default': .*{message}"):
        ld.set_peft_model_state_dict(model, state)
    assert state_of(model) == before


def test_a_state_may_hold_nan_if_asked_for_and_is_cast_to_the_layer():
    model = trained()
    state = ld.get_peft_model_state_dict(model)
    state[PREFIX + A] = np.full((2, 3), np.nan)
    state[PREFIX + B] = mg.Tensor(np.ones((4, 2)))
    ld.set_peft_model_state_dict(model, state, allow_nan=True)
    assert np.isnan(of(model).A.data).all()
    assert_array_equal(of(model).B.data, np.ones((4, 2), np.float32))


def test_a_state_is_of_an_adapter_that_there_is_and_of_all_that_ran():
    model = trained()
    for attempt in (
        lambda: ld.get_peft_model_state_dict(model, "nobody"),
        lambda: ld.set_peft_model_state_dict(model, {}, "nobody"),
    ):
        with pytest.raises(ValueError, match="no adapter named 'nobody'"):
            attempt()
    of(model).scaling = 1.0
    with pytest.raises(ValueError, match=r"layers\.0\.scaling is 1\.0"):
        ld.get_peft_model_state_dict(model)
    with pytest.raises(TypeError, match=r"expected a loradora\.PeftModel, not a MLP"):
        ld.get_peft_model_state_dict(base())
    with pytest.raises(TypeError, match=r"expected a loradora\.PeftModel, not a MLP"):
        ld.set_peft_model_state_dict(base(), {})


# ----------------------------------------------------------------------------- what is on disk

KEYS = {
    "LoRA": {A, B, "layers.2.lora_A.weight", "layers.2.lora_B.weight"},
    "biases of adapted layers": {A, B, "layers.0.base_layer.bias"},
    "all biases": {A, B, M, "layers.0.base_layer.bias", "layers.2.bias"},
    "a whole layer": {A, B, "layers.2.weight", "layers.2.bias"},
    "a bias in B": {
        f"layers.{i}.lora_{part}" for i in (0, 2) for part in ("A.weight", "B.weight", "B.bias")
    },
    "DoRA": {
        f"layers.{i}.lora_{part}"
        for i in (0, 2)
        for part in ("A.weight", "B.weight", "magnitude_vector")
    },
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", ["default", "custom"])
def test_tensors_have_the_names_and_shapes_of_peft(kind, name, tmp_path):
    trained(kind, name).save_adapter(tmp_path / "a.npz")
    arrays = read(tmp_path / "a.npz")
    assert arrays.keys() == {CONFIG} | {PREFIX + key for key in KEYS[kind]}
    shapes = {A: (2, 3), B: (4, 2), M: (4,), "layers.0.lora_B.bias": (4,)}
    for key in KEYS[kind] & shapes.keys():
        assert arrays[PREFIX + key].shape == shapes[key]


def test_the_safetensors_file_is_sorted_contiguous_float32_with_the_format_of_pytorch(
    tmp_path, safetensors
):
    model = trained("DoRA")
    transposed = model.trainable_parameters()[0]
    transposed._data = np.asfortranarray(transposed.data)
    model.save_pretrained(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__")["format"] == "pt"
    assert list(header) == sorted(header)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert_array_equal(load(tmp_path)(X).data, model(X).data)


def test_the_config_has_the_values_of_the_adapter_and_is_ready_for_inference(tmp_path, safetensors):
    trained("rsDoRA").save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert list(config) == sorted(ld.LoraConfig().to_dict())
    chosen = ("inference_mode", "use_dora", "use_rslora", "r", "target_modules", "peft_type")
    assert [config[key] for key in chosen] == [True, True, True, 2, ["0", "2"], "LORA"]


# ----------------------------------------------------------------------------- other dtypes


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("layer", [np.float32, np.float64])
def test_float_tensors_load_into_the_dtype_of_the_layer(dtype, layer, tmp_path):
    value = np.arange(6, dtype=dtype).reshape(2, 3) / 4
    file = rewritten(tmp_path, **{A: value})
    loaded = dict(load(file, base(layer)).named_parameters())["base_model.layers.0.A"]
    assert loaded.dtype == layer
    assert_array_equal(loaded.data, value)


def test_float16_and_bfloat16_safetensors_load_into_the_dtype_of_the_layer(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    value = np.array([[1, -2.5, 3], [0.15625, 0, 256]], np.float32)
    for dtype, data in (
        ("F16", value.astype(np.float16).tobytes()),
        ("BF16", (value.view(np.uint32) >> 16).astype(np.uint16).tobytes()),
    ):
        replace_tensor(tmp_path / WEIGHTS, PREFIX + A, dtype, data)
        loaded = dict(load(tmp_path).named_parameters())["base_model.layers.0.A"]
        assert loaded.dtype == np.float32
        assert_array_equal(loaded.data, value)


def parts(file):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def assemble(file, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def replace_tensor(file, name, dtype, data):
    """Put a tensor of another dtype in the place of one, at the end of the file."""
    header, old = parts(file)
    header.pop("__metadata__", None)
    tensors = {n: old[slice(*entry["data_offsets"])] for n, entry in header.items()} | {name: data}
    header[name]["dtype"] = dtype
    at = 0
    for n, content in tensors.items():
        header[n]["data_offsets"] = [at, at + len(content)]
        at += len(content)
    assemble(file, header, b"".join(tensors.values()))


def test_a_value_too_large_for_the_layer_is_refused(tmp_path):
    file = rewritten(tmp_path, **{A: np.full((2, 3), 1e300)})
    refuse(file, "NaN or infinity in layers.0.lora_A.weight")


# ----------------------------------------------------------------------------- what does not fit

SHAPELESS = np.ones((2, 3), np.float32)

MISFITS = {
    "A is missing": ({"drop": [A]}, r"missing layers.0.lora_A.weight \(2, 3\)"),
    "m is missing": (
        {"kind": "DoRA", "drop": [M]},
        r"missing layers.0.lora_magnitude_vector \(4,\)",
    ),
    "m is too much": ({M: np.ones(4)}, r"unexpected layers.0.lora_magnitude_vector \(4,\)"),
    "another layer": ({"layers.1.lora_A.weight": SHAPELESS}, "unexpected layers.1.lora_A.weight"),
    "transposed": ({A: SHAPELESS.T}, r"lora_A.weight has shape \(3, 2\), expected \(2, 3\)"),
    "a scalar": ({A: np.float32(1)}, r"has shape \(\), expected \(2, 3\)"),
    "int32": ({A: np.ones((2, 3), np.int32)}, "lora_A.weight has dtype int32, expected a float"),
    "bool": ({A: np.ones((2, 3), bool)}, "lora_A.weight has dtype bool, expected a float"),
    "complex": ({A: np.ones((2, 3), complex)}, "has dtype complex128, expected a float"),
    "text": ({A: np.array([["a"] * 3] * 2)}, "has dtype <U1, expected a float"),
    "NaN": (
        {A: SHAPELESS * np.nan},
        r"NaN or infinity in layers.0.lora_A.weight \(see allow_nan\)",
    ),
    "infinity": ({B: np.full((4, 2), np.inf)}, "NaN or infinity in layers.0.lora_B.weight"),
    "a rank too high": ({"config": {"r": 4}}, r"has shape \(2, 3\), expected \(4, 3\)"),
    "a rank too low": ({"config": {"r": 1}}, r"has shape \(2, 3\), expected \(1, 3\)"),
    "an absurd rank": (
        {"config": {"r": 10**12}},
        r"a file of \d+ bytes cannot hold A and B of r=1000000000000 in layers.0",
    ),
    "DoRA in the config": (
        {"config": {"use_dora": True}},
        r"missing layers.0.lora_magnitude_vector",
    ),
    "LoRA in the config": (
        {"kind": "DoRA", "config": {"use_dora": False}},
        "unexpected layers.0.lora_m",
    ),
    "a bias in the config": (
        {"config": {"lora_bias": True}},
        r"missing layers.0.lora_B.bias \(4,\)",
    ),
    "biases in the config": ({"config": {"bias": "all"}}, "missing layers.0.base_layer.bias"),
    "another kind": ({"config": {"peft_type": "LOHA"}}, "peft_type must be 'LORA', not 'LOHA'"),
    "an absent option": ({"config": {"use_qalora": True}}, "use_qalora=True is not implemented"),
    "a bad rank": ({"config": {"r": 0}}, "r must be at least 1, not 0"),
    "a rank in words": ({"config": {"r": "two"}}, "r must be an integer, not 'two'"),
    "alpha NaN": ({"config": {"lora_alpha": float("nan")}}, "lora_alpha must be finite, not nan"),
    "no dict": ({"config": {"rank_pattern": None}}, "rank_pattern must be a dict"),
    "no expression": ({"config": {"alpha_pattern": {"(": 1}}}, "no regular expression"),
    "more ranks than can be read": (
        {"config": {"rank_pattern": {f"x{i}": i + 1 for i in range(2001)}}},
        "rank_pattern: it holds 2,001 patterns",
    ),
    "a slow expression": (
        {"config": {"alpha_pattern": {"(.|.)*!": 1}}},
        "alpha_pattern: .* is refused, because a search could take too long",
    ),
    "no config": ({"drop": [CONFIG]}, f"holds no adapter: it has no {CONFIG}"),
    "no JSON": (
        {CONFIG: np.frombuffer(b"{", np.uint8)},
        f"{CONFIG} in .*: Expecting property name",
    ),
    "no object": ({CONFIG: np.frombuffer(b"[1]", np.uint8)}, "expected an object, got list"),
    "no text": ({CONFIG: np.frombuffer(b"\xff", np.uint8)}, "can't decode byte 0xff"),
    "deep JSON": (
        {CONFIG: np.frombuffer(b"[" * 10**5, np.uint8)},
        "maximum recursion depth|Expecting",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_file_that_does_not_fit_is_refused(name, tmp_path):
    changes, message = MISFITS[name]
    refuse(rewritten(tmp_path, **changes), message)


@pytest.mark.parametrize(
    "names",
    [
        {"target_modules": ["0"]},
        {"target_modules": ["1"]},
        {"target_modules": ["q"]},
        {"target_modules": None},
        {"target_modules": r"layers\.0"},
        {"target_modules": "(.|.)*!"},
        {"target_modules": "("},
        {"exclude_modules": "(.|.)*!"},
        {"exclude_modules": ["2"]},
        {"layers_to_transform": [0]},
        {"layers_to_transform": [7], "layers_pattern": "blocks"},
        {"rank_pattern": {"0": 4}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["LoRA", "ranks and alphas"])
def test_the_tensors_say_which_layers_are_adapted_and_with_which_rank(kind, names, tmp_path):
    if kind == "ranks and alphas" and "rank_pattern" in names:
        names = {"rank_pattern": {"2": 3}}
    model = trained(kind)
    loaded = load(rewritten(tmp_path, kind, config=names))
    assert_array_equal(loaded(X).data, model(X).data)
    loaded.save_adapter(tmp_path / "again.npz")  # with a config that says so, too
    config = loaded.peft_config["default"]
    again = ld.get_peft_model(base(), dataclasses.replace(config, inference_mode=False))
    shapes = {name: p.shape for name, p in loaded.named_parameters()}
    assert {name: p.shape for name, p in again.named_parameters()} == shapes
    assert_array_equal(load(tmp_path / "again.npz")(X).data, model(X).data)


def test_a_file_for_none_of_the_layers_is_refused(tmp_path):
    file = rewritten(tmp_path, **{A.replace("0", "7"): SHAPELESS})
    arrays = {name: a for name, a in read(file).items() if ".7." in name or name == CONFIG}
    np.savez(file, **arrays)
    refuse(file, r"none of its tensors is for one of the layers layers\.0, layers\.2")


def test_all_problems_are_listed_at_once(tmp_path):
    file = rewritten(tmp_path, drop=[B], **{A: SHAPELESS.T, "more": np.ones(1)})
    with pytest.raises(CheckpointError) as caught:
        load(file)
    for problem in ("missing layers.0.lora_B.weight", "has shape (3, 2)", "unexpected more (1,)"):
        assert problem in str(caught.value)
    assert str(file) in str(caught.value)


def test_tensors_without_the_prefix_of_peft_are_refused(tmp_path):
    trained().save_adapter(tmp_path / "a.npz")
    arrays = read(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **arrays, stray=np.ones(1))
    refuse(tmp_path / "a.npz", "tensors without the prefix 'base_model.model.': stray")


def test_nan_is_accepted_if_asked_for_but_not_merged(tmp_path):
    model = load(rewritten(tmp_path, **{A: SHAPELESS * np.nan}), allow_nan=True)
    assert np.all(np.isnan(dict(model.named_parameters())["base_model.layers.0.A"].data))
    with pytest.raises(ValueError, match=r"cannot merge: NaN or infinity in layers\.0\.A"):
        model.merge_and_unload()


def test_unknown_keys_of_a_newer_file_warn(tmp_path):
    file = rewritten(tmp_path, config={"brand_new": 1})
    with pytest.warns(UserWarning, match=r"unknown keys in the adapter config: \['brand_new'\]"):
        load(file)


def test_a_config_of_five_keys_and_a_file_without_metadata_load(tmp_path, safetensors):
    model = trained()
    model.save_pretrained(tmp_path)
    values = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["0", "2"],
        "bias": "none",
    }
    (tmp_path / CONFIG).write_text(json.dumps(values))
    safetensors.save_file(safetensors.load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS)
    assert_array_equal(load(tmp_path)(X).data, model(X).data)


def test_weights_of_the_base_that_are_in_a_file_must_be_those_of_the_base(tmp_path):
    """PEFT writes them for an output layer that is adapted."""
    net = base()
    own = {f"layers.2.base_layer.{n}": getattr(net.layers[2], n).data for n in ("weight", "bias")}
    model = load(rewritten(tmp_path, **own))
    assert_array_equal(model(X).data, trained()(X).data)
    wide = {name: value.astype(np.float64) for name, value in own.items()}
    assert_array_equal(load(rewritten(tmp_path, **wide))(X).data, model(X).data)
    changed = own | {"layers.2.base_layer.weight": own["layers.2.base_layer.weight"] + 1}
    refuse(
        rewritten(tmp_path, **changed),
        r"layers\.2\.base_layer\.weight differs from the base's: it was trained on another",
    )
    refuse(
        rewritten(tmp_path, **{"layers.2.base_layer.weight": np.ones((2, 3))}),
        r"layers\.2\.base_layer\.weight has shape \(2, 3\), expected \(2, 4\)",
    )
    refuse(
        rewritten(tmp_path, **{"layers.2.base_layer.weight": np.full((2, 4), np.nan)}),
        r"layers\.2\.base_layer\.weight differs from the base's",
    )
    refuse(
        rewritten(tmp_path, **{"layers.2.weight": own["layers.2.base_layer.weight"]}),
        r"unexpected layers\.2\.weight",
    )


def test_a_folder_with_a_pickle_alone_says_what_to_do(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refuse(tmp_path, r"holds adapter_model\.bin, a pickle.*PEFT.*save_pretrained")
    assert not (tmp_path / "sprung").exists()


class Wrapped(ld.Module):
    """A module whose parts have the names of PEFT's own parts."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.block = ld.Module()
        self.block.original_module = ld.Linear(3, 3, rng=rng)
        self.block.modules_to_save = ld.Linear(3, 2, rng=rng)

    def forward(self, x):
        return self.block.modules_to_save(self.block.original_module(x))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["original_module"], "modules_to_save": ["modules_to_save"]},
        {"target_modules": ["modules_to_save"], "modules_to_save": ["original_module"]},
        {"target_modules": ["original_module"], "bias": "all"},
    ],
    ids=str,
)
def test_modules_with_the_names_of_pefts_own_survive(options, tmp_path):
    model = ld.get_peft_model(Wrapped(), ld.LoraConfig(r=2, **options))
    for p in model.trainable_parameters():
        p.data = p.data + np.float32(0.5)
    model.save_adapter(tmp_path / "a.npz")
    assert_array_equal(load(tmp_path / "a.npz", Wrapped())(X).data, model.eval()(X).data)


# ----------------------------------------------------------------------------- damage


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_the_trap_snaps(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("key", [PREFIX + A, CONFIG, "stray"])
def test_a_pickled_object_is_refused_and_never_unpickled(key, tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], object)
    trained().save_adapter(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", allow_pickle=True, **read(tmp_path / "a.npz") | {key: trap})
    refuse(
        tmp_path / "a.npz",
        "is not a valid .npz file: .*is not an array of numbers: its dtype is object",
    )
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refuse(tmp_path / "a.npz", "is not a valid .npz file")
    with pytest.raises(CheckpointError, match=r"is not a valid \.npz file"):
        ld.load_model(tmp_path / "a.npz", base())
    assert not (tmp_path / "sprung").exists()


def test_an_npz_cut_anywhere_is_refused(tmp_path):
    config = ld.LoraConfig(r=1, target_modules=["0"])
    net = ld.MLP([1, 1])
    ld.get_peft_model(net, config).save_adapter(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    for length in range(len(data)):
        (tmp_path / "a.npz").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load(tmp_path / "a.npz", net)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_folder_with_a_file_cut_anywhere_is_refused(file, tmp_path, safetensors):
    net = ld.MLP([1, 1])
    ld.get_peft_model(net, ld.LoraConfig(r=1, target_modules=["0"])).save_pretrained(tmp_path)
    data = (tmp_path / file).read_bytes()
    for length in range(len(data) - 1):  # the last byte of the JSON is a line feed
        (tmp_path / file).write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load(tmp_path, net)


@given(
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_are_refused_by_their_checksum(flips, tmp_path):
    file = tmp_path / "a.npz"
    trained().save_adapter(file)
    data, expected = bytearray(file.read_bytes()), trained()(X).data
    for at, mask in flips:
        data[int(at * len(data))] ^= mask
    file.write_bytes(data)
    try:
        loaded = load(file)
    except CheckpointError:
        return
    assert_array_equal(loaded(X).data, expected)  # it was a byte without a meaning


def test_members_that_the_directory_of_an_archive_hides_are_missed(tmp_path):
    """With one wrong byte in the length of a comment, all further members become part of the comment."""
    file = tmp_path / "a.npz"
    trained().save_adapter(file)
    data = bytearray(file.read_bytes())
    first = data.index(b"PK\1\2")
    second, end = data.index(b"PK\1\2", first + 4), data.rindex(b"PK\5\6")
    struct.pack_into("<H", data, first + 32, end - second)
    file.write_bytes(data)
    assert len(zipfile.ZipFile(file).infolist()) == 1
    with pytest.raises(CheckpointError, match="lists 1 of its"):
        load(file)


def test_damaged_files_are_refused_clearly_or_load_soundly_and_cost_little(tmp_path):
    counts = fuzz(400, tmp_path)
    assert counts.total() == 400
    assert {result for _, result in counts} == {"loaded", "refused"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_made_on_purpose_is_refused_or_sound_and_costs_little(name, tmp_path):
    if WEIGHTS in HOSTILE[name][0]():
        pytest.importorskip("safetensors")
    try_hostile(name, Net(), tmp_path)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(CONFIG, json.dumps(ld.LoraConfig(target_modules=["0"]).to_dict()))
    refuse(tmp_path / "a.npz", f"is not a valid .npz file: {CONFIG} is not an array")


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    trained().save_adapter(tmp_path / "a.npz")
    file = io.BytesIO()
    np.save(file, np.ones((2, 3), np.float32))
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr(f"{PREFIX}{A}.npy", file.getvalue())
    refuse(tmp_path / "a.npz", "is not a valid .npz file: .* occurs twice")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    refuse(tmp_path / "a.npy", "is not a valid .npz file: it is not an archive")


def header(entry=None, **changes):
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


FALSIFIED = {
    "empty": (b"", b"", 0),
    "no length": (None, b"\x01\x02", None),
    "a length of 2⁶³": (header(), bytes(8), 2**63),
    "a length of 2⁶⁴ − 1": (header(), bytes(8), 2**64 - 1),
    "a length beyond the file": (header(), bytes(8), 1000),
    "a length too short": (header(), bytes(8), 10),
    "no JSON": (b"{{{", b"", None),
    "no object": (b"[]", b"", None),
    "a negative offset": (header(data_offsets=[-8, 0]), bytes(8), None),
    "offsets the wrong way": (header(data_offsets=[8, 0]), bytes(8), None),
    "an offset beyond the file": (header(data_offsets=[0, 800], shape=[200]), bytes(8), None),
    "offsets that disagree with the shape": (header(shape=[3]), bytes(8), None),
    "a hole": (header(data_offsets=[4, 12]), bytes(12), None),
    "bytes too many": (header(), bytes(9), None),
    "bytes too few": (header(), bytes(7), None),
    "overlapping tensors": (
        {**header(), "u": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        bytes(12),
        None,
    ),
    "an unknown dtype": (header(dtype="F33"), bytes(8), None),
    "a shape that overflows": (header(shape=[2**32, 2**32]), bytes(8), None),
    "a negative shape": (header(shape=[-2]), bytes(8), None),
    "a name twice": (
        b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
        None,
    ),
}


@pytest.mark.parametrize("name", FALSIFIED)
def test_a_falsified_safetensors_file_is_refused(name, tmp_path, safetensors):
    text, data, length = FALSIFIED[name]
    trained().save_pretrained(tmp_path)
    if text is None:
        (tmp_path / WEIGHTS).write_bytes(data)
    else:
        assemble(tmp_path / WEIGHTS, text, data, length)
    refuse(tmp_path, "is not a valid safetensors file|tensors without the prefix")


def test_an_intact_file_of_the_same_make_is_read(tmp_path, safetensors):
    """The damaged files above are refused for their damage, not for the way they were written."""
    assemble(tmp_path / "t.safetensors", header(), np.array([1, 2], np.float32).tobytes())
    file = tmp_path / "t.safetensors"
    entries, _ = files.described(file, file.read_bytes())
    assert_array_equal(entries["t"].read(), [1, 2])


@pytest.mark.parametrize("dtype", ["I32", "I64", "BOOL", "U8"])
def test_safetensors_that_hold_no_floats_are_refused(dtype, tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    size, name = {
        "I32": (4, "int32"),
        "I64": (8, "int64"),
        "BOOL": (1, "bool"),
        "U8": (1, "uint8"),
    }[dtype]
    replace_tensor(tmp_path / WEIGHTS, PREFIX + A, dtype, bytes(6 * size))
    refuse(tmp_path, f"{A} has dtype {name}, expected a float dtype")


# ----------------------------------------------------------------------------- a config alone


@every_kind
def test_a_config_is_saved_alone_and_read_alone(kind, tmp_path):
    config = ld.LoraConfig(r=2, **{"target_modules": ["0", "2"]} | KINDS[kind])
    config.save_pretrained(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == [CONFIG]
    assert ld.LoraConfig.from_pretrained(tmp_path / "new" / "folder") == config


def test_the_config_of_a_folder_is_read_and_that_of_an_adapter_saved(tmp_path, safetensors):
    model = trained("rsDoRA")
    model.save_pretrained(tmp_path)
    config = ld.LoraConfig.from_pretrained(str(tmp_path))
    assert (config.use_dora, config.use_rslora, config.inference_mode) == (True, True, True)
    model.peft_config["default"].save_pretrained(tmp_path)
    assert not ld.LoraConfig.from_pretrained(tmp_path).inference_mode  # as it was, here as in PEFT


def test_a_config_that_is_not_valid_is_neither_saved_nor_read(tmp_path):
    config = ld.LoraConfig(target_modules=["0"])
    config.save_pretrained(tmp_path)
    before = (tmp_path / CONFIG).read_bytes()
    config.r = 0
    with pytest.raises(ValueError, match="r must be at least 1, not 0"):
        config.save_pretrained(tmp_path)
    assert (tmp_path / CONFIG).read_bytes() == before
    for text, message in (
        (json.dumps({"peft_type": "LORA", "r": -1}), "r must be at least 1"),
        (json.dumps({"peft_type": "LORA", "init_lora_weights": "eva"}), "must be one of"),
        (json.dumps({"peft_type": "LOHA"}), "peft_type must be 'LORA'"),
        ('{"peft_type": "LORA", "r": 1, "r": 2}', "a key occurs twice"),
        ("[]", "expected an object"),
        ("{", "Expecting"),
    ):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(CheckpointError, match=f"{CONFIG} in .*{message}"):
            ld.LoraConfig.from_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "newer": 1}))
    with pytest.warns(UserWarning, match=r"unknown keys in the adapter config: \['newer'\]"):
        ld.LoraConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read .*none: No such file .* downloaded"):
        ld.LoraConfig.from_pretrained(tmp_path / "none")
    (tmp_path / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=f"cannot read .*{CONFIG}: No such file"):
        ld.LoraConfig.from_pretrained(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_left_alone(tmp_path, safetensors):
    (tmp_path / "a").write_text("mine")
    for save in (trained().save_pretrained, ld.LoraConfig().save_pretrained):
        with pytest.raises(CheckpointError, match=r"cannot write .*a: File exists"):
            save(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


# ----------------------------------------------------------------------------- the file system


def test_what_is_not_there_is_named(tmp_path, safetensors):
    refuse(tmp_path / "none.npz", "cannot read .*none.npz: No such file")
    refuse(tmp_path, f"cannot read .*{CONFIG}: No such file")
    trained().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    refuse(tmp_path, f"cannot read .*{WEIGHTS}: No such file")
    trained().save_pretrained(tmp_path)
    (tmp_path / CONFIG).unlink()
    refuse(tmp_path, f"cannot read .*{CONFIG}: No such file")
    (tmp_path / CONFIG).mkdir()
    refuse(tmp_path, f"cannot read .*{CONFIG}: Is a directory")


def test_a_directory_in_the_place_of_a_file_is_left_alone(tmp_path, safetensors):
    model = trained()
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*a.npz: it is a directory"):
        model.save_adapter(tmp_path / "a.npz")
    with pytest.raises(CheckpointError, match=r"cannot write .*a.npz: it is a directory"):
        ld.save_model(tmp_path / "a.npz", base())
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(CheckpointError, match=f"cannot write .*{WEIGHTS}: it is a directory"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", "a\\b", "C:\\x", ""])
def test_a_name_that_leaves_the_folder_is_refused(name, tmp_path):
    model = trained()
    model.save_adapter(tmp_path / "a.npz")
    for attempt in (
        lambda: model.load_adapter(tmp_path / "a.npz", name),
        lambda: load(tmp_path / "a.npz", adapter_name=name),
        lambda: trained(name=name),
    ):
        with pytest.raises(ValueError, match="an adapter's name becomes a folder"):
            attempt()


def failing_replace(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)


def failing_write(monkeypatch):
    """The disk is full after 100 bytes."""
    open_file = builtins.open

    class Full(io.BufferedWriter):
        def write(self, data):
            if self.tell() + len(data) > 100:
                raise OSError(28, "No space left on device")
            return super().write(data)

    def open_full(file, mode="r", *args, **options):
        opened = open_file(file, mode, *args, **options)
        return Full(opened.detach()) if mode == "xb" else opened

    monkeypatch.setattr(builtins, "open", open_full)


def failing_sync(monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize("fail", [failing_replace, failing_write, failing_sync])
@pytest.mark.parametrize("save", ["save_adapter", "save_model", "a config"])
def test_a_save_that_fails_midway_leaves_the_old_file_and_no_other(
    fail, save, tmp_path, monkeypatch
):
    def write(model):
        if save == "save_model":
            ld.save_model(tmp_path / "a.npz", model)
        elif save == "save_adapter":
            model.save_adapter(tmp_path / "a.npz")
        else:
            model.peft_config["default"].save_pretrained(tmp_path)

    write(trained())
    (name,) = os.listdir(tmp_path)
    old = (tmp_path / name).read_bytes()
    fail(monkeypatch)
    with pytest.raises(CheckpointError, match=r"cannot write .*: (No space left|Input/output)"):
        write(trained("DoRA"))
    assert (tmp_path / name).read_bytes() == old
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("fail", [failing_replace, failing_write, failing_sync])
def test_a_folder_whose_save_fails_midway_keeps_its_files(fail, tmp_path, monkeypatch, safetensors):
    trained().save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    fail(monkeypatch)
    with pytest.raises(CheckpointError, match=r"cannot write .*: (No space left|Input/output)"):
        trained("DoRA").save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_saved_file_replaces_the_old_one(tmp_path):
    for kind in ("LoRA", "DoRA"):
        trained(kind).save_adapter(tmp_path / "a.npz")
        assert_array_equal(load(tmp_path / "a.npz")(X).data, trained(kind)(X).data)
    assert os.listdir(tmp_path) == ["a.npz"]


# ----------------------------------------------------------------------------- without safetensors


@pytest.mark.parametrize("missing", ["the module", "its import"])
def test_without_safetensors_the_error_names_the_extra_and_the_alternative(
    missing, tmp_path, monkeypatch
):
    (tmp_path / CONFIG).write_text("{}")
    if missing == "the module":
        for name in ("safetensors", "safetensors.numpy"):
            monkeypatch.setitem(sys.modules, name, None)
    else:
        monkeypatch.setattr(builtins, "__import__", importing_no_safetensors(builtins.__import__))
    for attempt, alternative in (
        (lambda: trained().save_pretrained(tmp_path / "new"), "save_adapter"),
        (lambda: load(tmp_path), ".npz files are read without it"),
        (lambda: ld.load_model(Path("net.safetensors"), base()), ".npz files are read without it"),
        (
            lambda: ld.save_model(tmp_path / "net.safetensors", base()),
            "save_model.*writes .npz, without it",
        ),
    ):
        with pytest.raises(
            ImportError, match=rf"\(extra 'peft'\): pip install safetensors; .*{alternative}"
        ):
            attempt()
    assert not (tmp_path / "new").exists()
    trained().save_adapter(tmp_path / "a.npz")
    load(tmp_path / "a.npz")


def importing_no_safetensors(real):
    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    return without


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, safetensors):
    """If the second of two files cannot be put in its place, the first one is restored."""
    trained().save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace, calls = os.replace, []

    def fail_at_the_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_second)
    with pytest.raises(CheckpointError, match="No space left"):
        trained("DoRA").save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_readme_that_is_there_stays(tmp_path, safetensors):
    (tmp_path / "README.md").write_text("my own words")
    trained().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_files_are_as_open_to_others_as_the_user_wants(tmp_path):
    for mask, mode in ((0o077, 0o600), (0o022, 0o644)):
        before = os.umask(mask)
        try:
            trained().save_adapter(tmp_path / "a.npz")
        finally:
            os.umask(before)
        assert (tmp_path / "a.npz").stat().st_mode & 0o777 == mode


def test_everything_that_is_wrong_is_listed_at_once(tmp_path):
    changes = {A: SHAPELESS.astype(np.int32)[:1] if SHAPELESS.ndim else np.zeros((1, 3), np.int32)}
    rewritten(tmp_path, **changes, **{"stray.weight": np.zeros(2, np.float32)})
    arrays = read(tmp_path / "a.npz")
    arrays.pop(PREFIX + "layers.0.lora_B.weight")
    arrays[PREFIX + "layers.2.lora_B.weight"] = np.full_like(
        arrays[PREFIX + "layers.2.lora_B.weight"], np.nan
    )
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError) as failure:
        load(tmp_path / "a.npz")
    for part in (
        "missing layers.0.lora_B.weight",
        f"{A} has shape",
        f"{A} has dtype int32",
        "unexpected stray.weight",
        "NaN or infinity in layers.2.lora_B.weight",
    ):
        assert part in str(failure.value)


def test_a_config_whose_alpha_was_edited_is_noticed(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    text = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(text | {"lora_alpha": 80}))
    refuse(tmp_path, r"or was edited: the scaling of layers\.0, layers\.2 is 40, but was 4\.0")


MIXES = {
    "pissa over LoRA": (
        {"init_lora_weights": "pissa"},
        "init_lora_weights is True, but was 'pissa'",
    ),
    "another alpha": ({"lora_alpha": 1}, r"the scaling of layers\.0, layers\.2 is 4, but was 0\.5"),
    "rsLoRA": ({"use_rslora": True}, r"the scaling of layers\.0, layers\.2 is 4, but was 5\.6"),
    "DoRA": ({"use_dora": True}, "use_dora is False, but was True"),
    "biases": ({"bias": "all"}, "bias is 'none', but was 'all'"),
    "dropout": ({"lora_dropout": 0.5}, "lora_dropout is 0.0, but was 0.5"),
}


@pytest.mark.parametrize("name", MIXES)
def test_weights_beside_the_config_of_another_save_are_refused(name, tmp_path, safetensors):
    options, message = MIXES[name]
    config = ld.LoraConfig(**{"r": 2, "target_modules": ["0", "2"], "lora_alpha": 8} | options)
    trained().save_pretrained(tmp_path / "old")
    ld.get_peft_model(base(), config, rng=0).save_pretrained(tmp_path / "new")
    (tmp_path / "new" / CONFIG).write_bytes((tmp_path / "old" / CONFIG).read_bytes())
    refuse(tmp_path / "new", f"{CONFIG} is not the one saved with {WEIGHTS} .*{message}")


def test_weights_of_which_some_are_gone_hold_less_than_they_note(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    notes = parts(tmp_path / WEIGHTS)[0]["__metadata__"]
    tensors = safetensors.load_file(tmp_path / WEIGHTS)
    fewer = {key: a for key, a in tensors.items() if "layers.0" in key}
    safetensors.save_file(fewer, tmp_path / WEIGHTS, notes)
    refuse(tmp_path, r"the tensors of layers\.2 are gone")


def test_an_adapter_on_another_model_is_not_taken_for_a_mix(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected layers\.2\.lora_A\.weight") as failure:
        load(tmp_path, ld.MLP([3, 4], rng=0))
    assert "edited" not in str(failure.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_part_of_a_folder_is_no_adapter(name, tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    refuse(tmp_path / name, f"{name} is a part of an adapter: give its folder")


def test_a_folder_whose_save_goes_on_is_read_again(tmp_path, monkeypatch, safetensors):
    """The config of a new save is there already, and its weights arrive while the reader waits."""
    trained("DoRA").save_pretrained(tmp_path / "new")
    trained().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / CONFIG).write_bytes((tmp_path / "new" / CONFIG).read_bytes())
    monkeypatch.setattr(
        checkpoint.time,
        "sleep",
        lambda _: os.replace(tmp_path / "new" / WEIGHTS, tmp_path / "a" / WEIGHTS),
    )
    assert_array_equal(load(tmp_path / "a")(X).data, trained("DoRA")(X).data)


def test_a_key_that_occurs_twice_in_the_config_is_refused(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    text = (tmp_path / CONFIG).read_text().replace('"lora_alpha"', '"lora_alpha": 1, "lora_alpha"')
    (tmp_path / CONFIG).write_text(text)
    refuse(tmp_path, "a key occurs twice")


def npy(header):
    """Return an ``.npy`` file with this header and nothing else."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def archive(file, members):
    """Write a deflated archive of these members."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members:
            new.writestr(name, content)


def packed(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def with_a_large_array(file):
    np.savez_compressed(file, **read(file), **{PREFIX + "bomb": np.zeros(200_000_000, np.uint8)})


def with_a_rank_of(r, **options):
    def change(file):
        rewritten(file.parent, config={"r": r} | options)
        np.savez(file, **read(file), **{PREFIX + "x": np.zeros((r, 0))})

    return change


def with_deflated_factors(file):
    r = 10**6
    factors = {A: np.zeros((r, 3), np.float32), B: np.zeros((4, r), np.float32)}
    rewritten(file.parent, config={"r": r})
    np.savez_compressed(file, **read(file) | {PREFIX + name: a for name, a in factors.items()})


def with_a_long_config(file):
    arrays = read(file)
    text = np.frombuffer(arrays.pop(CONFIG).tobytes() + b" " * 10**8, np.uint8)
    members = [(f"{name}.npy", packed(a)) for name, a in arrays.items()]
    archive(file, [*members, (f"{CONFIG}.npy", packed(text))])


def with_headers(count, header):
    return lambda file: archive(file, [(f"{i}.npy", npy(header)) for i in range(count)])


SHAPE = b"{'descr': '<f4', 'fortran_order': False, 'shape': "

BOMBS = {
    "a large array": (with_a_large_array, r"unexpected bomb \(200000000,\)"),
    "an absurd rank": (with_a_rank_of(10**7), "cannot hold A and B of r=10000000 in layers.0"),
    "an absurd orthogonal rank": (
        with_a_rank_of(10**8, init_lora_weights="orthogonal"),
        "cannot hold A and B of r=100000000 in layers.0",
    ),
    "factors of zeros": (with_deflated_factors, "cannot hold A and B of r=1000000 in layers.0"),
    "a long config": (with_a_long_config, f"{CONFIG} in .* is larger than 1048576 bytes"),
    "long headers": (with_headers(1300, SHAPE + b"(" * 9900), "0 is not an array of numbers"),
    "headers of blanks": (with_headers(1300, b" " * 65535), "0 is not an array of numbers"),
    "deep headers": (with_headers(4000, SHAPE + b"(" * 180), "0 is not an array of numbers"),
    "many arrays": (with_headers(31_000, b""), "it holds more than 30000 arrays"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_costs_no_more_than_its_size_and_the_model(name, tmp_path):
    change, message = BOMBS[name]
    trained().save_adapter(tmp_path / "a.npz")
    change(tmp_path / "a.npz")
    size = (tmp_path / "a.npz").stat().st_size
    tracemalloc.start()
    try:
        refuse(tmp_path / "a.npz", message)
        assert tracemalloc.get_traced_memory()[1] < 10 * size + 3_000_000
    finally:
        tracemalloc.stop()


def test_what_no_load_would_read_is_not_saved(tmp_path, monkeypatch, safetensors):
    monkeypatch.setattr(formats, "MOST_ARRAYS", 3)
    for save in (
        lambda: ld.save_model(tmp_path / "m.npz", base()),
        lambda: ld.save_model(tmp_path / "m.safetensors", base()),
        lambda: trained().save_adapter(tmp_path / "a.npz"),
        lambda: trained().save_pretrained(tmp_path / "a"),
    ):
        with pytest.raises(CheckpointError, match=r"cannot write .*at most 3"):
            save()
    monkeypatch.undo()
    config = ld.LoraConfig(target_modules=["0"], revision="x" * 2**20)
    with pytest.raises(CheckpointError, match="cannot write a config of 10"):
        ld.get_peft_model(base(), config).save_adapter(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_an_array_is_unpacked_to_its_size_alone(tmp_path):
    """The size of a member is right for its array, but the packed data go on."""
    trained().save_adapter(tmp_path / "a.npz")
    name = PREFIX + A
    arrays = read(tmp_path / "a.npz")
    long = packed(arrays[name]) + b"\0" * 10**8
    members = [(f"{n}.npy", long if n == name else packed(a)) for n, a in arrays.items()]
    archive(tmp_path / "a.npz", members)
    true = len(packed(arrays[name]))
    data = (tmp_path / "a.npz").read_bytes()
    data = data.replace(struct.pack("<I", len(long)), struct.pack("<I", true))
    (tmp_path / "a.npz").write_bytes(data)
    tracemalloc.start()
    try:
        refuse(tmp_path / "a.npz", "Bad CRC-32")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("option", ["target_modules", "rank_pattern"])
def test_ranks_are_known_though_the_pattern_that_gives_them_is_refused(option, tmp_path):
    model = trained("ranks and alphas")
    slow = "(.|.)*!" if option == "target_modules" else {"(.|.)*!": 3}
    loaded = load(rewritten(tmp_path, "ranks and alphas", config={option: slow}))
    assert_array_equal(loaded(X).data, model(X).data)


def test_no_adapter_is_saved_where_there_is_none(tmp_path, safetensors):
    with pytest.raises(ValueError, match="there is no adapter to save"):
        trained().save_pretrained(tmp_path, [])


def test_two_adapters_are_not_saved_in_one_place(tmp_path, safetensors):
    model = trained()
    model.add_adapter("other", ld.LoraConfig(r=1, target_modules=["0"]))
    (tmp_path / "other").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="two of the files have one place"):
        model.save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["other"]
    with pytest.raises(ValueError, match="an adapter's name becomes a folder"):
        model.add_adapter(".saving-x", ld.LoraConfig(r=1, target_modules=["0"]))


def test_a_long_config_in_a_folder_is_refused(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    with open(tmp_path / CONFIG, "a") as file:
        file.write(" " * 2**20)
    refuse(tmp_path, f"cannot read .*{CONFIG}: it is larger than 1048576 bytes")
    with pytest.raises(CheckpointError, match="larger than 1048576 bytes"):
        ld.LoraConfig.from_pretrained(tmp_path)


def test_a_rank_that_no_tensor_has_is_refused_before_anything_is_drawn(tmp_path, safetensors):
    trained().save_pretrained(tmp_path)
    text = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(
        json.dumps(text | {"r": 10**9, "init_lora_weights": "orthogonal"})
    )
    refuse(tmp_path, r"a file of \d+ bytes cannot hold A and B of r=1000000000 in layers\.[02]")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    refuse(tmp_path / "a.npz", "cannot read .*a.npz: it is not a file")


def test_a_checkpoint_of_pytorch_lists_a_shared_tensor_under_both_names(tmp_path):
    net = ld.Sequential(ld.Linear(2, 2), ld.ReLU())
    net.tied = net[0]
    both = {
        f"{name}.{n}": p.data + 1 for name in ("0", "tied") for n, p in net[0].named_parameters()
    }
    np.savez(tmp_path / "net.npz", **both)
    ld.load_model(tmp_path / "net.npz", net)
    assert_array_equal(net[0].weight.data, both["0.weight"])
    np.savez(
        tmp_path / "second.npz", **{"tied.weight": both["0.weight"] - 5, "0.bias": both["0.bias"]}
    )
    ld.load_model(tmp_path / "second.npz", net)
    assert_array_equal(net[0].weight.data, both["0.weight"] - 5)
    np.savez(tmp_path / "nan.npz", **{name: p * np.nan for name, p in both.items()})
    ld.load_model(tmp_path / "nan.npz", net, allow_nan=True)
    assert np.isnan(net[0].weight.data).all()
    net.load_state_dict({name: value for name, value in both.items() if name.startswith("0")})
    with pytest.raises(ValueError, match="unexpected else"):
        net.load_state_dict(both | {"else": np.zeros(1)})
    np.savez(tmp_path / "untied.npz", **both | {"tied.bias": both["0.bias"] + 1})
    with pytest.raises(
        ld.CheckpointError, match=r"tied\.bias and 0\.bias differ, and are one tensor"
    ):
        ld.load_model(tmp_path / "untied.npz", net)


@pytest.mark.parametrize("name", ["allow_pickle", "file", "args", "kwds", "self"])
def test_a_parameter_may_have_any_name(name, tmp_path):
    def made(value):
        model = ld.Sequential(ld.Linear(2, 1, rng=0))
        setattr(model, name, mg.Tensor([value], requires_grad=True))
        return model

    ld.save_model(tmp_path / "m.npz", made(3.0))
    model = made(0.0)
    ld.load_model(tmp_path / "m.npz", model)
    assert getattr(model, name).data == [3.0]


class Keeping(ld.Module):
    """A module that keeps what it has computed."""

    def __init__(self):
        self.first, self.second = ld.Linear(3, 3, rng=0), ld.Linear(3, 2, rng=0)

    def forward(self, x):
        self.hidden = mg.tanh(self.first(x))
        self.logits = [self.second(self.hidden)]
        self.detached = self.hidden.detach()
        return self.logits[0]


def test_what_a_forward_has_kept_is_no_part_of_an_adapter(tmp_path):
    config = ld.LoraConfig(r=2, target_modules="all-linear")
    model = ld.get_peft_model(Keeping(), config, rng=0)
    optimizer = ld.AdamW(model.parameters(), lr=0.1)
    for _ in ld.fit(model, X, np.zeros(len(X), int), optimizer=optimizer, steps=2, rng=0):
        pass
    model.save_adapter(tmp_path / "a.npz")
    model.add_weighted_adapter(["default"], [1.0], "copy")
    loaded = ld.PeftModel.from_pretrained(Keeping(), tmp_path / "a.npz")
    assert_array_equal(loaded(X).data, model.eval()(X).data)


@pytest.mark.parametrize("four", [4, np.float64(4), np.float32(4)])
def test_a_scaling_of_the_same_value_is_the_same(four, tmp_path):
    model = trained("LoRA")
    of(model).scaling = four
    model.save_adapter(tmp_path / "a.npz")


def test_a_model_loaded_into_an_adapted_one_must_have_its_base(tmp_path):
    model = trained("LoRA")
    ld.save_model(tmp_path / "m.npz", model)
    ld.load_model(tmp_path / "m.npz", model)
    other = ld.get_peft_model(
        ld.MLP([3, 3, 2], rng=9), ld.LoraConfig(r=2, target_modules="all-linear"), rng=0
    )
    ld.save_model(tmp_path / "m.npz", other)
    kept = ld.get_peft_model(
        ld.MLP([3, 3, 2], rng=1), ld.LoraConfig(r=2, target_modules="all-linear"), rng=0
    )
    before = kept.state_dict()
    with pytest.raises(CheckpointError, match="the state is that of another base"):
        ld.load_model(tmp_path / "m.npz", kept)
    assert all((value == before[name]).all() for name, value in kept.state_dict().items())


def test_a_dropout_of_the_base_that_has_changed_is_named(tmp_path):
    base = ld.Sequential(ld.Linear(3, 2, rng=0), ld.Dropout(0.1, rng=0))
    model = ld.get_peft_model(base, ld.LoraConfig(r=1, target_modules=["0"]), rng=0)
    model.base_model[1].p = 0.7
    with pytest.raises(ValueError, match=r"1 is Dropout\(p=0\.7\), but was Dropout\(p=0\.1\)"):
        model.save_adapter(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_single_number_keeps_its_shape_in_a_file(suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")

    def made(value):
        model = ld.Sequential(ld.Linear(2, 1, rng=0))
        model.temperature = mg.Tensor(value, requires_grad=True)
        return model

    ld.save_model(tmp_path / f"m.{suffix}", made(3.0))
    model = made(0.0)
    ld.load_model(tmp_path / f"m.{suffix}", model)
    assert (model.temperature.shape, model.temperature.item()) == ((), 3.0)
    config = ld.LoraConfig(r=1, target_modules=["1"], modules_to_save=["0"])
    adapted = ld.get_peft_model(ld.Sequential(made(2.0), ld.Linear(1, 1)), config, rng=0)
    state = ld.get_peft_model_state_dict(adapted)
    ld.set_peft_model_state_dict(adapted, state)
    assert adapted.base_model[0].temperature.shape == ()
