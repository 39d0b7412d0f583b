"""Adapter files made to do harm: each is small, or correct in every detail but one.

They are put together byte by byte from what the formats say: PKWARE's APPNOTE for zip archives, NEP 1 for
``.npy`` headers, and the README of safetensors.  So nothing here depends on the code that reads them.
``HOSTILE`` names them all and says what loading must do.  ``fuzz_adapter_files.py`` loads them.
"""

import functools
import io
import json
import struct
import zipfile
import zlib

import numpy as np

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
#: The two layers of the model, behind a name long enough to make some patterns very slow.
LAYERS = "fifteen_letters.layers.0", "fifteen_letters.layers.2"
A = f"{PREFIX}{LAYERS[0]}.lora_A.weight"
B = f"{PREFIX}{LAYERS[0]}.lora_B.weight"
RANK, SIZES = 2, [3, 4, 2]

VALUES = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["0", "2"]}


def tensors(r=RANK, dtype=np.float32):
    """Return the tensors of an adapter for an MLP of these sizes, by their full names."""
    rng, arrays = np.random.default_rng(5), {}
    for path, n_in, n_out in zip(LAYERS, SIZES, SIZES[1:]):
        arrays[f"{PREFIX}{path}.lora_A.weight"] = rng.normal(size=(r, n_in)).astype(dtype)
        arrays[f"{PREFIX}{path}.lora_B.weight"] = rng.normal(size=(n_out, r)).astype(dtype)
    return arrays


# ----------------------------------------------------------------------------- formats


