"""PEFT agrees: outputs, gradients and merged weights of 37 layers, computed once by PyTorch and PEFT.

The file ``data/adapter_cases.json`` describes the layers, their inputs and the tolerance; the arrays lie
in ``data/adapter_cases.npz``.  Results must have the same shape and dtype, too.  ``golden_cases.py``
computes them again.
"""

import numpy as np
import pytest
from golden_cases import load

import loradora as ld
import minigrad as mg

_, _, CASES, ARRAYS = load("adapter_cases")

pytestmark = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join([case["id"], *case["tags"]])
)


def adapted(case):
    """Return the layer of a case as it is before training."""
    base = ld.Linear(case["in"], case["out"], bias=case["bias"], dtype=case["dtype"])
    base.weight.data = ARRAYS[case["W0"]]
    if case["bias"]:
        base.bias.data = ARRAYS[case["b"]]
    kind = {"lora": ld.LoRALinear, "dora": ld.DoRALinear}[case["kind"]]
    return kind(base, r=case["r"], lora_alpha=case["alpha"], use_rslora=case["rslora"])


def trained(case):
    """Return the layer of a case with its adapter."""
    layer = adapted(case)
    for name, p in trained_tensors(layer):
        p.data = ARRAYS[case[name]]
    return layer


def trained_tensors(layer):
    return [(name, p) for name, p in layer.named_parameters() if p.requires_grad]


def assert_agrees(actual, key, case):
    expected = ARRAYS[case[key]]
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=case["rtol"], atol=case["atol"], err_msg=key)


def test_the_scaling_is_that_of_peft(case):
    assert adapted(case).scaling == pytest.approx(case["scaling"], rel=1e-15)


def test_the_magnitudes_start_as_in_peft(case):
    if case["kind"] == "dora":
        assert_agrees(adapted(case).m.data, "m0", case)


def test_output_and_gradients_are_those_of_peft(case):
    layer = trained(case)
    x = mg.Tensor(ARRAYS[case["x"]], requires_grad=True)
    y = layer(x)
    y.backward(ARRAYS[case["g"]])
    assert_agrees(y.data, "y", case)
    assert_agrees(x.grad, "dx", case)
    for name, p in trained_tensors(layer):
        assert_agrees(p.grad, f"d{name}", case)


def test_the_merged_weight_is_that_of_peft(case):
    assert_agrees(trained(case).merge().weight.data, "W_merged", case)
