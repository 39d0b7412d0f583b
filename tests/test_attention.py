"""Attention, layer norm and embeddings are their formulas, and their gradients what calculus says.

They are compared with loops over texts, heads and tokens in plain NumPy, with the five lines for the
backward pass in the module's docstring, and with finite differences.  PyTorch is for tests/interop.
"""

import copy
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora.attention import attention_weights, causal_mask, join_heads, split_heads

#: A row of it may look at nobody.
BLIND = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]], bool)
MASKS = {"no mask": None, "causal": causal_mask(3), "a row that is empty": BLIND}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def numbers(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def scattered(module, seed=0):
    """Return the module with its ones and zeros replaced by other numbers."""
    for i, p in enumerate(module.parameters()):
        p.data = (p.data + numbers(*p.shape, seed=seed + i) / 3).astype(p.dtype)
    return module


def attention(width=4, heads=2, dtype=np.float64, **options):
    return scattered(ld.MultiHeadAttention(width, heads, rng=0, dtype=dtype, **options))


def block(width=4, heads=2, dtype=np.float64, **options):
    return scattered(ld.DecoderLayer(width, heads, rng=0, dtype=dtype, **options))


def norm(width=4, dtype=np.float64, **options):
    return scattered(ld.LayerNorm(width, dtype=dtype, **options))


# ----------------------------------------------------------------------------- by loops


def softmax(scores, seen):
    """Return the weights of one token; zeros if it may look at nobody."""
    weights = np.zeros(len(scores))
    if seen.any():
        powers = np.exp(scores[seen] - scores[seen].max())
        weights[seen] = powers / powers.sum()
    return weights


def looped(layer, x, mask):
    """Return what each token of one text (T, width) learns, head by head and token by token."""

    def projected(linear, x):
        return x @ linear.weight.data.T + linear.bias.data

    T, width = x.shape
    d = width // layer.num_heads
    q, k, v = (projected(p, x) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    y = np.zeros((T, width))
    for h in range(layer.num_heads):
        own = slice(h * d, (h + 1) * d)
        for i in range(T):
            scores = np.array([q[i, own] @ k[j, own] / math.sqrt(d) for j in range(T)])
            y[i, own] = softmax(scores, mask[h, i]) @ v[:, own]
    return projected(layer.out_proj, y)


class Text(NamedTuple):
    """A layer, its input, and a mask that fits."""

    layer: ld.MultiHeadAttention
    x: np.ndarray
    mask: np.ndarray | None


@st.composite
def texts(draw):
    heads, d, T = (draw(st.integers(low, 3)) for low in (1, 1, 0))
    lead = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    shape = (*lead, heads, T, T)
    kept = draw(st.integers(0, len(shape)))
    stretched = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    sizes = [1 if one else n for one, n in zip(stretched, shape)][len(shape) - kept :]
    seed = draw(st.integers(0, 99))
    if lead and 2 < len(sizes) < len(shape):  # of texts or of heads? it is refused
        sizes[-3] = 1
    given_mask = np.random.default_rng(seed).random(sizes) < 0.6
    # a list that is empty says nothing of its dtype
    as_list = given_mask.tolist() if given_mask.size else None
    mask = draw(st.sampled_from([None, given_mask, as_list, causal_mask(T)]))
    layer = attention(heads * d, heads)
    return Text(layer, numbers(*lead, T, heads * d, seed=seed), mask)


@given(texts())
def test_attention_is_what_loops_over_texts_heads_and_tokens_compute(text):
    layer, x, mask = text
    y = layer(x, mask)
    assert y.shape == x.shape
    *lead, T, _ = x.shape
    masks = np.broadcast_to(True if mask is None else mask, (*lead, layer.num_heads, T, T))
    for i in np.ndindex(*lead):
        assert_allclose(y.data[i], looped(layer, x[i], masks[i]), rtol=1e-12, atol=1e-12)


@given(texts())
def test_rows_of_the_weights_sum_to_1_and_to_0_for_who_may_look_at_nobody(text):
    layer, x, mask = text
    q, k = (split_heads(p(x), layer.num_heads) for p in (layer.q_proj, layer.k_proj))
    P = attention_weights(q, k, mask).data
    seen = np.broadcast_to(True if mask is None else mask, P.shape)
    assert_allclose(P.sum(axis=-1), seen.any(axis=-1), atol=1e-15 * max(1, x.shape[-2]))
    assert (P >= 0).all()
    assert not P[~seen].any()


def test_joining_undoes_splitting_into_heads():
    x = mg.Tensor(numbers(2, 5, 6))
    assert split_heads(x, 3).shape == (2, 3, 5, 2)
    assert_array_equal(split_heads(x, 3).data[1, 2, 3], x.data[1, 3, 4:])
    assert_array_equal(join_heads(split_heads(x, 3)).data, x.data)


@pytest.mark.parametrize("heads", [0, -1, 4, 12])
def test_heads_that_cannot_share_a_vector_are_refused(heads):
    with pytest.raises(ValueError, match=f"{heads} heads cannot share a width of 6 evenly"):
        split_heads(mg.Tensor(numbers(2, 5, 6)), heads)


def test_a_block_adds_attention_and_then_a_net_to_its_input():
    layer, x = block(), numbers(2, 3, 4)
    mask = causal_mask(3)

    def normed(norm, x):
        d = x - x.mean(axis=-1, keepdims=True)
        y = d / np.sqrt((d**2).mean(axis=-1, keepdims=True) + 1e-5)
        return y * norm.weight.data + norm.bias.data

    attended = normed(layer.self_attn_layer_norm, x)
    x1 = x + [looped(layer.self_attn, t, np.broadcast_to(mask, (2, 3, 3))) for t in attended]
    fc1, fc2 = layer.fc1, layer.fc2
    h = np.maximum(normed(layer.final_layer_norm, x1) @ fc1.weight.data.T + fc1.bias.data, 0)
    expected = x1 + h @ fc2.weight.data.T + fc2.bias.data
    assert_allclose(layer(x, mask).data, expected, rtol=1e-12, atol=1e-12)
    assert fc1.out_features == 16
    assert ld.DecoderLayer(4, 2, 6).fc1.out_features == 6


# ----------------------------------------------------------------------------- the way back


@every_mask
def test_the_gradients_are_the_five_lines_of_the_docstring(mask):
    Q, K, V, g = (numbers(2, 3, 5, seed=seed) for seed in range(4))
    q, k, v = (mg.Tensor(a, requires_grad=True) for a in (Q, K, V))
    (attention_weights(q, k, mask) @ v).backward(g)

    d, S = Q.shape[-1], Q @ K.mT / math.sqrt(Q.shape[-1])
    seen = np.ones((3, 3), bool) if mask is None else mask
    P = np.array([[softmax(s, row) for s, row in zip(one, seen)] for one in S])
    V_bar = P.mT @ g
    P_bar = g @ V.mT
    S_bar = P * (P_bar - np.sum(P * P_bar, axis=-1, keepdims=True))
    Q_bar, K_bar = S_bar @ K / math.sqrt(d), S_bar.mT @ Q / math.sqrt(d)
    for found, expected in ((q, Q_bar), (k, K_bar), (v, V_bar)):
        assert_allclose(found.grad, expected, rtol=1e-12, atol=1e-12)
    assert not S_bar[P == 0].any()


@every_mask
def test_attention_is_differentiated_as_finite_differences_say(mask):
    def attended(q, k, v):
        return attention_weights(q, k, mask) @ v

    arrays = [numbers(2, 3, 2, seed=seed) for seed in range(3)]
    mg.gradcheck(attended, *arrays)
    mg.gradgradcheck(attended, *arrays)


LAYERS = {
    "LayerNorm": (norm(), [numbers(2, 3, 4)]),
    "attention": (attention(2, 2), [numbers(3, 2)]),
    "attention, causal": (attention(2, 1), [numbers(3, 2), causal_mask(3)]),
    "attention, a row that is empty": (attention(2, 2), [numbers(3, 2), BLIND]),
    "a block": (block(2, 2, ffn_dim=3), [numbers(3, 2), causal_mask(3)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_differentiated_by_its_input_and_its_parameters(name):
    layer, (x, *mask) = LAYERS[name]

    def of_all(x, *_):
        return layer(x, *mask)

    mg.gradcheck(of_all, x, *layer.parameters())
    mg.gradgradcheck(of_all, x, *layer.parameters())


@given(st.lists(st.integers(0, 4), max_size=7))
def test_the_gradient_of_a_table_is_the_sum_over_the_places_of_each_id(ids):
    table, g = ld.Embedding(5, 2, rng=0, dtype=np.float64), numbers(len(ids), 2)
    y = table(ids)
    assert_array_equal(y.data, table.weight.data[np.array(ids, int)])
    y.backward(g)
    onehot = np.eye(5)[np.array(ids, int)]
    assert_allclose(table.weight.grad, onehot.T @ g, rtol=1e-12, atol=1e-15)
    mg.gradcheck(lambda weight: table(ids), table.weight) if ids else None


# ----------------------------------------------------------------------------- what must not matter


@given(st.integers(1, 4), st.data())
def test_what_comes_later_changes_nothing_before_it(T, data):
    """Bit for bit: a weight of 0 is exactly 0."""
    layer, x = block(), numbers(2, T, 4)
    i = data.draw(st.integers(0, T - 1))
    other = x.copy()
    other[:, i:] = numbers(2, T - i, 4, seed=7)
    y, changed = (layer(a, causal_mask(T)).data for a in (x, other))
    assert_array_equal(changed[:, :i], y[:, :i])
    assert not np.array_equal(changed[:, i], y[:, i])


@given(st.permutations(range(5)))
def test_without_a_mask_the_order_of_the_tokens_does_not_matter(order):
    layer, x = block(), numbers(5, 4)
    assert_allclose(layer(x[order]).data, layer(x).data[order], rtol=1e-12, atol=1e-12)


def test_texts_of_a_batch_do_not_see_one_another():
    layer, x = block(), numbers(3, 5, 4)
    one_by_one = [layer(text, causal_mask(5)).data for text in x]
    assert_allclose(layer(x, causal_mask(5)).data, one_by_one, rtol=1e-12, atol=1e-12)


def test_a_mask_for_each_text_has_an_axis_for_the_heads():
    layer, x = attention(4, 2), numbers(2, 3, 4)
    masks = np.stack([causal_mask(3), BLIND])
    y = layer(x, masks[:, None])
    for found, text, mask in zip(y.data, x, masks):
        assert_allclose(found, layer(text, mask).data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e300])
def test_a_key_that_is_masked_does_not_reach_the_weights(wrong):
    q, k = numbers(3, 2), numbers(3, 2, seed=1)
    spoilt = k.copy()
    spoilt[2] = wrong
    mask = causal_mask(3)
    P, expected = (attention_weights(mg.Tensor(q), mg.Tensor(a), mask).data for a in (spoilt, k))
    assert_array_equal(P[:2], expected[:2])
    mask[2, 2] = False
    assert_array_equal(attention_weights(mg.Tensor(q), mg.Tensor(spoilt), mask).data[:, 2], 0)


def test_scores_of_any_size_give_weights_that_are_finite():
    q = mg.Tensor(1e4 * numbers(3, 2), requires_grad=True)
    P = attention_weights(q, q, causal_mask(3))
    assert_allclose(P.data.sum(axis=-1), 1)
    P.backward(numbers(3, 3))
    assert np.isfinite(q.grad).all()


@given(st.floats(-3, 3), st.floats(0.2, 5))
def test_a_layer_norm_sees_neither_a_shift_nor_a_scale(shift, scale):
    layer, x = ld.LayerNorm(6, eps=0, dtype=np.float64), numbers(3, 6)
    y = layer(x).data
    assert_allclose(layer(scale * x + shift).data, y, rtol=1e-9, atol=1e-9)
    assert_allclose(y.mean(axis=-1), 0, atol=1e-14)
    assert_allclose(y.std(axis=-1), 1, rtol=1e-14)


def test_a_layer_norm_ends_with_a_weight_and_a_bias_for_each_entry():
    layer = ld.LayerNorm(2, eps=0, dtype=np.float64)
    layer.weight.data, layer.bias.data = np.array([2.0, 3.0]), np.array([10.0, 20.0])
    assert_array_equal(layer(np.array([[5.0, 9.0]])).data, [[8, 23]])
    constant = ld.LayerNorm(3, dtype=np.float64)
    assert_array_equal(constant(np.full((2, 3), 7.0)).data, np.zeros((2, 3)))


# ----------------------------------------------------------------------------- dropout, dtypes


def test_dropout_is_off_in_evaluation_and_repeated_by_a_seed():
    x, plain = numbers(5, 4), block().eval()(numbers(5, 4)).data
    one, other = (block(dropout=0.5).train() for _ in range(2))
    for layer in (one, other):  # the same numbers in both, the same state of the generator
        layer.self_attn.dropout.rng = layer.dropout.rng = np.random.default_rng(3)
    first, again = one(x).data, one(x).data
    assert_array_equal(other(x).data, first)
    assert not np.array_equal(first, again)
    assert_array_equal(one.eval()(x).data, plain)


@pytest.mark.parametrize("silent", ["self_attn.out_proj", "fc2"])
def test_a_block_drops_entries_of_what_attention_adds_and_of_what_the_net_adds(silent):
    layer, x = block(dropout=0.5), numbers(50, 4)
    layer.self_attn.dropout.p = 0
    layer.requires_grad_(False)
    for p in dict(layer.named_modules())[silent].parameters():
        p.data = np.zeros_like(p.data)
    added = layer(x).data - x
    missed = added == 0
    assert 0.4 < missed.mean() < 0.6
    assert_allclose(added[~missed], 2 * (layer.eval()(x).data - x)[~missed], rtol=1e-9)


def test_dropout_misses_some_of_those_that_are_looked_at():
    """With values that are all 1 a token learns the sum of the weights that are left, times 1/(1 − p)."""
    layer = ld.MultiHeadAttention(1, 1, dropout=0.5, rng=0, dtype=np.float64)
    for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
        linear.weight.data, linear.bias.data = np.zeros((1, 1)), np.zeros(1)
    layer.v_proj.bias.data = layer.out_proj.weight.data[0] + 1
    layer.out_proj.weight.data = np.ones((1, 1))
    y = layer(np.zeros((100, 8, 1))).data
    assert set(np.unique(y)) <= {i / 4 for i in range(9)}
    assert y.mean() == pytest.approx(1, abs=0.1)
    assert y.std() > 0.2


MADE = {
    "attention": lambda **o: attention(**o),
    "a block": lambda **o: block(**o),
    "LayerNorm": lambda **o: norm(**o),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", MADE)
def test_an_array_takes_the_dtype_of_the_layer(name, dtype):
    layer, x = MADE[name](dtype=dtype), numbers(3, 4)
    for given_x in (x, x.astype(np.float16), x.tolist(), np.ones((3, 4), int)):
        y = layer(given_x)
        assert y.dtype == dtype
        y.sum().backward()
        assert {p.grad.dtype for p in layer.parameters()} == {np.dtype(dtype)}
    assert layer(mg.Tensor(x)).dtype == np.float64


@pytest.mark.parametrize("name", MADE)
def test_float16_is_close_to_float64(name):
    """Each step is rounded to 11 bits, so the results may differ by a few of these roundings."""
    layer, x = MADE[name](dtype=np.float16), numbers(3, 4, dtype=np.float16)
    exact = MADE[name]()
    exact.load_state_dict(layer.state_dict())
    y, expected = layer(x).data, exact(x).data
    assert_allclose(y, expected, rtol=0.01, atol=0.01)
    assert not np.array_equal(y, expected)


def test_scores_beyond_float16_are_computed_in_float32():
    q = mg.Tensor(np.float16([[300, 300], [0, 0]]), requires_grad=True)
    P = attention_weights(q, q)  # a score of 127,279
    assert P.dtype == np.float16
    assert_array_equal(P.data, np.float16([[1, 0], [0.5, 0.5]]))
    P.sum().backward()
    assert np.isfinite(q.grad).all()


def test_queries_of_float16_are_divided_in_float32():
    """An eighth of 2⁻²² is 0 in float16, and no token would be looked at more than another."""
    q, k = np.full((1, 64), 2.0**-22, np.float16), np.zeros((2, 64), np.float16)
    k[0] = 6e4
    exact = np.exp(np.float64(q) @ np.float64(k).T / 8)
    P = attention_weights(mg.Tensor(q), mg.Tensor(k)).data
    assert_array_equal(P, np.float16(exact / exact.sum()))


# ----------------------------------------------------------------------------- what there is


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4), (0, 0, 4)])
def test_an_empty_text_or_batch_is_as_empty_afterwards(shape):
    layer, x = block(), mg.Tensor(np.zeros(shape), requires_grad=True)
    y = layer(x, causal_mask(shape[-2]))
    assert y.shape == shape
    y.backward(np.zeros(shape))
    assert x.grad.shape == shape
    assert not any(p.grad.any() for p in layer.self_attn.out_proj.parameters())


def test_parameters_have_the_names_of_opt():
    projections = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
    layers = ["self_attn_layer_norm", *projections, "final_layer_norm", "fc1", "fc2"]
    assert list(block().state_dict()) == [f"{n}.{p}" for n in layers for p in ("weight", "bias")]
    assert "self_attn.q_proj.bias" in block().state_dict()
    assert len(attention(bias=False).state_dict()) == 4


def test_layers_start_as_in_pytorch():
    table = ld.Embedding(300, 40, rng=0)
    assert abs(table.weight.data.mean()) < 0.05
    assert table.weight.data.std() == pytest.approx(1, abs=0.02)
    layer = ld.LayerNorm(3)
    assert_array_equal(layer.weight.data, np.ones(3, np.float32))
    assert_array_equal(layer.bias.data, np.zeros(3, np.float32))
    assert layer.eps == 1e-5


def test_sizes_may_be_small_integers_of_numpy():
    """Four times 65 is 4 in eight bits."""
    width, heads = np.uint8(65), np.uint8(5)
    layer = ld.DecoderLayer(width, heads, dtype=np.float32)
    assert layer.fc1.out_features == 260
    assert layer(np.zeros((2, 65))).shape == (2, 65)
    assert ld.Embedding(width, width)([64]).shape == (1, 65)
    assert causal_mask(np.int8(127)).shape == (127, 127)


def test_a_seed_makes_the_same_layer_again():
    for make in (
        lambda rng: ld.DecoderLayer(4, 2, rng=rng),
        lambda rng: ld.MultiHeadAttention(4, 2, rng=rng),
        lambda rng: ld.Embedding(4, 2, rng=rng),
    ):
        one, other = make(3).state_dict(), make(np.random.default_rng(3)).state_dict()
        for name, value in one.items():
            assert_array_equal(other[name], value)


def test_layers_say_what_they_are():
    assert repr(ld.Embedding(5, 2)) == "Embedding(5 x 2, 10 trainable)"
    assert repr(ld.LayerNorm(4)) == "LayerNorm(4, eps=1e-05, 8 trainable)"
    assert repr(attention()).startswith("MultiHeadAttention(num_heads=2\n  (q_proj): Linear(4 -> 4")
    assert "(self_attn): MultiHeadAttention(num_heads=2" in repr(block())


def test_layers_are_copied_with_all_they_have():
    layer, x = block(), numbers(3, 4)
    assert_array_equal(copy.deepcopy(layer)(x).data, layer(x).data)


# ----------------------------------------------------------------------------- ids


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_an_embedding_gives_a_vector_for_each_id_in_any_number_of_axes(shape, dtype):
    table = ld.Embedding(5, 2, rng=0)
    ids = np.random.default_rng(0).integers(5, size=shape).astype(dtype)
    y = table(ids)
    assert y.dtype == np.float32
    assert_array_equal(y.data, table.weight.data[ids])
    assert_array_equal(table(ids.tolist()).data, y.data)


@pytest.mark.parametrize(
    "ids",
    [[0, 5], [-1], 7, [[0], [9]], np.uint8([200]), [10**20], [0, -(10**20)]],
    ids=str,
)
def test_an_id_that_is_not_in_the_table_is_named(ids):
    wrong = next(i for i in np.ravel(ids) if not 0 <= i < 5)
    with pytest.raises(IndexError, match=f"id {wrong} is out of range for 5 embeddings"):
        ld.Embedding(5, 2)(ids)


@pytest.mark.parametrize(
    "ids",
    [[1.0], 2.5, [True], [True, 10**20], "abc", ["a"], None, mg.Tensor([1.0])],
    ids=lambda ids: repr(ids),
)
def test_ids_that_are_no_integers_are_refused(ids):
    with pytest.raises(TypeError, match="ids are integers, in an array or a list, not "):
        ld.Embedding(5, 2)(ids)


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("shape", [(), (4,), (5, 3), (2, 4, 5)], ids=str)
def test_an_input_of_another_shape_is_refused(shape):
    x, found = np.ones(shape), re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"expected x of shape \(\.\.\., T, 4\), got {found}"):
        attention()(x)
    with pytest.raises(ValueError, match=r"expected x of shape \(\.\.\., (T, )?4\), got"):
        block()(x)


@pytest.mark.parametrize("shape", [(), (5, 3), (4, 1)], ids=str)
def test_a_layer_norm_refuses_vectors_of_another_length(shape):
    found = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"expected x of shape \(\.\.\., 4\), got {found}"):
        norm()(np.ones(shape))


