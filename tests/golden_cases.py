"""The golden cases: what PyTorch, transformers and PEFT compute from the inputs in ``data/``.

    python tests/golden_cases.py [--write]

``data/op_cases.json``, ``adapter_cases.json`` and ``bert_cases.json`` describe the cases, and the
``.npz`` beside each holds its arrays under the keys of the description.  The inputs were drawn once and
are kept.  The expected values are computed from them here, in the dtype of the inputs, and compared with
the files, to the tolerance of the case.  ``--write`` puts what differs or is missing into the files.  So
to add a case, write its description and its inputs.
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Case: TypeAlias = dict[str, Any]

DATA = Path(__file__).parent / "data"
NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"

# the nets that PyTorch shares with ours
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


class Golden(NamedTuple):
    """A file of cases, with the arrays that their keys stand for."""

    name: str
    meta: dict[str, Any]
    cases: list[Case]
    arrays: dict[str, Array]


def load(name: str) -> Golden:
    """Return ``op_cases``, ``adapter_cases`` or ``bert_cases``."""
    text = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        return Golden(name, text["meta"], text["cases"], dict(archive))


def save(golden: Golden) -> None:
    """Write a file of cases and its arrays."""
    text = json.dumps({"meta": golden.meta, "cases": golden.cases})
    (DATA / f"{golden.name}.json").write_text(text, encoding="utf-8")
    np.savez_compressed(DATA / f"{golden.name}.npz", **golden.arrays)


# ----------------------------------------------------------------------------- operations, by PyTorch


def index(case: Case) -> Any:
    """Return what a case of ``getitem`` indexes with."""
    parts = tuple(map(_index_part, case["kwargs"]["index"]))
    return parts if case["kwargs"]["tuple"] else parts[0]


def _index_part(spec: dict[str, Any]) -> Any:
    match spec:
        case {"int": number}:
            return number
        case {"slice": [start, stop, step]}:
            return slice(start, stop, step)
        case {"ellipsis": _}:
            return ...
        case {"newaxis": _}:
            return None
        case {"array": numbers, "shape": shape}:
            return np.array(numbers, dtype=int).reshape(shape)
        case {"mask": flags, "shape": shape}:
            return np.array(flags, dtype=bool).reshape(shape)
    raise ValueError(f"unknown part of an index: {spec}")


def op_expectations(case: Case, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return, by key, the value of an operation and the gradients that PyTorch computes."""
    import torch

    inputs = []
    for spec in case["inputs"]:
        x = spec["value"] if spec["kind"] == "pyscalar" else torch.tensor(arrays[spec["key"]])
        inputs.append(x.requires_grad_() if spec["kind"] == "tensor" else x)
    y = _apply(case, [inputs[position] for position in case["args"]])
    y.backward(torch.tensor(arrays[case["g"]]))
    found = {case["out"]: y.detach().numpy()}
    for x, key in zip(inputs, case["grads"], strict=True):
        if key is not None:
            found[key] = x.grad.numpy()
    return found


def _apply(case: Case, operands: list[Any]) -> Any:
    """Return what PyTorch makes of the operands; its keywords differ from NumPy's."""
    import torch
    from torch.nn import functional

    op, kwargs = case["op"], case["kwargs"]
    names = {"axis": "dim", "keepdims": "keepdim"}
    there = {names.get(name, name): value for name, value in kwargs.items()}
    match op:
        case "add" | "sub" | "mul" | "pow" | "matmul":
            return getattr(operator, op)(*operands)
        case "div":
            return operator.truediv(*operands)
        case "max":
            every = tuple(range(operands[0].ndim))
            there["dim"] = every if kwargs["axis"] is None else kwargs["axis"]
            return torch.amax(*operands, **there)
        case "norm":
            return torch.linalg.vector_norm(*operands, **there)
        case "transpose":
            axes = kwargs["axes"] or range(operands[0].ndim)[::-1]
            return operands[0].permute(tuple(axes))
        case "getitem":  # by the positions that NumPy picks: PyTorch has no negative steps
            x = operands[0]
            picked = np.arange(x.numel()).reshape(x.shape)[index(case)]
            return x.flatten()[torch.tensor(np.array(picked, order="C"))]
        case "concatenate":
            return torch.cat(operands, **there)
        case "gelu" | "cross_entropy":
            return getattr(functional, op)(*operands, **kwargs)
        case "layer_norm":
            shape = operands[0].shape[kwargs["axis"] :]
            return functional.layer_norm(*operands, shape, eps=kwargs["eps"])
        case "softmax" if "where" in kwargs:
            hidden = ~torch.tensor(kwargs["where"])
            return operands[0].masked_fill(hidden, -np.inf).softmax(kwargs["axis"])
    return getattr(torch, op)(*operands, **there)


# ----------------------------------------------------------------------------- adapters, by PEFT


