"""A base model can be exchanged as .safetensors, in one file or in shards, however it is nested.

The files are those of PyTorch and Hugging Face: ``safetensors.torch``, and ``huggingface_hub``, which
writes and reads shards with their index.  Values stay the same bit for bit.  The promise for outputs is
that of ``twins``: 1e-6 in float32 and 1e-12 in float64.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import loradora as ld

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
hub = pytest.importorskip("huggingface_hub", reason=NEEDED)
safetensors = pytest.importorskip("safetensors.torch", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)

nn = torch.nn
INDEX = "model.safetensors.index.json"
DTYPES = ["float16", "bfloat16", "float32", "float64"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
both_nets = pytest.mark.parametrize("tied", [False, True], ids=["nested", "nested and tied"])
both_methods = pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])


def build(self: Any, side: Any, listed: Any, by_name: Any, tied: bool) -> None:
    """Set layers as attributes, in Sequentials in a Sequential, in a list and in a dict."""
    self.first = side.Linear(7, 6, bias=False)
    self.body = side.Sequential(
        side.Sequential(side.Linear(6, 8), side.Tanh()),
        side.Sequential(side.Linear(8, 6), side.Sequential(side.Linear(6, 6, bias=False))),
        side.ReLU(),
    )
    self.blocks = listed([side.Linear(6, 6), side.Sequential(side.Linear(6, 6), side.Tanh())])
    self.heads = by_name({"left": side.Linear(6, 5), "right": side.Linear(6, 5, bias=False)})
    if tied:
        self.again = self.blocks[1]  # a whole module, and below a weight alone
        self.heads["right"].weight = self.heads["left"].weight


def output(self: Any, x: Any) -> Any:
    x = self.body(self.first(x))
    for block in self.blocks:
        x = block(x)
    x = self.again(x) if hasattr(self, "again") else x
    return self.heads["left"](x) + self.heads["right"](x)


class Theirs(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        build(self, nn, nn.ModuleList, nn.ModuleDict, tied)

    forward = output


class Ours(ld.Module):
    def __init__(self, tied: bool) -> None:
        build(self, ld, list, dict, tied)

    forward = output


def theirs(tied: bool, dtype: str = "float32", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Theirs(tied).to(getattr(torch, dtype))


def ours(tied: bool, dtype: str = "float32", net: Any = None) -> Any:
    """Return our net, with the weights of ``net`` if it is given."""
    model = Ours(tied)
    for p in model.parameters():
        p._data = p.data.astype(dtype)
    if net is not None:
        model.load_state_dict({name: p.numpy() for name, p in net.state_dict().items()})
    return model


def same_outputs(one: Any, other: Any, dtype: str = "float32") -> None:
    x = twins.data(dtype)[0]
    twins.agree(twins.run(one, x), twins.run(other, x))


def write(folder: Path, net: Any, shards: bool = True) -> Path:
    """Write a net as Hugging Face does; return the file to be read."""
    hub.save_torch_state_dict(net.state_dict(), folder, max_shard_size=250 if shards else "5GB")
    if not shards:
        return folder / "model.safetensors"
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return folder / INDEX


# ---------------------------------------------------------------------------------------- from there


def test_names_and_shapes_are_those_of_pytorch() -> None:
    shapes = {name: tuple(p.shape) for name, p in theirs(False).state_dict().items()}
    assert {name: p.shape for name, p in ours(False).named_parameters()} == shapes
    # PyTorch names a tensor again in each place, named_parameters() here and there once
    first = {name for name, _ in theirs(True).named_parameters()}
    assert {name for name, _ in ours(True).named_parameters()} == first


@both_nets
@every_dtype
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_what_hugging_face_writes_is_read(
    shards: bool, dtype: str, tied: bool, tmp_path: Path
) -> None:
    wide = "float64" if dtype == "float64" else "float32"
    net, model = theirs(tied, dtype), ours(tied, wide)
    ld.load_model(write(tmp_path, net, shards), model)
    same_outputs(model, net.to(getattr(torch, wide)), wide)
    state = {name: p.numpy() for name, p in net.state_dict().items()}
    twins.agree(model.state_dict(), {name: state[name] for name in model.state_dict()}, 0)


@both_nets
@every_dtype
def test_what_safetensors_writes_is_read(dtype: str, tied: bool, tmp_path: Path) -> None:
    net, model = theirs(tied, dtype), ours(tied, "float64")
    copies = {name: p.clone() for name, p in net.state_dict().items()}  # under all names
    safetensors.save_file(copies, tmp_path / "all.safetensors")
    safetensors.save_model(net, str(tmp_path / "once.safetensors"))
    net = net.double()
    for name in ("all", "once"):
        ld.load_model(tmp_path / f"{name}.safetensors", model)
        same_outputs(model, net, "float64")
        model = ours(tied, "float64")


# ---------------------------------------------------------------------------------------- from here


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_pytorch_reads_what_is_written_here(dtype: str, tmp_path: Path) -> None:
    net, again = theirs(False, dtype), theirs(False, dtype, seed=1)
    ld.save_model(tmp_path / "model.safetensors", ours(False, dtype, net))
    again.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"), strict=True)
    twins.agree(twins.state(again), twins.state(net), tolerance=0)


def test_pytorch_reads_a_tied_tensor_under_its_first_name(tmp_path: Path) -> None:
    """As in all files of safetensors, which hold each once: its load_model() knows the other names."""
    net, file = theirs(True), tmp_path / "model.safetensors"
    ld.save_model(file, ours(True, net=net))
    again = theirs(True, seed=1)
    assert safetensors.load_model(again, file, strict=True) == (set(), [])
    twins.agree(twins.state(again), twins.state(net), tolerance=0)
    again = theirs(True, seed=1)
    found = again.load_state_dict(safetensors.load_file(file), strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys == ["heads.right.weight", "again.0.weight", "again.0.bias"]
    twins.agree(twins.state(again), twins.state(net), tolerance=0)


def test_hugging_face_reads_what_is_written_here(tmp_path: Path) -> None:
    net, again = theirs(False), theirs(False, seed=1)
    ld.save_model(tmp_path / "model.safetensors", ours(False, net=net))
    hub.load_torch_model(again, tmp_path, strict=True)
    twins.agree(twins.state(again), twins.state(net), tolerance=0)


# ------------------------------------------------------------------------------------------- merged


OPTIONS = {"r": 2, "lora_alpha": 6, "target_modules": ["first", "body.1.0", "0.0", "left"]}


@both_methods
def test_a_model_merged_here_leaves(use_dora: bool, tmp_path: Path) -> None:
    net = theirs(False)
    model = twins.adapt(ours(False, net=net), **OPTIONS, use_dora=use_dora)
    model = twins.train(model, 5)
    merged = model.merge_and_unload()
    ld.save_model(tmp_path / "merged.safetensors", merged)
    again = theirs(False, seed=1)
    again.load_state_dict(safetensors.load_file(tmp_path / "merged.safetensors"), strict=True)
    same_outputs(model, again)
    with pytest.raises(AssertionError):  # the training did something
        same_outputs(again, net)


@both_methods
def test_a_model_merged_there_arrives_in_shards(use_dora: bool, tmp_path: Path) -> None:
    net, model = twins.adapt(theirs(False), **OPTIONS, use_dora=use_dora), ours(False)
    net = twins.train(net, 5).merge_and_unload()
    ld.load_model(write(tmp_path, net), model)
    same_outputs(model, net)


# ------------------------------------------------------------------------------------------ refused


def eager(net: Any) -> Any:
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, eager])
def test_a_wrapped_model_is_read(wrap: Any, tmp_path: Path) -> None:
    net = theirs(False)
    file, model = write(tmp_path, wrap(net)), ours(False)
    ld.load_model(file, model)
    twins.agree(model.state_dict(), twins.state(net), tolerance=0)


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hub.save_torch_state_dict(
        theirs(False).state_dict(), tmp_path, max_shard_size=250, safe_serialization=False
    )
    with pytest.raises(ld.CheckpointError, match=r"pytorch_model-00001-of-\d+\.bin' is a pickle"):
        ld.load_model(tmp_path / "pytorch_model.bin.index.json", ours(False))


def test_a_shard_that_was_lost_on_the_way_is_named(tmp_path: Path) -> None:
    file, model = write(tmp_path, theirs(False)), ours(False)
    places = json.loads(file.read_text())["weight_map"]
    lost = places["blocks.0.weight"]
    (tmp_path / lost).unlink()
    before = model.state_dict()
    with pytest.raises(ld.CheckpointError, match=f"cannot read .*{lost}: No such file"):
        ld.load_model(file, model)
    twins.agree(model.state_dict(), before, tolerance=0)
