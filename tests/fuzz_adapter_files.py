"""Damage adapter files at random: loading must give a clear error or a sound model, and nothing else.

    python tests/fuzz_adapter_files.py --count 20000

Valid files (``.npz``, PEFT's folder if safetensors is installed, models, one of them in shards, and
configs alone) are changed a little: bytes flipped, removed, repeated or moved, values in the JSON
replaced, tensors renamed, reshaped or retyped, headers and directories made to lie.  Where a checksum or
a length would give the change away at once, it is corrected, so that the damage reaches what is
inside.  Then come the files of ``hostile_files.py``, which somebody made on purpose.
The test suite tries those, and four hundred random ones.

A clear error is a ``CheckpointError`` of less than 10,000 characters.  A sound model computes what the
tensors and the config in the file say, evaluated here in NumPy alone.  Either way the base must be
unchanged.  Loading must take less than two seconds of processor time, and no more memory than a small
multiple of the file.  Anything else is reported with its seed.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import json
import re
import signal
import tempfile
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
from hostile_files import (
    CONFIG,
    HOSTILE,
    LAYERS,
    PATTERNS,
    PREFIX,
    SIZES,
    WEIGHTS,
    archive,
    as_npy,
    described,
    member,
    nested,
    npy,
    zip64,
)

import loradora as ld

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
INDEX, SHARDS = "model.safetensors.index.json", ("one.safetensors", "two.safetensors")
SECONDS, TIMES, MEGABYTES = 2, 20, 30


class Net(ld.Module):
    """An MLP behind a long name, so that work for every letter of a path shows."""

    def __init__(self):
        self.fifteen_letters = ld.MLP(SIZES, rng=np.random.default_rng(0))

    def forward(self, x):
        return self.fifteen_letters(x)


KINDS = [
    {},
    {"use_dora": True, "bias": "all"},
    {"use_rslora": True, "lora_alpha": 3, "alpha_pattern": {"0": 5}, "rank_pattern": {"2": 1}},
    {"init_lora_weights": "pissa", "lora_bias": False},
    {"init_lora_weights": "olora", "use_dora": True, "use_rslora": True},
    {"target_modules": ["0"], "modules_to_save": ["2"], "lora_dropout": 0.5},
    {"lora_bias": True, "bias": "lora_only", "target_modules": "all-linear"},
    {"use_dora": True, "norm_axis": 0},
]


def trained(**options):
    config = ld.LoraConfig(**{"r": 2, "target_modules": ["0", "2"]} | options)
    rng = np.random.default_rng(1)
    model = ld.get_peft_model(Net(), config, rng=rng)
    for p in model.trainable_parameters():
        p.data = rng.normal(size=p.shape).astype(p.dtype)
    return model


def valid_files(folder):
    """Return the bytes of small valid files: by kind, a list of {file name: content}."""
    kinds = collections.defaultdict(list)
    suffixes = [".npz"]
    if importlib.util.find_spec("safetensors"):
        suffixes.append(".safetensors")
    for options in KINDS:
        model = trained(**options)
        model.save_adapter(folder / "valid.npz")
        kinds["npz"].append({"a.npz": (folder / "valid.npz").read_bytes()})
        if len(suffixes) > 1 and "norm_axis" not in options:  # which PEFT does not have
            model.save_pretrained(folder / "valid")
            content = {name: (folder / "valid" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
            kinds["safetensors"].append(content)
            kinds["json"].append(content)
        model.peft_config["default"].save_pretrained(folder / "valid")
        kinds["config"].append({CONFIG: (folder / "valid" / CONFIG).read_bytes()})
    for suffix in suffixes:
        ld.save_model(folder / f"valid{suffix}", Net())
        content = (folder / f"valid{suffix}").read_bytes()
        kinds[f"model{suffix}"].append({f"model{suffix}": content})
    if len(suffixes) > 1:
        kinds["index"] = kinds["shard"] = [in_shards(content)]
    return dict(kinds)


def in_shards(content):
    """Return a model in two files and their index, every other tensor in the second."""
    arrays, places = arrays_in("model.safetensors", content), {}
    files = {}
    for i, shard in enumerate(SHARDS):
        held = {name: arrays[name] for name in list(arrays)[i::2]}
        places |= dict.fromkeys(held, shard)
        files[shard] = safetensors_of(held)
    return {INDEX: json.dumps({"metadata": {}, "weight_map": places}).encode(), **files}


def safetensors_of(arrays):
    """Return a file with float32 arrays, as the README of safetensors has it."""
    header, body = {}, b""
    for name, a in arrays.items():
        offsets = [len(body), len(body) + a.nbytes]
        header[name] = {"dtype": "F32", "shape": a.shape, "data_offsets": offsets}
        body += a.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


# ----------------------------------------------------------------------------- damage


def flip(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


def cut(data, rng):
    return data[: rng.integers(len(data))]


def remove(data, rng):
    start = rng.integers(len(data))
    return data[:start] + data[start + rng.integers(1, 9) :]


def repeat(data, rng):
    start = rng.integers(len(data))
    return data[:start] + data[start : start + rng.integers(1, 40)] + data[start:]


def overwrite(data, rng):
    """Put a piece of the file over another piece."""
    a, b = rng.integers(len(data), size=2)
    piece = data[a : a + rng.integers(1, 30)]
    return data[:b] + piece + data[b + len(piece) :]


def append(data, rng):
    return data + rng.bytes(rng.integers(1, 20))


def retouch_number(data, rng):
    """Replace a run of digits: lengths, offsets, sizes, ranks."""
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not digits:
        return flip(data, rng)
    at = digits[rng.integers(len(digits))]
    new = rng.choice([b"0", b"-1", b"7", b"99999999", b"1e9", b"18446744073709551615", b"null"])
    return data[:at] + bytes(new) + data[at + 1 :]


DAMAGE = [flip, flip, cut, remove, repeat, overwrite, append, retouch_number]

VALUES = [
    *["a{99999999999999999999}", "(?i)0", "0|2", "(", "0", "", "none", "layers.0", "all-linear"],
    *["pissa", "olora", "eva", "CAUSAL_LM", "\ud800", "\0", "x" * 10**5],
    *PATTERNS.values(),
    *[None, True, False, -1, 0, 1, 2, 3, 8, 2**31, 2**63, 2**70, int("9" * 400)],
    *[-0.5, 0.0, 0.5, 3.5, 1e-320, 1e30, 1e39, 1e308, float("inf"), float("nan")],
    *[[], ["0"], ["2"], ["1", "0"], [""], ["layers"], [None], [["0"]], [0], [-1], [1e308]],
    *[{}, {"0": 1}, {"2": 3}, {"0": 1e308}, {"": 2}, {"(.|.)*!": 2}, {"0": {"0": 1}}, {"0": None}],
    [f"name {i}" for i in range(20_000)],
    {f"name{i}": 1 for i in range(20_000)},
    json.loads(nested(600)),
]


def a_value(rng):
    return VALUES[rng.integers(len(VALUES))]


def other_json(data, rng):
    """Return the config with one to three values replaced, or keys removed or added."""
    values = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        key = rng.choice(list(values)) if values else "r"
        if rng.random() < 0.2:
            values.pop(key, None)
        else:
            values[str(key)] = a_value(rng)
    return json.dumps(values).encode()


def other_place(data, rng):
    """Return an index that gives a tensor, or one that there is not, to another place."""
    index = json.loads(data)
    name = str(rng.choice(list(index["weight_map"]))) + "x" * int(rng.random() < 0.2)
    places = [*SHARDS, f"../{SHARDS[0]}", "no.safetensors", INDEX, a_value(rng)]
    index["weight_map"][name] = places[rng.integers(len(places))]
    return json.dumps(index).encode()


def lies_about(value, rng):
    """Return the options of a member that lies about its size, its place, or its way of packing."""
    n = int(rng.choice([0, 1, value, 128, 2**16 - 1, 2**31, 2**32 - 1]))
    key = str(rng.choice(["size", "packed", "offset", "crc", "flags", "method", "extra"]))
    if key in ("flags", "method"):
        return {key: int(rng.choice([0, 1, 8, 9, 12, 14, 0x20, 0x800, 0xFFFF]))}
    if key == "extra":
        numbers = [int(v) for v in rng.choice([0, 1, 2**31, 2**63 - 1], size=rng.integers(4))]
        return {"extra": zip64(*numbers), "offset": 2**32 - 1, "size": 2**32 - 1}
    return {key: n}


def lying_archive(data, rng):
    """Return the ``.npz`` with a directory that is wrong about one member, or a member twice."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [[name, old.read(name)] for name in old.namelist()]
    chosen = rng.integers(len(members))
    if rng.random() < 0.2:
        members.append(members[chosen])
    lies = lies_about(len(members[chosen][1]), rng)
    packed = bool(rng.integers(2))
    return archive(
        [member(*m, packed, **(lies if i == chosen else {})) for i, m in enumerate(members)]
    )