def adapter_expectations(case: Case, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return, by key, what one adapted layer of PEFT computes, its gradients, and the merged weight."""
    import peft
    import torch

    def given(key: str) -> Any:
        return torch.tensor(arrays[case[key]])

    linear = torch.nn.Linear(case["in"], case["out"], bias=case["bias"])
    linear.weight.data = given("W0")
    if case["bias"]:
        linear.bias.data = given("b")
    config = peft.LoraConfig(
        r=case["r"],
        lora_alpha=case["alpha"],
        use_rslora=case["rslora"],
        use_dora=case["kind"] == "dora",
        target_modules=["0"],
    )
    model = peft.get_peft_model(torch.nn.Sequential(linear), config)
    layer = model.base_model.model[0]
    trained = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    found = {}
    if case["kind"] == "dora":
        trained["m"] = layer.lora_magnitude_vector["default"].weight
        found["m0"] = trained["m"].detach().clone()
    for name, p in trained.items():
        p.data = given(name)
    x = given("x").requires_grad_()
    y = model(x)
    y.backward(given("g"))
    found |= {"y": y.detach(), "dx": x.grad}
    found |= {f"d{name}": p.grad for name, p in trained.items()}
    found["W_merged"] = model.merge_and_unload()[0].weight.detach()
    return {case[name]: tensor.numpy() for name, tensor in found.items()}


# ----------------------------------------------------------------------------- a BERT, by transformers


def bert_expectations(case: Case, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return, by key, what comes of a BERT: of its encoder alone, or of a training of its adapter."""
    import torch
    import transformers

    config = transformers.BertConfig(**case["config"])
    net = transformers.BertModel(config, add_pooling_layer=False).double()
    weights = {name: arrays[f"{case['weights']}.{name}"] for name in net.state_dict()}
    net.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    return (_encoded if case["kind"] == "encoder" else _trained)(net, case, arrays)


def _encoded(net: Any, case: Case, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the vectors of the tokens that are there, and gradients of their sum, weighted by g."""
    import torch

    ids = torch.tensor(arrays[case["ids"]])
    there = ids != case["config"]["pad_token_id"]
    y = net(ids, there.long()).last_hidden_state[there]
    y.backward(torch.tensor(arrays[case["g"]]))
    found = {case["y"]: y.detach().numpy()}
    for name, key in case["grads"].items():
        found[key] = net.get_parameter(name).grad.numpy()
    return found


def _trained(net: Any, case: Case, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the losses of a training of adapter and head, from a given A, and the logits after it."""
    import peft
    import torch
    from torch_minilm import Classifier

    base = Classifier(net, case["classes"])
    for p in base.classifier.parameters():
        torch.nn.init.zeros_(p)
    model = peft.get_peft_model(base, peft.LoraConfig(**case["adapter"]))
    for path, layer in base.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.lora_A["default"].weight.data = torch.tensor(arrays[f"{case['A']}.{path}"])
    ids, labels = (torch.tensor(arrays[case[name]]) for name in ("ids", "labels"))
    mask = (ids != case["config"]["pad_token_id"]).long()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["lr"])
    losses = []
    for rows in arrays[case["batches"]]:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids[rows], mask[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    logits = model(ids, mask).detach().numpy()
    return {case["losses"]: np.array(losses), case["logits"]: logits}


# ----------------------------------------------------------------------------- all


EXPECTATIONS: dict[str, Callable[[Case, Mapping[str, Array]], dict[str, Array]]] = {
    "op_cases": op_expectations,
    "adapter_cases": adapter_expectations,
    "bert_cases": bert_expectations,
}


def differing(golden: Golden) -> Iterator[tuple[str, Array]]:
    """Yield what is computed and the file does not have, by key."""
    for case in golden.cases:
        if case["scored"]:  # the others are there for information
            for key, array in EXPECTATIONS[golden.name](case, golden.arrays).items():
                if not agree(array, golden.arrays.get(key), case):
                    yield key, array


def agree(actual: Array, expected: Array | None, case: Case) -> bool:
    """Whether two arrays have one dtype, one shape, and values within the tolerance of the case."""
    if expected is None or (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        return False
    return np.allclose(actual, expected, rtol=case["rtol"], atol=case["atol"], equal_nan=True)


def main() -> None:
    """Compare the files with what is computed, and end with status 1 if they differ, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put what differs into the files")
    write = parser.parse_args().write
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"error: {error}; {NEEDED}")
    versions = {
        library.__name__: library.__version__ for library in (torch, peft, transformers, np)
    }
    differences = 0
    for name in EXPECTATIONS:
        golden = load(name)
        found = dict(differing(golden))
        differences += len(found)
        print(f"{name}: {len(golden.cases)} cases, {'; '.join(found) or 'nothing'} differs")
        if write and found:
            meta = {key: versions.get(key, value) for key, value in golden.meta.items()}
            save(golden._replace(meta=meta, arrays=golden.arrays | found))
    if differences and not write:
        sys.exit("error: something else is computed; --write puts it into the files")


if __name__ == "__main__":
    main()
