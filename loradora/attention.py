r"""Attention: how the tokens of a text look at one another.  LoRA was made for its projections.

A transformer holds a vector x for each of the T tokens of a text: together the rows of X, (T, width).
Attention lets them exchange what they know.  From its vector each token computes three shorter ones, of
d numbers (and adds a bias to each, which is left out here):

    q = Wq x    the query: what it looks for              Q = X Wqᵀ   (T, d)
    k = Wk x    the key: what it can be found by          K = X Wkᵀ   (T, d)
    v = Wv x    the value: what it tells who finds it     V = X Wvᵀ   (T, d)

Attention is three lines (Vaswani et al., arXiv:1706.03762, eq. 1):

    S = Q Kᵀ/√d      (T, T)   S[i, j]: how well what i looks for fits what j can be found by
    P = softmax(S)   (T, T)   row i is how i divides its attention: no entry below 0, their sum is 1
    Y = P V          (T, d)   row i is the mean of the values, as i weights them

A sum of d products of independent numbers with mean 0 grows like √d.  Divided by √d, the entries of S are
as large for a large d as for a small one, and softmax does not put all its weight on one token.

A model that learns to guess the next token must not see it.  A *mask* says who may look at whom: where it
is False, P is 0.  The causal mask is True on and below the diagonal: i looks at j ≤ i.  (In PyTorch, True
means the same for ``scaled_dot_product_attention``, but "may not" for ``nn.MultiheadAttention``.)

Nothing in these lines knows the order of the tokens: without a mask, shuffling the rows of X shuffles
those of Y alike.  So a model first adds to each token a vector for its place.

One such triple is a *head*.  H heads work side by side, each with its own d = width/H rows of Wq, Wk and
Wv, so that one head may look for the last vowel while another looks for who is speaking.  What they
return is laid side by side and mixed by a fourth matrix, Wo.

No derivative is written in this file: the engine finds them.  A bar marks the gradient of a loss: V̄ is
the gradient by V.  Going through the three lines from the last to the first, the engine computes

    V̄ = Pᵀ Ȳ
    P̄ = Ȳ Vᵀ
    S̄ = P∘(P̄ − Σ P∘P̄)         the sums go over each row; where P is 0, so is S̄
    Q̄ = S̄ K/√d,   K̄ = S̄ᵀ Q/√d

and for the projections W̄q = Q̄ᵀ X, and so on.  A LoRA W0 + s B A of Wq takes B̄ = s W̄q Aᵀ and Ā = s Bᵀ W̄q
from it (:mod:`loradora.adapters`).

The parameters are named as in OPT (Zhang et al., arXiv:2205.01068), so that its checkpoints fit.  LoRA's
authors recommend ``target_modules=["q_proj", "v_proj"]`` (§7.1).
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.nn import (
    Dropout,
    Linear,
    Module,
    ReLU,
    Rng,
    as_operand,
    check_finite,
    check_integer,
    check_positive,
    generator,
    short,
)
from minigrad import Tensor
from minigrad.ops import like, outside, wide
from minigrad.tensor import as_array, as_reals

Array = npt.NDArray[Any]


def causal_mask(length: int) -> Array:
    """Return who may look at whom in a text of this length if nobody looks ahead: (length, length).

    >>> causal_mask(3).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """
    check_integer(length=length)
    if length < 0:
        raise ValueError(f"length must not be negative, not {short(int(length))}")
    return np.tri(length, dtype=bool)


def attention_weights(q: Tensor, k: Tensor, mask: npt.ArrayLike | None = None) -> Tensor:
    """Return P = softmax(Q Kᵀ/√d), of shape (…, T, N), for q (…, T, d) and k (…, N, d).

    Here T tokens look at N others; in a text that looks at itself, N = T.

    Parameters
    ----------
    q, k
        The queries and the keys.  Their leading axes are broadcast.
    mask
        Bools that broadcast to P, True where a token may look; None if each may look at all.  A token
        that may look at nobody gets a row of zeros.

    Raises
    ------
    TypeError
        For a mask of anything but bools.
    ValueError
        For q and k that do not fit each other, and a mask of another shape.

    Examples
    --------
    >>> alike = Tensor(np.zeros((3, 2)))
    >>> attention_weights(alike, alike, causal_mask(3)).data.round(2)
    array([[1.  , 0.  , 0.  ],
           [0.5 , 0.5 , 0.  ],
           [0.33, 0.33, 0.33]])
    """
    shape = _shape_of_weights(q.shape, k.shape)
    if mask is not None:
        mask = _as_mask(mask, shape)
    S = (wide(q) * q.shape[-1] ** -0.5) @ wide(k).mT  # float16 is computed in float32
    P: Tensor = like(mg.softmax(S, where=mask), q)
    return P


def _shape_of_weights(q: tuple[int, ...], k: tuple[int, ...]) -> tuple[int, ...]:
    """Return (…, T, N) for the shapes (…, T, d) and (…, N, d)."""
    if min(len(q), len(k)) >= 2 and q[-1] == k[-1] > 0:
        with contextlib.suppress(ValueError):
            return (*np.broadcast_shapes(q[:-2], k[:-2]), q[-2], k[-2])
    raise ValueError(
        f"expected q (..., T, d) and k (..., N, d) for a d of at least 1, got {q} and {k}"
    )


def _as_mask(mask: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return a mask as an array of bools, checked to broadcast to the shape (…, T, N)."""
    given = as_array(mask, "mask")
    expected = f"a mask holds bools, True where a token may look, of a shape that fits {shape}"
    if given.dtype != bool:
        raise TypeError(
            f"{expected}, not {given.dtype}: one of 1 and 0 is made so by mask == 1, and one that is "
            "added, of 0 and -inf, by mask == 0"
        )
    try:
        fits = np.broadcast_shapes(given.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{expected}, not {given.shape}")
    return given


def _check_plain(mask: tuple[int, ...], ndim: int) -> None:
    """Raise ValueError for the shape of a mask that seems to have no axis for the heads.

    If x has ``ndim`` axes, P has one more.  With N texts and N heads, (N, T, T) would fit as a mask for
    each head, but may be meant as one for each text.
    """
    if ndim > 2 and 2 < len(mask) <= ndim and mask[-3] != 1:
        raise ValueError(
            f"a mask {mask} may be one for each text or for each head: give it {ndim + 1} axes, as "
            "(N, 1, T, T) and (1, heads, T, T) have them for N texts"
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return (…, T, width) as (…, heads, T, d): each head gets d = width/heads of the numbers.

    ValueError unless that is a whole number.
    """
    if num_heads < 1 or x.shape[-1] % num_heads:
        raise ValueError(f"{num_heads} heads cannot share a width of {x.shape[-1]} evenly")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads).swapaxes(-3, -2)


def join_heads(y: Tensor) -> Tensor:
    """Return (…, heads, T, d) as (…, T, width), which undoes :func:`split_heads`."""
    y = y.swapaxes(-3, -2)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


class MultiHeadAttention(Module):
    """Each token looks at the others, with several heads: (…, T, embed_dim) in and out.

    Parameters
    ----------
    embed_dim
        The length of a token's vector.
    num_heads
        How many heads share it; each has d = embed_dim/num_heads numbers.
    dropout
        The share of P that is set to 0 in training, in [0, 1): tokens are overlooked by chance.
    bias
        Whether the four projections add a bias.
    rng
        The source of randomness, or a seed; a fresh, unseeded one by default.
    dtype
        Of the parameters.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not integers of at least 1, heads that do not divide the width, and a rate
        outside [0, 1).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        rng: Rng = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        check_positive(embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise ValueError(f"{num_heads} heads cannot share a width of {embed_dim} evenly")
        rng = generator(rng)
        self.embed_dim, self.num_heads = int(embed_dim), int(num_heads)
        self.q_proj = Linear(embed_dim, embed_dim, bias, rng=rng, dtype=dtype)
        self.k_proj = Linear(embed_dim, embed_dim, bias, rng=rng, dtype=dtype)
        self.v_proj = Linear(embed_dim, embed_dim, bias, rng=rng, dtype=dtype)
        self.out_proj = Linear(embed_dim, embed_dim, bias, rng=rng, dtype=dtype)
        self.dropout = Dropout(dropout, rng=rng)

    def forward(self, x: Tensor | npt.ArrayLike, mask: npt.ArrayLike | None = None) -> Tensor:
        """Return what each token has learnt from those that it may look at, of the shape of x.

        Parameters
        ----------
        x
            The tokens, (…, T, embed_dim).  An array takes the dtype of the layer.
        mask
            Who may look at whom, as for :func:`attention_weights`: bools that broadcast to
            (…, heads, T, T).  For N texts, a mask for each text is (N, 1, T, T), or (N, 1, 1, T) if it
            only says which tokens are there.  A mask for each head is (1, heads, T, T).

        Raises
        ------
        TypeError, ValueError
            For an x of another shape, for a mask with an axis that may stand for the texts or for the
            heads, and as :func:`attention_weights`.
        """
        given = x if isinstance(x, Tensor) else as_reals(x)
        if given.ndim < 2 or given.shape[-1] != self.embed_dim:
            raise ValueError(f"expected x of shape (..., T, {self.embed_dim}), got {given.shape}")
        if mask is not None:
            mask = as_array(mask, "mask")
            _check_plain(mask.shape, given.ndim)
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (split_heads(p(given), self.num_heads) for p in projections)
        P = self.dropout(attention_weights(q, k, mask))  # (…, heads, T, T)
        return self.out_proj(join_heads(P @ v))

    def extra_repr(self) -> str:
        """Return the number of heads."""
        return f"num_heads={self.num_heads}"


class Embedding(Module):
    """A vector for each token: row i of ``weight`` for the id i, (…) to (…, embedding_dim).

    It is the product onehot(ids) W with rows of the identity, without the products with 0.  In the
    backward pass, each row of W̄ is the sum of ȳ over the places where its id stands.

    Parameters
    ----------
    num_embeddings
        How many different ids there are.
    embedding_dim
        The length of a vector.
    rng
        The source of randomness, or a seed; a fresh, unseeded one by default.
    dtype
        Of the vectors, which start as standard normal numbers, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not integers of at least 1.

    Examples
    --------
    >>> table = Embedding(3, 2)
    >>> table.weight.data = np.float32([[0, 0], [1, 10], [2, 20]])
    >>> table([2, 1, 2]).data
    array([[ 2., 20.],
           [ 1., 10.],
           [ 2., 20.]], dtype=float32)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rng: Rng = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        check_positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        rows = generator(rng).standard_normal((num_embeddings, embedding_dim))
        self.weight = Tensor(rows.astype(dtype), requires_grad=True)

    def forward(self, ids: npt.ArrayLike) -> Tensor:
        """Return the rows for these ids.

        Raises
        ------
        TypeError
            For ids that are not integers.
        IndexError
            For an id outside 0 … num_embeddings − 1.
        """
        ids, n = as_array(ids, "ids"), len(self.weight)
        if not ids.size:
            ids = ids.astype(np.intp)  # an empty list is one of floats to NumPy
        large = ids.dtype == object and all(type(i) is int for i in ids.flat)  # too large
        if ids.dtype.kind not in "iu" and not large:
            raise TypeError(
                f"ids are integers, in an array or a list, not {ids.dtype}; a Tensor has none"
            )
        wrong = outside(ids, n)
        if wrong is not None:
            raise IndexError(f"id {short(wrong)} is out of range for {n} embeddings")
        return self.weight[ids]

    def extra_repr(self) -> str:
        """Return how many vectors there are, and their length."""
        return "{} x {}".format(*self.weight.shape)


class LayerNorm(Module):
    """Each vector shifted and scaled to mean 0 and variance 1, times a weight, plus a bias.

    y = (x − μ)/√(v + eps) ∘ weight + bias, with the mean μ and the variance v of the last axis of x.
    Source: Ba, Kiros & Hinton, "Layer Normalization", arXiv:1607.06450.

    Parameters
    ----------
    normalized_shape
        The length of the last axis.
    eps
        Keeps the divisor away from 0; at least 0.
    dtype
        Of ``weight`` and ``bias``, which start as 1 and 0.

    Raises
    ------
    TypeError, ValueError
        For a length that is not an integer of at least 1, and an eps that is not a number of at least 0.
    """

    def __init__(
        self, normalized_shape: int, eps: float = 1e-5, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        check_positive(normalized_shape=normalized_shape)
        check_finite(eps=eps)
        if eps < 0:
            raise ValueError(f"eps must not be negative, not {eps!r}")
        self.eps = float(eps)
        self.weight = Tensor(np.ones(normalized_shape, dtype), requires_grad=True)
        self.bias = Tensor(np.zeros(normalized_shape, dtype), requires_grad=True)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y, of the shape of x; an array takes the dtype of the layer.

        Raises
        ------
        ValueError
            For an x whose last axis has another length.
        """
        given = as_operand(x, self.weight.dtype)
        if given.shape[-1:] != self.weight.shape:
            raise ValueError(f"expected x of shape (..., {self.weight.size}), got {given.shape}")
        return mg.affine(mg.layer_norm(given, eps=self.eps), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the length of the last axis, and eps."""
        return f"{self.weight.size}, eps={self.eps:g}"


class DecoderLayer(Module):
    """A block of a transformer: attention, then a net for each token by itself, both added to x.

    x = x + attention(norm(x)), then x = x + fc2(ReLU(fc1(norm(x)))), each with a norm of its own.  The
    norms stand before the sublayers ("pre-norm": Xiong et al., arXiv:2002.04745), so that x itself is
    only ever added to.  So one part of the gradient comes back unchanged, past every sublayer.

    Parameters
    ----------
    embed_dim, num_heads
        As for :class:`MultiHeadAttention`.
    ffn_dim
        The width of the net between ``fc1`` and ``fc2``; by default four times ``embed_dim``.
    dropout
        The dropout rate for what is added to x, and for the weights of attention, in [0, 1).
    rng
        The source of randomness, or a seed; a fresh, unseeded one by default.
    dtype
        Of the parameters.

    Raises
    ------
    TypeError, ValueError
        As :class:`MultiHeadAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        *,
        rng: Rng = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        check_positive(embed_dim=embed_dim)
        ffn_dim = 4 * int(embed_dim) if ffn_dim is None else ffn_dim
        check_positive(ffn_dim=ffn_dim)
        rng = generator(rng)
        self.self_attn_layer_norm = LayerNorm(embed_dim, dtype=dtype)
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, dropout, rng=rng, dtype=dtype)
        self.final_layer_norm = LayerNorm(embed_dim, dtype=dtype)
        self.fc1 = Linear(embed_dim, ffn_dim, rng=rng, dtype=dtype)
        self.fc2 = Linear(ffn_dim, embed_dim, rng=rng, dtype=dtype)
        self.activation: Module = ReLU()
        self.dropout = Dropout(dropout, rng=rng)

    def forward(self, x: Tensor | npt.ArrayLike, mask: npt.ArrayLike | None = None) -> Tensor:
        """Return x of shape (…, T, embed_dim) plus what attention and the net add to it.

        x, ``mask`` and the errors are as for :class:`MultiHeadAttention`.
        """
        given = as_operand(x, self.final_layer_norm.weight.dtype)
        x = given + self.dropout(self.self_attn(self.self_attn_layer_norm(given), mask))
        h = self.activation(self.fc1(self.final_layer_norm(x)))
        return x + self.dropout(self.fc2(h))