HEADERS = {
    "shape": [
        "(2L, 3L)",
        "(0, 10000000)",
        "(10000000, 0)",
        "(2, 2**62)",
        "(-1,)",
        "((2,), 3)",
        "[2]",
    ],
    "descr": [
        "'>f4'",
        "'|O'",
        "[('a', '<f4')]",
        "'<f2'",
        "'|S1000000000'",
        "'<M8'",
        "('<f4', 2)",
        "4",
    ],
    "fortran_order": ["True", "2", "None", "False, 'x': 1", "1L"],
}


def other_npy(data, rng):
    """Return the ``.npz`` with another header on an array, or one array more that has it."""
    with np.load(io.BytesIO(data)) as loaded:
        arrays = dict(loaded)
    name = str(rng.choice(list(arrays)))
    array = arrays.pop(name) if rng.random() < 0.7 else np.zeros((0, 3), np.float32)
    changes = {}
    for _ in range(rng.integers(3)):
        key = str(rng.choice(list(HEADERS)))
        changes[key] = str(rng.choice(HEADERS[key]))
    version = int(rng.choice([1, 1, 2, 3, 4]))
    other = member(f"{name}.npy", npy(described(array, **changes), array.tobytes(), version))
    return archive(
        [other, *(member(f"{k}.npy", as_npy(v)) for k, v in arrays.items() if k != name)]
    )


