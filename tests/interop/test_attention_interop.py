"""Attention, layer norm and embeddings compute what PyTorch's do, and so do their gradients."""

from typing import Any

import numpy as np
import pytest

import loradora as ld
import minigrad as mg
from loradora.attention import attention_weights, causal_mask, split_heads

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)

WIDTH, HEADS, N, T = 8, 2, 3, 5
TOLERANCE = 1e-12

SOME = np.random.default_rng(5).random((N, 1, T, T)) < 0.5
SOME[1, 0, 2] = False  # this token may look at nobody
MASKS = {"no mask": None, "causal": causal_mask(T), "a mask for each text": SOME}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def leaf(array: Any) -> Any:
    return torch.tensor(array, requires_grad=True)


def agree(ours: Any, theirs: Any) -> None:
    twins.agree(ours, theirs, tolerance=TOLERANCE)


@every_mask
def test_attention_is_pytorchs(mask: Any) -> None:
    """This includes a token that may look at nobody: its result is 0, and no gradient comes from it."""
    arrays = [numbers(N, HEADS, T, 4, seed=seed) for seed in range(3)]
    q, k, v = (mg.Tensor(a, requires_grad=True) for a in arrays)
    y = attention_weights(q, k, mask) @ v
    y.backward(numbers(*y.shape, seed=9))
    theirs = [leaf(a) for a in arrays]
    given = None if mask is None else torch.tensor(mask)
    attend = torch.nn.functional.scaled_dot_product_attention
    truth = attend(*theirs, attn_mask=given)
    truth.backward(torch.tensor(numbers(*y.shape, seed=9)))
    agree(y.data, truth.detach().numpy())
    for one, other in zip((q, k, v), theirs):
        agree(one.grad, other.grad.numpy())


@every_mask
@pytest.mark.parametrize("batched", [True, False])
def test_a_layer_of_heads_is_pytorchs(mask: Any, batched: bool) -> None:
    """PyTorch keeps Wq, Wk and Wv in one matrix, and in its masks True means "may not look"."""
    if not batched and mask is SOME:
        mask = SOME[0, 0]
    if mask is SOME:  # PyTorch's layer gives NaN to a token that may look at nobody
        mask = mask | np.eye(T, dtype=bool)
    net = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        net.in_proj_bias.normal_()
        net.out_proj.bias.normal_()
    ours = ld.MultiHeadAttention(WIDTH, HEADS, dtype=np.float64)
    weights, biases = net.in_proj_weight.chunk(3), net.in_proj_bias.chunk(3)
    state = {f"out_proj.{name}": p for name, p in net.out_proj.named_parameters()}
    for name, weight, bias in zip("qkv", weights, biases):
        state |= {f"{name}_proj.weight": weight, f"{name}_proj.bias": bias}
    ours.load_state_dict({name: p.detach().numpy() for name, p in state.items()})

    array = numbers(*([N] if batched else []), T, WIDTH)
    x, theirs = mg.Tensor(array, requires_grad=True), leaf(array)
    forbidden = None
    if mask is not None:
        forbidden = torch.tensor(~mask)
        if mask.ndim > 2:
            forbidden = forbidden.repeat(1, HEADS, 1, 1).flatten(0, 1)
    y = ours(x, mask)
    truth, P = net(theirs, theirs, theirs, attn_mask=forbidden, average_attn_weights=False)
    agree(y.data, truth.detach().numpy())
    q, k = (split_heads(p(x), HEADS) for p in (ours.q_proj, ours.k_proj))
    agree(attention_weights(q, k, mask).data, P.detach().numpy())

    g = numbers(*array.shape, seed=9)
    y.backward(g)
    truth.backward(torch.tensor(g))
    agree(x.grad, theirs.grad.numpy())
    for i, name in enumerate("qkv"):
        linear = getattr(ours, f"{name}_proj")
        agree(linear.weight.grad, net.in_proj_weight.grad.chunk(3)[i].numpy())
        agree(linear.bias.grad, net.in_proj_bias.grad.chunk(3)[i].numpy())
    agree(ours.out_proj.weight.grad, net.out_proj.weight.grad.numpy())


def test_a_block_is_pytorchs_with_its_norms_first() -> None:
    net = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, 6, dropout=0.0, batch_first=True, norm_first=True, dtype=torch.float64
    )
    state = {name: p.detach().numpy() for name, p in net.named_parameters()}
    renamed = {
        "self_attn_layer_norm": "norm1",
        "self_attn.out_proj": "self_attn.out_proj",
        "final_layer_norm": "norm2",
        "fc1": "linear1",
        "fc2": "linear2",
    }
    own = {
        f"{ours}.{p}": state[f"{theirs}.{p}"]
        for ours, theirs in renamed.items()
        for p in ("weight", "bias")
    }
    for p in "weight", "bias":
        parts = np.split(state[f"self_attn.in_proj_{p}"], 3)
        own |= {f"self_attn.{name}_proj.{p}": part for name, part in zip("qkv", parts)}
    ours = ld.DecoderLayer(WIDTH, HEADS, 6, dtype=np.float64)
    ours.load_state_dict(own)
    x = numbers(N, T, WIDTH)
    truth = net(torch.tensor(x), src_mask=torch.tensor(~causal_mask(T)))
    agree(ours(x, causal_mask(T)).data, truth.detach().numpy())


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_a_layer_norm_is_pytorchs(eps: float) -> None:
    net, ours = (
        torch.nn.LayerNorm(WIDTH, eps, dtype=torch.float64),
        ld.LayerNorm(WIDTH, eps, dtype=np.float64),
    )
    for i, p in enumerate(net.parameters()):
        p.data = torch.tensor(numbers(WIDTH, seed=i))
    ours.load_state_dict(twins.state(net))
    array, g = numbers(N, T, WIDTH), numbers(N, T, WIDTH, seed=9)
    x, theirs = mg.Tensor(array, requires_grad=True), leaf(array)
    y, truth = ours(x), net(theirs)
    y.backward(g)
    truth.backward(torch.tensor(g))
    agree(y.data, truth.detach().numpy())
    agree(x.grad, theirs.grad.numpy())
    agree(
        {name: p.grad for name, p in ours.named_parameters()},
        {name: p.grad.numpy() for name, p in net.named_parameters()},
    )


def test_an_embedding_is_pytorchs() -> None:
    net = torch.nn.Embedding(7, WIDTH, dtype=torch.float64)
    ours = ld.Embedding(7, WIDTH, dtype=np.float64)
    ours.load_state_dict(twins.state(net))
    ids, g = np.random.default_rng(0).integers(7, size=(N, T)), numbers(N, T, WIDTH)
    y, truth = ours(ids), net(torch.tensor(ids))
    y.backward(g)
    truth.backward(torch.tensor(g))
    agree(y.data, truth.detach().numpy())
    agree(ours.weight.grad, net.weight.grad.numpy())


def test_a_value_that_is_nan_is_nan_for_whoever_is_multiplied_by_it_as_in_pytorch() -> None:
    """P is 0 there, and 0 · NaN is NaN: a mask hides a token, but not a NaN in it."""
    q, k, v = (numbers(T, 4, seed=seed) for seed in range(3))
    v[-1] = np.nan
    mask = causal_mask(T)
    y = (attention_weights(mg.Tensor(q), mg.Tensor(k), mask) @ mg.Tensor(v)).data
    attend = torch.nn.functional.scaled_dot_product_attention
    truth = attend(*map(torch.tensor, (q, k, v)), attn_mask=torch.tensor(mask)).numpy()
    assert np.isnan(y).all()
    assert np.isnan(truth).all()
