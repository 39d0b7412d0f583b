"""PyTorch agrees: values and gradients of 197 cases, hard points included, computed once by PyTorch.

The file ``data/op_cases.json`` names the op, its arguments and its tolerance; the arrays lie in
``data/op_cases.npz``.  A result must have PyTorch's shape and dtype, too.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad as mg

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "op_cases.json").read_text())["cases"]
SCORED = [case for case in CASES if case["scored"]]
NEEDS_ERF = [case for case in SCORED if case["kwargs"].get("approximate") == "none"]
OURS = [case for case in SCORED if case not in NEEDS_ERF]

with np.load(DATA / "op_cases.npz") as archive:
    ARRAYS = dict(archive)


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Run a test once per case, under the name of the case."""
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def given_input(spec: dict[str, Any]) -> Any:
    if spec["kind"] == "pyscalar":
        return spec["value"]
    array = ARRAYS[spec["key"]]
    return mg.Tensor(array, requires_grad=True) if spec["kind"] == "tensor" else array


def index_part(spec: dict[str, Any]) -> Any:
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


def apply(case: dict[str, Any], inputs: list[Any]) -> mg.Tensor:
    operands = [inputs[position] for position in case["args"]]
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in case["kwargs"].items()}
    if case["op"] == "concatenate":
        return mg.concatenate(operands, **kwargs)
    if case["op"] == "getitem":
        index = tuple(index_part(spec) for spec in kwargs["index"])
        return operands[0][index if kwargs["tuple"] else index[0]]
    return getattr(mg, case["op"])(*operands, **kwargs)


def assert_agrees(actual: np.ndarray, key: str, case: dict[str, Any]) -> None:
    expected = ARRAYS[key]
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=case["rtol"], atol=case["atol"])


@named(OURS)
def test_value_and_gradients_are_those_of_pytorch(case):
    inputs = [given_input(spec) for spec in case["inputs"]]
    y = apply(case, inputs)
    y.backward(ARRAYS[case["g"]])
    assert_agrees(y.data, case["out"], case)
    for x, key in zip(inputs, case["grads"], strict=True):
        if key is not None:
            assert_agrees(x.grad, key, case)


@named(NEEDS_ERF)
def test_the_exact_gelu_is_refused_and_says_why(case):
    with pytest.raises(NotImplementedError, match="erf"):
        apply(case, [given_input(spec) for spec in case["inputs"]])


def test_every_scored_case_asks_for_at_least_one_gradient():
    assert all(any(case["grads"]) for case in SCORED)
