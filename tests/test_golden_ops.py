"""PyTorch agrees: values and gradients of 210 cases, hard points included, computed once by PyTorch.

The file ``data/op_cases.json`` names the op, its arguments and its tolerance; the arrays lie in
``data/op_cases.npz``.  A result must have PyTorch's shape and dtype, too.  ``golden_cases.py`` computes
them again.
"""

from typing import Any

import numpy as np
import pytest
from golden_cases import index, load

import minigrad as mg

_, _, CASES, ARRAYS = load("op_cases")
SCORED = [case for case in CASES if case["scored"]]


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Run a test once per case, under the name of the case."""
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def given_input(spec: dict[str, Any]) -> Any:
    if spec["kind"] == "pyscalar":
        return spec["value"]
    array = ARRAYS[spec["key"]]
    return mg.Tensor(array, requires_grad=True) if spec["kind"] == "tensor" else array


def apply(case: dict[str, Any], inputs: list[Any]) -> mg.Tensor:
    operands = [inputs[position] for position in case["args"]]
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in case["kwargs"].items()}
    if case["op"] == "concatenate":
        return mg.concatenate(operands, **kwargs)
    if case["op"] == "getitem":
        return operands[0][index(case)]
    return getattr(mg, case["op"])(*operands, **kwargs)


def assert_agrees(actual: np.ndarray, key: str, case: dict[str, Any]) -> None:
    expected = ARRAYS[key]
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=case["rtol"], atol=case["atol"])


@named(SCORED)
def test_value_and_gradients_are_those_of_pytorch(case):
    inputs = [given_input(spec) for spec in case["inputs"]]
    y = apply(case, inputs)
    y.backward(ARRAYS[case["g"]])
    assert_agrees(y.data, case["out"], case)
    for x, key in zip(inputs, case["grads"], strict=True):
        if key is not None:
            assert_agrees(x.grad, key, case)


def test_every_scored_case_asks_for_at_least_one_gradient():
    assert all(any(case["grads"]) for case in SCORED)
