"""Damage adapter files at random and see what loading does: a clear error or a sound model, no third way.

    python tests/fuzz_adapter_files.py --count 10000

Valid files (``.npz`` and, if safetensors is installed, PEFT's folder) are changed a little: bytes
flipped, removed, repeated or moved, values in the JSON replaced, tensors renamed, reshaped or retyped.
Where a checksum or a length would betray the change at once, it is made to fit again, so that the damage
reaches what is inside.
The suite tries two hundred.  A clear error is a ``CheckpointError``; after it the model that was to
receive the adapter must be what it was before.  Anything else is reported with its seed.
"""

import argparse
import collections
import importlib.util
import io
import json
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

import loradora as ld

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base():
    return ld.MLP([3, 4, 2], rng=np.random.default_rng(0))


def valid_files(folder):
    """Return the bytes of small valid adapters: by kind, a list of {file name: content}."""
    kinds = {"npz": []}
    for options in ({}, {"use_dora": True, "bias": "all"}):
        config = ld.LoraConfig(r=2, target_modules=["0", "2"], **options)
        model = ld.get_peft_model(base(), config, rng=np.random.default_rng(1))
        model.save_adapter(folder / "valid.npz")
        kinds["npz"].append({"a.npz": (folder / "valid.npz").read_bytes()})
        if importlib.util.find_spec("safetensors"):
            model.save_pretrained(folder / "valid")
            content = {name: (folder / "valid" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
            kinds.setdefault("safetensors", []).append(content)
            kinds.setdefault("json", []).append(content)
    return kinds


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
    "a{99999999999999999999}",
    "(?i)0",
    "0|2",
    None,
    -1,
    0,
    1,
    2,
    3,
    2**70,
    1e308,
    -0.5,
    True,
    "",
    "(",
    "0",
    "none",
    [],
    ["0"],
    {},
    {"0": 1},
]


def other_json(data, rng):
    """Return the config with one to three values replaced, or keys removed or added."""
    values = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        key = rng.choice(list(values)) if values else "r"
        if rng.random() < 0.2:
            values.pop(key)
        else:
            values[str(key)] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(values).encode()


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


SHAPES = [[0, 2**62], [2**63, 0], [1] * 65, [], [2, 3], [-1], ["2"], None]


def other_header(data, rng):
    """Return the safetensors file with its header damaged, or one tensor more, and the length right."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.5:
        text = DAMAGE[rng.integers(len(DAMAGE))](data[8 : 8 + length], rng)
    else:
        shape = SHAPES[rng.integers(len(SHAPES))]
        kind = str(rng.choice(["F32", "BF16", "I64", "F8_E4M3", "C64"]))
        extra = {"dtype": kind, "shape": shape, "data_offsets": [len(body)] * 2}
        text = json.dumps(header | {str(rng.choice(list(header))) + "x": extra}).encode()
    return len(text).to_bytes(8, "little") + text + body


def damaged(kind, files, rng):
    """Return the files with one of them damaged."""
    target = {"npz": "a.npz", "safetensors": WEIGHTS, "json": CONFIG}[kind]
    ways = list(DAMAGE)
    inside = {
        "npz": [other_tensors] * 4 + [other_member] * 6,
        "safetensors": [other_header] * 6,
        "json": [other_json] * 8,
    }
    ways += inside[kind]
    with np.errstate(all="ignore"):
        return files | {target: ways[rng.integers(len(ways))](files[target], rng)}


# ----------------------------------------------------------------------------- what happens


def outcome(files, net, folder):
    """Load the files for ``net``; return "loaded" or "refused", or raise if it is neither."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    source = folder / "a.npz" if "a.npz" in files else folder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "unknown keys|exclude_modules", UserWarning)
            model = ld.PeftModel.from_pretrained(net, source)
    except ld.CheckpointError as error:
        if not str(error):
            raise RuntimeError("an empty message") from error
        return "refused"
    if model(X).shape != (2, 2) or not all(np.all(np.isfinite(p.data)) for p in model.parameters()):
        raise RuntimeError("the loaded model holds NaN or computes nonsense")
    return "loaded"


def fuzz(count, folder, seed=0):
    """Return how often each (kind, outcome) occurred in ``count`` damaged files; raise on a third one."""
    counts = collections.Counter()
    kinds = valid_files(folder)
    net = base()
    expected = {name: a.tobytes() for name, a in net.state_dict().items()}
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = str(rng.choice(list(kinds)))
        files = kinds[kind][rng.integers(len(kinds[kind]))]
        try:
            counts[kind, outcome(damaged(kind, files, rng), net, folder)] += 1
        except Exception as error:
            raise AssertionError(f"damaged {kind}, seed ({seed}, {i}): {error!r}") from error
        if {name: a.tobytes() for name, a in net.state_dict().items()} != expected:
            raise AssertionError(f"damaged {kind}, seed ({seed}, {i}): the base has changed")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(args.count, Path(folder), args.seed)
    for (kind, result), n in sorted(counts.items()):
        print(f"{kind:12} {result:8} {n:7,}")
    print(f"{'all':21} {counts.total():7,}")


if __name__ == "__main__":
    main()