def other_tensors(data, rng):
    """Return the ``.npz`` with a tensor dropped, renamed, reshaped, retyped or made NaN."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    name = str(rng.choice(list(arrays)))
    a = arrays.pop(name)
    if name == CONFIG:
        a = np.frombuffer(other_json(a.tobytes(), rng), np.uint8)
    changed = [
        {},
        {name + "x": a},
        {name: a.T.copy()},
        {name: a[..., :-1]},
        {name: a.astype(np.int32)},
        {name: a.astype(np.float16)},
        {name: a * np.nan},
        {name: a.astype(complex)},
        {name: a},
    ]
    file = io.BytesIO()
    np.savez(file, **arrays, **changed[rng.integers(len(changed))])
    return file.getvalue()


def other_member(data, rng):
    """Return the ``.npz`` with one of its arrays damaged and then packed again, checksums and all."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = str(rng.choice(list(members)))
    members[name] = (
        DAMAGE[rng.integers(len(DAMAGE))](members[name][:128], rng) + members[name][128:]
    )
    ways = [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", ways[rng.integers(len(ways))]) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue()


SHAPES = [[0, 2**62], [2**63, 0], [0, 10**7], [1] * 65, [], [2, 3], [-1], ["2"], None, [2.5], 3]


def other_note(header, rng):
    """Return the header with other metadata: of another type, or without the proof that it is whole."""
    notes = header.get("__metadata__", {})
    key = str(rng.choice([*notes, "loradora_scalings", "loradora_x"]))
    text = [json.dumps(a_value(rng)), nested(10**4), "{", "\0", "{}", "[]", "1", "null", '"x"']
    changed = notes | {key: text[rng.integers(len(text))]}
    without = {k: v for k, v in notes.items() if k != key}
    return [changed, without, {}, a_value(rng), notes | {key: a_value(rng)}][rng.integers(5)]


def other_offsets(header, rng):
    """Return an entry of the header with its ends swapped, moved, or put over those of another."""
    names = [name for name in header if name != "__metadata__"]
    one, other = (header[str(name)] for name in rng.choice(names, size=2))
    start, end = one["data_offsets"]
    n = int(rng.choice([1, 4, 2**31, 2**63]))
    ends = [
        [end, start],
        [start + n, end + n],
        [start, end + n],
        other["data_offsets"],
        [-n, end],
        [],
    ]
    return {str(rng.choice(names)): one | {"data_offsets": ends[rng.integers(len(ends))]}}


def other_header(data, rng):
    """Return the safetensors file with its header damaged, or one tensor more, and the length right."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = rng.integers(4)
    if way == 0:
        text = DAMAGE[rng.integers(len(DAMAGE))](data[8 : 8 + length], rng)
    elif way == 1:
        text = json.dumps(header | {"__metadata__": other_note(header, rng)}).encode()
    elif way == 2:
        text = json.dumps(header | other_offsets(header, rng)).encode()
    else:
        shape = SHAPES[rng.integers(len(SHAPES))]
        kind = str(rng.choice(["F32", "BF16", "I64", "F8_E4M3", "C64"]))
        extra = {"dtype": kind, "shape": shape, "data_offsets": [len(body)] * 2}
        text = json.dumps(header | {str(rng.choice(list(header))) + "x": extra}).encode()
    return len(text).to_bytes(8, "little") + text + body


INSIDE = {
    "npz": [other_tensors] * 4 + [other_member] * 6 + [lying_archive] * 4 + [other_npy] * 4,
    "safetensors": [other_header] * 10,
    "json": [other_json] * 12,
}
INSIDE |= {"config": INSIDE["json"]}
INSIDE |= {"model.npz": INSIDE["npz"][4:], "model.safetensors": INSIDE["safetensors"]}
INSIDE |= {"index": [other_json] * 4 + [other_place] * 8, "shard": INSIDE["safetensors"]}

#: Which file is damaged, if it is not called as its kind.
TARGETS = {"npz": "a.npz", "safetensors": WEIGHTS, "json": CONFIG, "config": CONFIG}
TARGETS |= {"index": INDEX, "shard": SHARDS[0]}


def damaged(kind, files, rng):
    """Return the files with one of them damaged."""
    ways, target = DAMAGE + INSIDE[kind], TARGETS.get(kind, kind)
    with np.errstate(all="ignore"):
        return files | {target: ways[rng.integers(len(ways))](files[target], rng)}


# ----------------------------------------------------------------------------- what a file says

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


def arrays_in(name, content):
    """Return the arrays in an ``.npz`` or a ``.safetensors`` file, read as the formats say."""
    if name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            read = np.lib.format.read_array
            names = packed.namelist()
            return {n.removesuffix(".npy"): read(io.BytesIO(packed.read(n))) for n in names}
    length = int.from_bytes(content[:8], "little")
    arrays = {}
    for key, said in json.loads(content[8 : 8 + length]).items():
        if key != "__metadata__":
            start, end = said["data_offsets"]
            array = np.frombuffer(content[8 + length :][start:end], DTYPES[said["dtype"]])
            if said["dtype"] == "BF16":
                array = (array.astype("<u4") << 16).view("<f4")
            arrays[key] = array.reshape(said["shape"])
    return arrays


def adapter_in(files):
    """Return the config of an adapter, and its tensors by their names without the prefix."""
    if "a.npz" in files:
        arrays = arrays_in("a.npz", files["a.npz"])
        text = arrays.pop(CONFIG).tobytes()
    else:
        arrays, text = arrays_in(WEIGHTS, files[WEIGHTS]), files[CONFIG]
    assert all(a.dtype.kind == "f" and key.startswith(PREFIX) for key, a in arrays.items())
    arrays = {k.removeprefix(PREFIX): a.astype(np.float32) for k, a in arrays.items()}
    return json.loads(text), {k: a.astype(np.float64) for k, a in arrays.items()}


def scaling(config, path, r):
    """Return s of a layer."""
    patterns = config.get("alpha_pattern", {})
    found = [a for pattern, a in patterns.items() if re.match(rf"(.*\.)?({pattern})$", path)]
    alpha = (found or [config.get("lora_alpha", 8)])[0]
    return alpha / (np.sqrt(r) if config.get("use_rslora") else r)


def residual(W0, scheme, r, s):
    """Return what PiSSA and OLoRA leave of a weight when A and B are taken out of it."""
    if scheme == "pissa":
        U, S, Vt = np.linalg.svd(W0)
        return W0 - (U[:, :r] * S[:r]) @ Vt[:r]
    Q, R = np.linalg.qr(W0)
    return W0 - s * Q[:, :r] @ R[:r] if scheme == "olora" else W0


def adapted(config, path, W0, own):
    """Return the weight that an adapted layer amounts to, the bias of B, and how large its terms are."""
    A, B = own.pop("lora_A.weight"), own.pop("lora_B.weight")
    s, start = scaling(config, path, len(A)), config.get("init_lora_weights", True)
    W = residual(W0, start.lower() if isinstance(start, str) else start, len(A), s)
    size, W = np.abs(W0) + np.abs(W) + abs(s) * np.abs(B) @ np.abs(A), W + s * B @ A
    if config.get("use_dora"):
        m, axis = own.pop("lora_magnitude_vector"), 1 - config.get("norm_axis", 1)
        norm = np.linalg.norm(W, axis=1 - axis)
        factor = np.expand_dims(np.where(norm > 0, m / np.where(norm > 0, norm, 1), 0), 1 - axis)
        W, size = factor * W, np.abs(factor) * size
    bias = s * own.pop("lora_B.bias") if config.get("lora_bias") else 0
    return W, bias, size


def expected(config, tensors):
    """Return what the network with this adapter computes, and how large the terms are that add up to it.

    Raises an error if a tensor is not used: a model that was loaded must not have ignored it.
    """
    state = {k: a.astype(np.float64) for k, a in Net().state_dict().items()}
    x = X.astype(np.float64)
    total = np.abs(x)
    for path in LAYERS:
        W, b = state[f"{path}.weight"], state[f"{path}.bias"]
        own = {
            n.removeprefix(f"{path}."): a for n, a in tensors.items() if n.startswith(f"{path}.")
        }
        tensors = {n: a for n, a in tensors.items() if not n.startswith(f"{path}.")}
        size, more = np.abs(W), 0
        if "lora_A.weight" in own:
            b = own.pop("base_layer.bias", b)
            np.testing.assert_array_equal(own.pop("base_layer.weight", W), W)
            W, more, size = adapted(config, path, W, own)
        else:
            W, b = own.pop("weight", W), own.pop("bias", b)
            size = np.abs(W)
        assert not own, f"{path} ignores {list(own)}"
        x, total = x @ W.T + b + more, total @ size.T + np.abs(b) + np.abs(more)
        if path == LAYERS[0]:
            x = np.maximum(x, 0)
    assert not tensors, f"ignored: {list(tensors)}"
    return x, total


def check_function(model, files):
    """Raise unless the model computes what the files say, as far as the numbers are of ordinary size."""
    y = model(X).data
    config, tensors = adapter_in(files)
    numbers = [a for path in LAYERS for a in (scaling(config, path, 1),)]
    largest = max(np.abs(a).max(initial=0) for a in (*tensors.values(), *numbers))
    if largest < 1e4:
        wanted, total = expected(config, tensors)
        assert np.all(np.abs(y - wanted) <= 1e-4 * total + 1e-6), f"computes {y}, not {wanted}"


def check_parameters(model, files):
    """Raise unless the model has exactly the parameters in the file, or in its shards."""
    held = {name: content for name, content in files.items() if name != INDEX}
    arrays = {k: a for name, content in held.items() for k, a in arrays_in(name, content).items()}
    state = model.state_dict()
    assert arrays.keys() == state.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(state[key], array.astype(np.float32))


# ----------------------------------------------------------------------------- what happens


class Spent(RuntimeError):
    """More time or memory than a file of its size may cost."""


class Late(BaseException):
    """Time to give up, even for code that catches every Exception."""


@contextlib.contextmanager
def in_time(n):
    """Raise Spent if what happens inside takes too long for files of ``n`` bytes."""
    start = time.process_time()  # others may keep the machine busy
    try:
        with given_up():
            yield
    finally:
        seconds = time.process_time() - start
        if seconds > SECONDS:
            raise Spent(f"{n:,} bytes took {seconds:.2f} seconds") from None


@contextlib.contextmanager
def in_memory(n):
    """Raise Spent if what happens inside holds too much at once for files of ``n`` bytes."""
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if peak > TIMES * n + MEGABYTES * 10**6:
            raise Spent(f"{n:,} bytes took {peak / 1e6:,.1f} MB") from None


@contextlib.contextmanager
def given_up():
    """Interrupt what takes twice as long as it may, where the system can do that."""

    def give_up(*_):
        raise Late

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def reader(files, net, folder):
    """Return how these files are read, and what checks the result."""
    if "a.npz" in files:
        return lambda: ld.PeftModel.from_pretrained(net, folder / "a.npz"), check_function
    if WEIGHTS in files:
        return lambda: ld.PeftModel.from_pretrained(net, folder), check_function
    if CONFIG in files:
        return lambda: ld.LoraConfig.from_pretrained(folder), lambda config, _: config.to_dict()
    name = INDEX if INDEX in files else next(iter(files))
    model = Net()  # another one: this one may change

    def load():
        ld.load_model(folder / name, model)
        return model

    return load, check_parameters


def attempt(read):
    """Return what is read; None if it is refused properly."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = "unknown keys|exclude_modules|Duplicate name"
            warnings.filterwarnings("ignore", expected, UserWarning)
            return read()
    except ld.CheckpointError as error:
        length = len(str(error).encode())  # so it can be printed, too
        if not 0 < length < 10_000:
            raise RuntimeError(f"a message of {length:,} bytes: {error!s:.200}") from error
        return None


def outcome(files, net, folder):
    """Read the files; return "loaded" or "refused", or raise if it is neither, or costs too much."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    read, check = reader(files, net, folder)
    before = {name: a.tobytes() for name, a in net.state_dict().items()}
    size = sum(map(len, files.values()))
    with in_time(size):
        result = attempt(read)
    with in_memory(
        size
    ):  # in a second run: while memory is traced, some things take 30 times as long
        attempt(read)
    if {name: a.tobytes() for name, a in net.state_dict().items()} != before:
        raise RuntimeError("the base has changed")
    if result is None:
        return "refused"
    with np.errstate(all="ignore"):
        check(result, files)
    return "loaded"


def try_hostile(name, net, folder):
    """Load one of the hostile files; return "loaded" or "refused", or raise if it must not be that."""
    make, must = HOSTILE[name]
    files = make()
    result = outcome(files, net, folder)
    if must not in (result, "either"):
        raise AssertionError(f"{name}: {result}, but must be {must}")
    weights = files.get("a.npz", files.get(WEIGHTS))
    model = {"model.npz" if "a.npz" in files else "model.safetensors": weights}
    if outcome(model, net, folder) != "refused":
        raise AssertionError(f"{name}: it is no model, but is loaded as one")
    return result


def fuzz(count, folder, seed=0):
    """Return how often each (kind, outcome) occurred in ``count`` damaged files; raise on a third one."""
    counts = collections.Counter()
    kinds = valid_files(folder)
    net = Net()
    for kind, variants in kinds.items():
        for files in variants:
            assert outcome(files, net, folder) == "loaded", f"a valid {kind} is refused"
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = str(rng.choice(list(kinds)))
        files = kinds[kind][rng.integers(len(kinds[kind]))]
        try:
            counts[kind, outcome(damaged(kind, files, rng), net, folder)] += 1
        except Exception as error:
            raise AssertionError(f"damaged {kind}, seed ({seed}, {i}): {error!r}") from error
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--count", type=int, default=20_000, help="how many files to damage at random"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(args.count, Path(folder), args.seed)
        for name in HOSTILE:
            counts["hostile", try_hostile(name, Net(), Path(folder))] += 1
    for (kind, result), n in sorted(counts.items()):
        print(f"{kind:17} {result:8} {n:7,}")
    print(f"{'all':26} {counts.total():7,}")


if __name__ == "__main__":
    main()