FITTING = [(), (1,), (3,), (3, 3), (3, 1), (1, 1, 3), (4, 1, 3, 3), (1, 2, 3, 3), (4, 2, 3, 3)]
OTHERS = [(2,), (2, 3), (3, 4), (2, 1, 3, 3), (1, 4, 2, 3, 3), (5, 1, 1, 1, 1)]


@pytest.mark.parametrize("shape", FITTING, ids=str)
def test_a_mask_is_broadcast(shape):
    layer, x = attention(), numbers(4, 3, 4)
    mask = np.random.default_rng(0).random(shape) < 0.6
    assert_array_equal(layer(x, mask).data, layer(x, np.broadcast_to(mask, (4, 2, 3, 3))).data)


@pytest.mark.parametrize("shape", OTHERS, ids=str)
def test_a_mask_of_another_shape_is_refused_and_the_one_expected_is_named(shape):
    found = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"bools, .* that fits \(4, 2, 3, 3\), not {found}"):
        attention()(np.ones((4, 3, 4)), np.ones(shape, bool))


FIT = [((3, 4), (5, 4)), ((3, 4), (2, 5, 4)), ((2, 1, 3, 4), (6, 5, 4)), ((0, 4), (5, 4))]
MISFITS = [
    ((3, 4), (5,)), ((4,), (3, 4)), ((), ()), ((3, 4), (3, 5)), ((3, 0), (3, 0)),
    ((2, 3, 4), (3, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("of_q", "of_k"), FIT, ids=str)
def test_queries_and_keys_are_broadcast_and_so_is_the_mask(of_q, of_k):
    q, k = mg.Tensor(numbers(*of_q)), mg.Tensor(numbers(*of_k, seed=1))
    shape = (*np.broadcast_shapes(of_q[:-2], of_k[:-2]), of_q[-2], of_k[-2])
    mask = np.random.default_rng(0).random(shape) < 0.6
    P = attention_weights(q, k, mask)
    assert P.shape == attention_weights(q, k).shape == shape
    wide_q, wide_k = (np.broadcast_to(t.data, shape[:-2] + t.shape[-2:]) for t in (q, k))
    for i in np.ndindex(shape[:-1]):
        expected = softmax(wide_q[i] @ wide_k[i[:-1]].T / 2, mask[i])
        assert_allclose(P.data[i], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("of_q", "of_k"), MISFITS, ids=str)
def test_queries_and_keys_that_do_not_fit_each_other_are_refused(of_q, of_k):
    words = re.escape(f"(..., N, d) for a d of at least 1, got {of_q} and {of_k}")
    with pytest.raises(ValueError, match=rf"^expected q \(\.\.\., T, d\) and k {words}$"):
        attention_weights(mg.Tensor(np.ones(of_q)), mg.Tensor(np.ones(of_k)), [[True]])


@pytest.mark.parametrize(
    ("lead", "shape"),
    [((2,), (2, 3, 3)), ((4,), (4, 3, 3)), ((2, 2), (2, 3, 3)), ((2, 2), (2, 2, 3, 3))],
)
def test_a_mask_for_each_text_is_not_taken_for_one_of_each_head(lead, shape):
    found = re.escape(str(shape))
    for layer in (attention(), block()):
        words = rf"^a mask {found} may be .* {len(lead) + 3} axes, as \(N, 1, T, T\) and \(1, heads"
        with pytest.raises(ValueError, match=words):
            layer(np.ones((*lead, 3, 4)), np.ones(shape, bool))
    assert attention()(np.ones((3, 4)), np.ones((2, 3, 3), bool)).shape == (3, 4)


def test_a_mask_does_not_make_a_batch_of_one_text():
    with pytest.raises(ValueError, match=r"that fits \(2, 3, 3\), not \(4, 1, 3, 3\)"):
        attention()(np.ones((3, 4)), np.ones((4, 1, 3, 3), bool))


@pytest.mark.parametrize(
    "mask",
    [np.ones((3, 3)), np.tri(3, dtype=int), [[0, 1, 1]], mg.Tensor(np.ones((3, 3))), "causal"],
)
def test_a_mask_of_anything_but_bools_is_refused(mask):
    with pytest.raises(TypeError, match=r"holds bools, .* of a shape that fits \(2, 3, 3\), not "):
        attention()(np.ones((3, 4)), mask)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ld.MultiHeadAttention(4, 3), ValueError, "3 heads cannot share a width of 4"),
        (lambda: ld.MultiHeadAttention(4, 8), ValueError, "8 heads cannot share a width of 4"),
        (lambda: ld.MultiHeadAttention(4, 0), ValueError, "num_heads must be at least 1"),
        (lambda: ld.MultiHeadAttention(0, 1), ValueError, "embed_dim must be at least 1"),
        (lambda: ld.MultiHeadAttention(4, 2.0), TypeError, "num_heads must be an integer"),
        (lambda: ld.MultiHeadAttention(4, 2, 1.0), ValueError, "the dropout rate must lie in"),
        (lambda: ld.MultiHeadAttention(4, 2, rng="x"), TypeError, "rng must be a Generator"),
        (lambda: ld.DecoderLayer(4, 3), ValueError, "3 heads cannot share a width of 4"),
        (lambda: ld.DecoderLayer("4", 2), TypeError, "embed_dim must be an integer"),
        (lambda: ld.DecoderLayer(4, 2, 0), ValueError, "ffn_dim must be at least 1"),
        (lambda: ld.DecoderLayer(4, 2, dropout=-1), ValueError, "the dropout rate must lie in"),
        (lambda: ld.Embedding(0, 2), ValueError, "num_embeddings must be at least 1"),
        (lambda: ld.Embedding(2, True), TypeError, "embedding_dim must be an integer"),
        (lambda: ld.LayerNorm(0), ValueError, "normalized_shape must be at least 1"),
        (lambda: ld.LayerNorm((4,)), TypeError, "normalized_shape must be an integer"),
        (lambda: ld.LayerNorm(4, eps=-1e-5), ValueError, "eps must not be negative"),
        (lambda: ld.LayerNorm(4, eps=math.nan), ValueError, "eps must be finite"),
        (lambda: ld.LayerNorm(4, eps="small"), TypeError, "eps must be a number"),
        (lambda: causal_mask(-1), ValueError, "length must not be negative, not -1"),
        (lambda: causal_mask(2.0), TypeError, "length must be an integer"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


RAGGED = {
    "ids": (lambda: ld.Embedding(5, 2)([[1], [1, 2]])),
    "mask": (lambda: attention()(np.ones((2, 4)), [[True], [True, False]])),
    "labels": (lambda: mg.cross_entropy(np.zeros((2, 2, 5)), [[1], [1, 2]])),
    "weight": (lambda: ld.LayerNorm(2).load_state_dict({"weight": [[1], [1, 2]], "bias": [1, 2]})),
}


@pytest.mark.parametrize("name", RAGGED)
def test_lists_that_differ_in_length_are_refused_by_their_name(name):
    with pytest.raises(ValueError, match=f"^{name}: lists in a list, .* must be equally long$"):
        RAGGED[name]()


def test_a_mask_of_weights_that_is_ragged_is_refused_by_its_name():
    q = mg.Tensor(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"^mask: lists in a list"):
        attention_weights(q, q, [[True], [True, False]])


@pytest.mark.parametrize("x", [[mg.Tensor(np.ones(4))], ["a"], [[1j] * 4]])
@pytest.mark.parametrize("name", MADE)
def test_a_layer_is_given_numbers_not_a_list_of_tensors(name, x):
    with pytest.raises(TypeError, match=r"list of Tensors|real numbers"):
        MADE[name]()(x)
