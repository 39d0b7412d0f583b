"""Functions composed of operations have the values and the gradients of PyTorch's functions."""

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("peft", reason=NEEDED)
pytest.importorskip("safetensors", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 1, 4)], ids=str)
def test_what_is_composed_has_the_values_and_gradients_of_pytorch(shape, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    F, axis = torch.nn.functional, len(shape) - 1
    pairs = [
        (lambda a: mg.std(a, axis, ddof=1), lambda a: torch.std(a, axis)),
        (lambda a: mg.logsumexp(a, axis), lambda a: torch.logsumexp(a, axis)),
        (lambda a: mg.squeeze(a), torch.squeeze),
        (lambda a: mg.expand_dims(a, axis), lambda a: torch.unsqueeze(a, axis)),
        (lambda a: mg.flatten(a), torch.flatten),
        (mg.erf, torch.erf),
        (lambda a: mg.layer_norm(a), lambda a: F.layer_norm(a, a.shape[-1:])),
        (
            lambda a: mg.layer_norm(a, tuple(range(a.ndim)), eps=0.5),
            lambda a: F.layer_norm(a, a.shape, eps=0.5),
        ),
        (
            lambda a: mg.softmax(a, axis, where=np.arange(4) != 1),
            lambda a: a.masked_fill(torch.arange(4) == 1, -np.inf).softmax(axis),
        ),
        (ld.Tanh(), torch.nn.Tanh()),
        (ld.Sigmoid(), torch.nn.Sigmoid()),
        (ld.GELU(), torch.nn.GELU()),
        (ld.GELU("tanh"), torch.nn.GELU("tanh")),
        (ld.ReLU(), F.relu),
    ]
    if len(shape) > 1:
        pairs.append((ld.Flatten(), torch.nn.Flatten()))
    for here, there in pairs:
        ours, theirs = mg.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = here(ours), there(theirs)
        twins.agree(y.data, z.detach().numpy())
        upstream = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
        y.backward(upstream)
        z.backward(torch.from_numpy(np.array(upstream)))
        twins.agree(ours.grad, theirs.grad.numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [-100, 1])
@pytest.mark.parametrize("rows", [(), (5,), (2, 3), (2, 1, 3)], ids=str)
def test_cross_entropy_is_that_of_pytorch_with_its_classes_on_the_second_axis(
    rows, ignored, reduction: str
) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(*rows, 4)), rng.integers(4, size=rows)
    if rows:
        labels[..., 0] = ignored
    ours, theirs = mg.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = mg.cross_entropy(ours, labels, reduction, ignored)
    z = torch.nn.functional.cross_entropy(
        theirs.movedim(-1, 1) if len(rows) > 1 else theirs,
        torch.as_tensor(labels),
        ignore_index=ignored,
        reduction=reduction,
    )
    twins.agree(y.data, z.detach().numpy())
    upstream = np.asarray(rng.normal(size=y.shape))
    y.backward(upstream)
    z.backward(torch.from_numpy(upstream))
    twins.agree(ours.grad, theirs.grad.numpy())


def test_where_nothing_can_be_chosen_is_0_as_in_the_attention_of_pytorch() -> None:
    scores, mask = np.zeros((2, 2)), np.array([[False, False], [True, False]])
    zeros, values = torch.zeros((2, 2)), torch.eye(2)
    attention = torch.nn.functional.scaled_dot_product_attention
    found = attention(zeros, zeros, values, attn_mask=torch.from_numpy(mask))
    np.testing.assert_array_equal(mg.softmax(scores, where=mask).data, found.numpy())


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning")
@pytest.mark.parametrize("values", [[2.0, 2.0], [7.0], [np.inf, 1.0], [np.nan, 0.0]], ids=str)
@pytest.mark.parametrize("correction", [0, 1])
def test_a_deviation_has_the_gradient_of_pytorch_at_the_hard_points(values, correction) -> None:
    ours, theirs = mg.Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    y, z = mg.std(ours, ddof=correction), torch.std(theirs, correction=correction)
    y.backward()
    z.backward()
    np.testing.assert_allclose(y.data, z.item())
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy())