def npy(header, data=b"", version=1):
    """Return an ``.npy`` file with this header, right or wrong."""
    text = header.encode("utf-8" if version == 3 else "latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def described(array, **changes):
    """Return the header of an array, with some of what it says replaced by other source text."""
    said = {"descr": repr(array.dtype.str), "fortran_order": "False", "shape": repr(array.shape)}
    return "{" + ", ".join(f"'{k}': {v}" for k, v in (said | changes).items()) + "}\n"


def deflated(data):
    """Return the data packed as in a zip archive, without a header of zlib's."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


def member(name, data, compressed=False, **lies):
    """Return what :func:`archive` takes: a file, and what the directory says wrongly about it."""
    packed = deflated(data) if compressed else data
    true = {"method": 8 if compressed else 0, "flags": 0, "crc": zlib.crc32(data), "extra": b""}
    return name, packed, true | {"packed": len(packed), "size": len(data)}, lies


def archive(members, **lies):
    """Return a zip archive; ``lies`` are what its end says wrongly about the directory."""
    body, directory = bytearray(), bytearray()
    for name, packed, true, false in members:
        at, name = len(body), name.encode()
        for said in (true, {"offset": at} | true | false):
            fields = (said["flags"], said["method"], 0, 0x21)
            fields += (said["crc"], said["packed"], said["size"], len(name), len(said["extra"]))
            if "offset" not in said:
                body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, *fields) + name + packed
            else:
                rest = (0, 0, 0, 0, said["offset"])
                directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *fields, *rest)
                directory += name + said["extra"]
    end = {"count": len(members) & 0xFFFF, "length": len(directory), "start": len(body)} | lies
    tail = struct.pack("<2H2LH", end["count"], end["count"], end["length"], end["start"], 0)
    return bytes(body + directory + end.get("before", b"") + b"PK\x05\x06\0\0\0\0" + tail)


def zip64(*numbers):
    """Return the extra field with the sizes and the offset that 32 bits do not hold."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def zip64_end(length, start):
    """Return the end of a large archive, with these numbers for its directory."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, length, start)
    return record + struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63, 1)


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def config_member(text, **options):
    """Return the config as it lies in an ``.npz``: an array of bytes."""
    return member(f"{CONFIG}.npy", as_npy(np.frombuffer(text, np.uint8)), **options)


def members(config=VALUES, arrays=None, drop=(), **options):
    """Return the members of a valid adapter, except those given."""
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    arrays = {k: v for k, v in (tensors() | (arrays or {})).items() if k not in drop}
    return [config_member(text), *(member(f"{k}.npy", as_npy(v)) for k, v in arrays.items())]


def npz(*more, compressed=False, **options):
    """Return an adapter in one file, and these members behind it."""
    if not compressed:
        return {"a.npz": archive([*members(**options), *more])}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content, *_ in [*members(**options), *more]:
            packed.writestr(name, content)
    return {"a.npz": file.getvalue()}


def with_member(data, name=A, **lies):
    """Return an adapter of which one array is this ``.npy`` file."""
    return npz(member(f"{name}.npy", data, **lies), drop=[name])


def with_header(array=None, version=1, data=None, **changes):
    """Return an adapter whose first array has another header, or one array more."""
    given = tensors()[A] if array is None else array
    content = given.tobytes() if data is None else data
    return with_member(npy(described(given, **changes), content, version))


def configured(**values):
    return npz(config=VALUES | values)


def in_words(text, name="revision"):
    """Return an adapter whose config has this JSON as the value of an option."""
    rest = json.dumps({k: v for k, v in VALUES.items() if k != name})
    return npz(config=f'{rest[:-1]}, "{name}": {text}}}'.encode())


def folder(header=None, body=None, config=VALUES, length=None, notes=None, **more):
    """Return PEFT's two files; ``header`` may be bytes, and ``more`` are entries in it."""
    entries, content = {"__metadata__": {"format": "pt"} | (notes or {})}, b""
    for name, a in tensors().items():
        span = [len(content), len(content) + a.nbytes]
        entries[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": span}
        content += a.tobytes()
    entries |= more
    text = json.dumps(entries).encode() if header is None else header
    text += b" " * (-len(text) % 8)
    size = struct.pack("<Q", len(text) if length is None else length)
    weights = size + text + (content if body is None else body)
    return {CONFIG: json.dumps(config).encode(), WEIGHTS: weights}


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def nested(levels, value="0"):
    return "[" * levels + value + "]" * levels


def wide(r):
    """Return an empty array with as many rows as the config says, which cost no bytes."""
    return member(f"{PREFIX}extra.npy", as_npy(np.zeros((r, 0), np.float32)))


# ----------------------------------------------------------------------------- the list

BODY = sum(a.nbytes for a in tensors().values())
ZEROS = 64 * 2**20  # a megabyte packs into a kilobyte
MANY = 10**5

#: Name → how the files are made, and whether they must be refused, must be loaded, or may be either.
HOSTILE = {
    # as they should be
    "nothing wrong": (npz, "loaded"),
    "nothing wrong, packed": (lambda: npz(compressed=True), "loaded"),
    "a comment behind": (lambda: {"a.npz": npz()["a.npz"] + b"words"}, "either"),
    "float16": (lambda: npz(arrays=tensors(dtype=np.float16)), "loaded"),
    "big-endian": (lambda: npz(arrays=tensors(dtype=">f4")), "loaded"),
    "npy version 2": (lambda: with_header(version=2), "either"),
    "npy version 3": (lambda: with_header(version=3), "either"),
    "a folder": (folder, "loaded"),
    # archives
    "a member twice": (lambda: npz(member(f"{A}.npy", as_npy(tensors()[A]))), "refused"),
    "a member twice, without its suffix": (lambda: npz(member(A, as_npy(tensors()[A]))), "refused"),
    "two names for one place": (lambda: npz(member("b.npy", b"", offset=0)), "refused"),
    "an offset into another member": (
        lambda: with_member(as_npy(tensors()[A]), offset=50),
        "refused",
    ),
    "a negative start": (lambda: {"a.npz": archive(members(), start=2**31)}, "refused"),
    "a directory of 4 GB": (lambda: {"a.npz": archive(members(), length=2**32 - 2)}, "refused"),
    "a count too high": (lambda: {"a.npz": archive(members(), count=60_000)}, "either"),
    "an offset of 2⁶³": (
        lambda: with_member(as_npy(tensors()[A]), offset=2**32 - 1, extra=zip64(2**63)),
        "refused",
    ),
    "an offset of 2⁶⁴ − 1": (
        lambda: with_member(as_npy(tensors()[A]), offset=2**32 - 1, extra=zip64(2**64 - 1)),
        "refused",
    ),
    "sizes of 2⁶³": (
        lambda: with_member(
            as_npy(tensors()[A]),
            **{"size": 2**32 - 1, "packed": 2**32 - 1, "extra": zip64(2**63, 2**63)},
        ),
        "refused",
    ),
    "a directory at 2⁶³": (
        lambda: {"a.npz": archive(members(), start=2**32 - 1, before=zip64_end(2**63, 2**63))},
        "refused",
    ),
    "an extra field cut off": (
        lambda: with_member(as_npy(tensors()[A]), offset=2**32 - 1, extra=zip64()[:3]),
        "refused",
    ),
    "a size too large": (lambda: with_member(as_npy(tensors()[A]), size=2**31), "refused"),
    "a size too small": (lambda: with_member(as_npy(tensors()[A]), size=130), "refused"),
    "a packed size too large": (lambda: with_member(as_npy(tensors()[A]), packed=2**31), "either"),
    "a packed size too small": (lambda: with_member(as_npy(tensors()[A]), packed=130), "refused"),
    "a wrong checksum": (lambda: with_member(as_npy(tensors()[A]), crc=1), "refused"),
    "deflated in name only": (lambda: with_member(as_npy(tensors()[A]), method=8), "refused"),
    "bzip2": (lambda: with_member(as_npy(tensors()[A]), method=12), "refused"),
    "LZMA": (lambda: with_member(as_npy(tensors()[A]), method=14), "refused"),
    "an unknown method": (lambda: with_member(as_npy(tensors()[A]), method=99), "refused"),
    "encrypted": (lambda: with_member(as_npy(tensors()[A]), flags=1), "refused"),
    "a patch": (lambda: with_member(as_npy(tensors()[A]), flags=0x20), "refused"),
    "a directory in it": (lambda: npz(member("folder/", b"")), "refused"),
    "a name that climbs": (lambda: npz(member("../../x.npy", as_npy(np.ones(1)))), "refused"),
    "an empty name": (lambda: npz(member("", as_npy(np.ones(1)))), "refused"),
    "a name with a zero": (lambda: npz(member("a\0b.npy", as_npy(np.ones(1)))), "refused"),
    "a name of 60,000 letters": (lambda: npz(member("x" * 60_000, as_npy(np.ones(1)))), "refused"),
    "100,000 members": (
        lambda: npz(*[member(f"{i}.npy", b"") for i in range(MANY)], arrays={}),
        "refused",
    ),
    # bombs
    "a packed config": (
        lambda: {
            "a.npz": archive(
                [
                    config_member(json.dumps(VALUES).encode() + b" " * ZEROS, compressed=True),
                    *members()[1:],
                ]
            )
        },
        "refused",
    ),
    "an array packed 1000 to 1": (
        lambda: npz(
            member(f"{PREFIX}x.npy", as_npy(np.zeros(ZEROS, np.uint8)), compressed=True),
        ),
        "refused",
    ),
    "a rank packed 1000 to 1": (
        lambda: npz(
            compressed=True,
            config=VALUES | {"r": ZEROS // 16, "target_modules": ["0"]},
            arrays={
                A: np.zeros((ZEROS // 16, 3), np.float32),
                B: np.zeros((4, ZEROS // 16), np.float32),
            },
            drop=[name for name in tensors() if LAYERS[1] in name],
        ),
        "refused",
    ),
    "1,000 packed headers of 10 kB": (
        lambda: npz(
            *[
                member(
                    f"{PREFIX}{i}.npy",
                    npy(described(np.ones(1), shape="1," * 4_900)),
                    compressed=True,
                )
                for i in range(1_000)
            ]
        ),
        "refused",
    ),
    "an empty array of 10⁷ rows and r = 10⁷": (
        lambda: npz(wide(10**7), config=VALUES | {"r": 10**7}),
        "refused",
    ),
    "an empty array of 10⁷ rows and r = 10⁷ in a pattern": (
        lambda: npz(wide(10**7), config=VALUES | {"rank_pattern": {"0": 10**7}}),
        "refused",
    ),
    "an empty array of 10⁷ rows and r = 10⁷, orthogonal": (
        lambda: npz(wide(10**7), config=VALUES | {"r": 10**7, "init_lora_weights": "orthogonal"}),
        "refused",
    ),
    "a folder with an empty tensor of 10⁷ rows and r = 10⁷": (
        lambda: folder(config=VALUES | {"r": 10**7}, x=entry([10**7, 0], BODY, BODY)),
        "refused",
    ),
    "a rank of 0": (lambda: npz(arrays=tensors(r=0)), "refused"),
    "a rank of 10⁷ that nothing pays for": (
        lambda: npz(
            arrays={A: np.zeros((10**7, 0), np.float32), B: np.zeros((0, 10**7), np.float32)}
        ),
        "refused",
    ),
    # headers of arrays
    "Python 2's integers": (lambda: with_header(shape="(2L, 3L)"), "either"),
    "a shape of 0 and 2⁶²": (
        lambda: with_header(np.zeros((0, 3), np.float32), shape="(0, 2**62)"),
        "refused",
    ),
    "a shape of 0 and 4611686018427387904": (
        lambda: with_header(shape="(0, 4611686018427387904)", data=b""),
        "refused",
    ),
    "a shape of 10²⁰": (lambda: with_header(shape="(10" + "0" * 19 + ",)"), "refused"),
    "a shape of 10,000 digits": (lambda: with_header(shape=f"({'9' * 9_000},)"), "refused"),
    "a negative shape": (lambda: with_header(shape="(-2, -3)"), "refused"),
    "a shape of floats": (lambda: with_header(shape="(2.0, 3.0)"), "refused"),
    "a shape of truths": (lambda: with_header(shape="(True, 6)"), "refused"),
    "a list of a shape": (lambda: with_header(shape="[2, 3]"), "either"),
    "a shape in a shape": (lambda: with_header(shape="((2, 3),)"), "refused"),
    "a shape of 65 dimensions": (lambda: with_header(shape="(1," * 1 + "1," * 64 + ")"), "refused"),
    "a nested tuple": (lambda: with_header(shape="(" * 90 + "2" + ")" * 90), "refused"),
    "a deeply nested tuple": (lambda: with_header(shape="(" * 4_000 + ")" * 4_000), "refused"),
    "a formula": (lambda: with_header(shape="(2, " + "-" * 9_000 + "3)"), "refused"),
    "a call": (lambda: with_header(shape="__import__('os').getcwd()"), "refused"),
    "a structured array": (lambda: with_header(descr="[('a', '<f4'), ('b', '<f4')]"), "refused"),
    "an array of objects": (lambda: with_header(descr="'|O'"), "refused"),
    "objects in a structure": (lambda: with_header(descr="[('a', '|O')]"), "refused"),
    "an array in an array": (lambda: with_header(descr="('<f4', (2, 3))", shape="()"), "refused"),
    "numbers of 10⁹ bytes": (lambda: with_header(descr="'|S1000000000'"), "refused"),
    "numbers of no bytes": (lambda: with_header(descr="'|S0'", shape="(10000000,)"), "refused"),
    "no dtype": (lambda: with_header(descr="'<q9'"), "refused"),
    "no text for a dtype": (lambda: with_header(descr="17"), "refused"),
    "dates": (lambda: with_header(descr="'<M8[s]'"), "refused"),
    "an order of 2": (lambda: with_header(fortran_order="2"), "refused"),
    "a key too many": (lambda: with_header(fortran_order="False, 'x': 1"), "refused"),
    "a header that is no dict": (lambda: with_member(npy("[1, 2]\n")), "refused"),
    "a header that does not end": (lambda: with_member(npy("{'descr': '<f4', ")), "refused"),
    "a header with a zero": (lambda: with_member(npy("{\0}\n")), "refused"),
    "an empty header": (lambda: with_member(npy("")), "refused"),
    "a header beyond the file": (
        lambda: with_member(b"\x93NUMPY\x02\0\xff\xff\xff\xff{"),
        "refused",
    ),
    "a header of 60,000 bytes": (
        lambda: with_member(npy(described(tensors()[A]).strip() + " " * 60_000)),
        "refused",
    ),
    "npy version 4": (lambda: with_header(version=4), "refused"),
    "no array": (lambda: with_member(b"words"), "refused"),
    # headers of safetensors
    "overlapping tensors": (lambda: folder(x=entry([6], 0, 24)), "refused"),
    "reversed offsets": (lambda: folder(x=entry([6], 24, 0)), "refused"),
    "offsets beyond the file": (lambda: folder(x=entry([2**40], BODY, BODY + 2**42)), "refused"),
    "offsets beyond 2⁶⁴": (lambda: folder(x=entry([1], 2**64, 2**64 + 4)), "refused"),
    "a hole": (lambda: folder(body=bytes(BODY + 8), x=entry([1], BODY + 4, BODY + 8)), "refused"),
    "bytes too many": (lambda: folder(body=bytes(BODY + 8)), "refused"),
    "a header of 2⁶³ bytes": (lambda: folder(length=2**63), "refused"),
    "a header of 99 MB": (lambda: folder(length=99_000_000), "refused"),
    "a tensor of 0 and 2⁶²": (lambda: folder(x=entry([0, 2**62], BODY, BODY)), "refused"),
    "a tensor of 65 dimensions": (lambda: folder(x=entry([1] * 64 + [0], BODY, BODY)), "refused"),
    "a tensor of float8": (lambda: folder(x=entry([0], BODY, BODY, "F8_E4M3")), "refused"),
    "a deep header": (lambda: folder(header=nested(10**5).encode()), "refused"),
    "a deep value in the header": (
        lambda: folder(header=b'{"__metadata__": ' + nested(600).encode() + b"}"),
        "refused",
    ),
    "100,000 notes": (
        lambda: folder(notes={f"note {i}": "" for i in range(MANY)}),
        "either",
    ),
    "metadata that are a number": (lambda: folder(__metadata__=1), "refused"),
    "a note that is no text": (lambda: folder(notes={"loradora_x": 1}), "refused"),
    # configs
    "600 levels": (lambda: in_words(nested(600)), "refused"),
    "100,000 levels": (lambda: in_words(nested(10**5)), "refused"),
    "100,000 levels of objects": (lambda: in_words('{"a":' * 10**5 + "0" + "}" * 10**5), "refused"),
    "600 levels in a pattern": (lambda: in_words(nested(600), "alpha_pattern"), "refused"),
    "600 levels in an unknown option": (lambda: in_words(nested(600), "newer"), "either"),
    "a number of 10,000 digits": (lambda: in_words("9" * 10_000, "r"), "refused"),
    "α of 10,000 digits": (lambda: in_words("9" * 10_000, "lora_alpha"), "refused"),
    "α of 400 digits": (lambda: in_words("9" * 400, "lora_alpha"), "refused"),
    "α = 1e308": (lambda: configured(lora_alpha=1e308), "refused"),
    "α = 1e308 in a pattern": (lambda: configured(alpha_pattern={"0": 1e308}), "refused"),
    "α = 1e39, which float32 does not hold": (lambda: configured(lora_alpha=1e39), "refused"),
    "α = 1e400": (lambda: in_words("1e400", "lora_alpha"), "refused"),
    "α = NaN": (lambda: in_words("NaN", "lora_alpha"), "refused"),
    "α = true": (lambda: configured(lora_alpha=True), "refused"),
    "r in words": (lambda: configured(r="2"), "refused"),
    "a long word": (lambda: configured(revision="x" * 10**6), "either"),
    "a long kind": (lambda: configured(peft_type="x" * 10**6), "refused"),
    "a long start": (lambda: configured(init_lora_weights="x" * 10**6), "refused"),
    "a lone surrogate": (lambda: configured(revision="\ud800", bias="\ud800"), "refused"),
    "a lone surrogate in a name": (lambda: configured(target_modules=["\ud800"]), "either"),
    "a lone surrogate in a pattern": (lambda: configured(alpha_pattern={"\ud800": 1}), "either"),
    "100,000 unknown options": (
        lambda: npz(config=VALUES | {f"option {i}": i for i in range(MANY)}),
        "either",
    ),
    "20,000 modules to save": (
        lambda: configured(modules_to_save=[f"module {i}" for i in range(20_000)]),
        "either",
    ),
    "20,000 targets": (
        lambda: configured(target_modules=[f"module {i}" for i in range(20_000)]),
        "either",
    ),
    "20,000 excluded": (
        lambda: configured(exclude_modules=[f"module {i}" for i in range(20_000)]),
        "either",
    ),
    "20,000 patterns of α": (
        lambda: configured(alpha_pattern={f"module{i}": 1 for i in range(20_000)}),
        "either",
    ),
    "20,000 patterns of r": (
        lambda: configured(rank_pattern={f"module{i}": 1 for i in range(20_000)}),
        "either",
    ),
    "20,000 patterns of layers": (
        lambda: configured(
            layers_to_transform=[0], layers_pattern=[f"m{i}" for i in range(20_000)]
        ),
        "either",
    ),
    "10⁵ layers to transform": (
        lambda: configured(layers_to_transform=list(range(MANY))),
        "either",
    ),
    # what the tensors say, and the config contradicts or omits
    "no targets": (lambda: configured(target_modules=None), "loaded"),
    "other targets": (lambda: configured(target_modules=["1"]), "loaded"),
    "fewer targets": (lambda: configured(target_modules=["0"]), "loaded"),
    "a target that is nothing": (lambda: configured(target_modules="nothing"), "loaded"),
    "a config of three keys": (
        lambda: npz(config={"peft_type": "LORA", "r": 2, "lora_alpha": 8}),
        "loaded",
    ),
    "a config of one key": (lambda: npz(config={"peft_type": "LORA"}), "either"),
    "another rank": (lambda: configured(r=3), "either"),
    "a rank of 10¹²": (lambda: configured(r=10**12), "either"),
    "another rank in a pattern": (lambda: configured(rank_pattern={"0": 7}), "either"),
    "DoRA without m": (lambda: configured(use_dora=True), "refused"),
    "PiSSA of a rank that there is not": (
        lambda: npz(
            config=VALUES | {"r": 5, "init_lora_weights": "pissa"},
            arrays=tensors(r=5),
        ),
        "refused",
    ),
    "PiSSA scaled by 0": (lambda: configured(init_lora_weights="pissa", lora_alpha=0), "refused"),
    "A without B": (lambda: npz(drop=[B]), "refused"),
    "B without A": (lambda: npz(drop=[A]), "refused"),
    "ranks that disagree": (lambda: npz(arrays={A: tensors(r=3)[A]}), "refused"),
    "a layer that there is not": (
        lambda: npz(arrays={f"{PREFIX}x.lora_A.weight": np.ones((2, 3), np.float32)}),
        "refused",
    ),
    "no tensors": (lambda: npz(drop=list(tensors())), "refused"),
}

#: Patterns that take a time exponential, or a high power, in the length of a name, or much memory.
PATTERNS = {
    "two ways, over and over": "(.|.)*!",
    "a repeat in a repeat": "(.*)*!",
    "a repeat in a repeat, more than once": "(?:.+)+!",
    "a repeat of what may be nothing": "(a?.?)*!",
    "a repeat in a counted repeat": "(.*){9,}!",
    "a counted repeat in a repeat": "(.{1,9})*!",
    "twelve repeats in a row": ".*" * 12 + "!",
    "an echo": r"(.*)\1*(.*)\2*(.*)\3*!",
    "a look ahead": "(?=(.|.)*!)",
    "a look ahead and again": "(?!(.*.*)*!).*",
    "a huge count": "((.{0,900}){0,900}){0,900}!",
    "a hundred thousand alternatives": "|".join(f"{i}" for i in range(MANY)),
    "two hundred thousand letters": "x" * 2 * MANY,
    "ten thousand groups": "(x)" * 10_000,
    "nothing but brackets": "(" * 5_000 + ")" * 5_000,
}

for words, pattern in PATTERNS.items():
    for option, value in (
        ("target_modules", pattern),
        ("exclude_modules", pattern),
        ("alpha_pattern", {pattern: 4}),
        ("rank_pattern", {pattern: 4}),
        ("layers_pattern", [pattern]),
    ):
        depth = {"layers_to_transform": [0]} if option == "layers_pattern" else {}
        make = functools.partial(configured, **{option: value}, **depth)
        must = "refused" if option == "alpha_pattern" else "either"
        HOSTILE[f"{option}: {words}"] = make, must
