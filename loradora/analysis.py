"""What fine-tuning did to the weights: magnitude, direction, rank, and how many numbers it trained.

A weight W (out, in) is split into the lengths of its rows and their directions, W = m ∘ V̂ (DoRA,
arXiv:2402.09353, eq. 2, where they are columns).  Between the weights W0 before and W after some
training, §3.2 of the paper measures how far each has gone,

    ΔM = mean |mᵢ − m0ᵢ|              over the rows i        (eq. 3)
    ΔD = mean (1 − cos(wᵢ, w0ᵢ))      over the rows i        (eq. 4)

with one point (ΔD, ΔM) for each layer and checkpoint.  W is the weight that acts: for LoRA and DoRA,
the merged one.  All of it is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.low_rank import Adapted
from loradora.nn import Linear, Module, check_positive
from loradora.peft import PeftModel
from minigrad import Tensor
from minigrad import norm as row_length

Array: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.ArrayLike | Tensor


class Change(NamedTuple):
    """How far a weight has moved.

    Attributes
    ----------
    magnitude
        ΔM ≥ 0, in the unit of the weight.
    direction
        ΔD, from 0 (no row has turned) to 2 (every row points the other way).
    """

    magnitude: float
    direction: float


class Count(NamedTuple):
    """How many numbers a layer has.

    Attributes
    ----------
    trainable
        Those that training changes.
    total
        All of them.
    """

    trainable: int
    total: int


# ----------------------------------------------------------------------------- magnitude and direction


@np.errstate(under="ignore")
def magnitude_and_direction(W: Matrix) -> tuple[Array, Array]:
    """Return m (out,) and V̂ (out, in) with W = m ∘ V̂ row by row, m ≥ 0 and ‖v̂ᵢ‖ = 1 (eq. 2).

    A row of zeros has m = 0 and no direction: v̂ is 0 there.

    Parameters
    ----------
    W
        Shape (out, in), of any real dtype; the results are float64.

    Raises
    ------
    ValueError
        If W is not a matrix.

    Examples
    --------
    >>> m, V = magnitude_and_direction([[3, 4], [0, -2]])
    >>> m
    array([5., 2.])
    >>> V
    array([[ 0.6,  0.8],
           [ 0. , -1. ]])
    """
    rows = _matrix(W)
    m = row_length(rows, axis=1).data  # minigrad's norm neither overflows nor underflows
    return m, rows / np.where(m == 0, 1, m)[:, None]


@np.errstate(under="ignore")
def change(W0: Matrix, W: Matrix) -> Change:
    """Return ΔM and ΔD between two weights (eq. 3 and 4).

    1 − cos is computed as ½‖v̂ − v̂0‖², which is the same number, but does not lose all digits where the
    two directions are nearly the same.  Rows of zeros, before or after, have no direction and are
    left out of ΔD, which is 0 if none is left.

    Parameters
    ----------
    W0
        Before, shape (out, in).
    W
        After, of the same shape.

    Raises
    ------
    ValueError
        If the shapes differ, or are not those of a matrix with at least one row.

    Examples
    --------
    One row becomes twice as long, one turns by 90°: one moves only ΔM, the other only ΔD.

    >>> change([[1, 0], [0, 1]], [[2, 0], [1, 0]])
    Change(magnitude=0.5, direction=0.5)
    """
    (m0, V0), (m, V) = magnitude_and_direction(W0), magnitude_and_direction(W)
    if V0.shape != V.shape or len(V) == 0:
        raise ValueError(f"cannot compare weights of shape {V0.shape} and {V.shape}")
    turned = 0.5 * np.sum((V - V0) ** 2, axis=1)[(m0 != 0) & (m != 0)]
    return Change(float(np.mean(np.abs(m - m0))), float(turned.mean()) if len(turned) else 0.0)


def weight_decomposition(before: Module, after: Module) -> dict[str, Change]:
    """Return ΔM and ΔD of every Linear layer of a model, by its path (eq. 3 and 4).

    Parameters
    ----------
    before
        The base model.
    after
        The same architecture later: a trained copy, a merged model, or a PeftModel over it.  The weight
        of an adapted layer is the merged one.

    Raises
    ------
    ValueError
        If the models differ in their Linear layers or in the shapes of these.

    Examples
    --------
    >>> from loradora import MLP, LoraConfig, get_peft_model
    >>> base = MLP([3, 4, 2], rng=np.random.default_rng(0))
    >>> model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", use_dora=True))
    >>> weight_decomposition(base, model)["layers.2"]  # B = 0: nothing has moved yet
    Change(magnitude=0.0, direction=0.0)
    >>> dict(model.named_parameters())["base_model.layers.2.m"].data[:] += 0.5
    >>> moved = weight_decomposition(base, model)["layers.2"]
    >>> round(moved.magnitude, 6), round(moved.direction, 6)
    (0.5, 0.0)
    """
    W0, W = weights(before), weights(after)
    if W0.keys() != W.keys():
        raise ValueError(f"the models differ: layers {', '.join(W0)} and {', '.join(W)}")
    return {path: change(W0[path], W[path]) for path in W0}


@np.errstate(under="ignore")
def correlation(changes: Iterable[Change]) -> float:
    """Return Pearson's correlation of ΔM and ΔD over layers and checkpoints (§3.2 of the paper).

    +1 means that all points (ΔD, ΔM) lie on one rising straight line, which need not pass through the
    origin, and −1 that they lie on a falling one.  The paper reports −0.62 for full fine-tuning, +0.83
    for LoRA and −0.31 for DoRA.

    Raises
    ------
    ValueError
        For fewer than two points, or if ΔM or ΔD is the same at all of them.

    Examples
    --------
    >>> round(correlation([Change(1, 2), Change(2, 4), Change(3, 6)]), 9)
    1.0
    >>> round(correlation([Change(5, 2), Change(6, 4), Change(7, 6)]), 9)  # the line is moved up
    1.0
    >>> round(correlation([Change(1, 6), Change(2, 4), Change(3, 2)]), 9)
    -1.0
    """
    points = np.array(list(changes), dtype=np.float64).reshape(-1, 2)
    centred = points - points.mean(axis=0) if len(points) else points
    lengths = row_length(centred, axis=0).data  # minigrad's norm neither overflows nor underflows
    if len(points) < 2 or not np.all(lengths > 0):
        raise ValueError("a correlation needs two points that differ in magnitude and in direction")
    M, D = (centred / lengths).T
    return float(np.clip(M @ D, -1, 1))


# ----------------------------------------------------------------------------- rank


def spectrum(dW: Matrix) -> Array:
    """Return the singular values of ΔW, largest first, shape (min(out, in),).

    For LoRA ΔW = s B A, and all beyond the first r are 0 (up to rounding): the rank of a product is at
    most that of its factors (arXiv:2106.09685, eq. 3).

    Raises
    ------
    ValueError
        If ΔW is not a matrix.

    Examples
    --------
    >>> B, A = np.array([[3.0], [4.0]]), np.array([[0.0, 2.0, 0.0]])
    >>> spectrum(B @ A)
    array([10.,  0.])
    """
    return np.asarray(np.linalg.svd(_matrix(dW), compute_uv=False), np.float64)


@np.errstate(under="ignore")
def effective_rank(dW: Matrix) -> float:
    """Return e^H with H = −Σ pᵢ log pᵢ the entropy of the singular values, pᵢ = σᵢ/Σσ.

    This rank counts singular values by their size: k equal ones give k, and small ones add little.  So
    1 ≤ effective rank ≤ rank, and a matrix of zeros has 0.

    Source: O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO
    2007, definition 1.

    Raises
    ------
    ValueError
        If ΔW is not a matrix.

    Examples
    --------
    >>> round(effective_rank(np.diag([5.0, 5.0, 5.0, 0.0])), 9)
    3.0
    >>> round(effective_rank(np.diag([5.0, 0.1, 0.1, 0.0])), 2)
    1.21
    """
    sigma: Any = spectrum(dW)
    sigma = sigma[sigma > 0]
    if not len(sigma):
        return 0.0
    p = sigma / sigma[0]  # by the largest first, so that the sum cannot overflow
    p = p / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


# ----------------------------------------------------------------------------- how many numbers


def adapter_size(out_features: int, in_features: int, r: int, *, use_dora: bool = False) -> int:
    """Return how many numbers an adapter trains: A and B have r(in + out), and DoRA's m adds out.

    Source: arXiv:2106.09685, §5.1 (|Θ| = 2 L d r, for L square weights); arXiv:2402.09353, eq. 5.

    Raises
    ------
    ValueError, TypeError
        For sizes that are not integers of at least 1.

    Examples
    --------
    >>> adapter_size(256, 784, r=4), 256 * 784  # 2 % of the weight
    (4160, 200704)
    >>> adapter_size(256, 784, r=4, use_dora=True)
    4416
    """
    check_positive(out_features=out_features, in_features=in_features, r=r)
    out, width, rank = int(out_features), int(in_features), int(r)  # NumPy's may be of eight bits
    return rank * (width + out) + (out if use_dora else 0)


def parameter_counts(model: Module) -> dict[str, Count]:
    """Return how many numbers each layer has, by its path.

    A shared tensor counts once, in the first layer that has it.  An adapted layer counts as one, with its
    frozen weight and its adapter.

    >>> from loradora import MLP, LoraConfig, get_peft_model
    >>> base = MLP([784, 256, 10])
    >>> parameter_counts(base)
    {'layers.0': Count(trainable=200960, total=200960), 'layers.2': Count(trainable=2570, total=2570)}
    >>> parameter_counts(get_peft_model(base, LoraConfig(r=4, target_modules=["layers.0"])))
    {'layers.0': Count(trainable=4160, total=205120), 'layers.2': Count(trainable=0, total=2570)}
    """
    tree = _tree(model)
    adapted = [path for path, module in tree.named_modules() if isinstance(module, Adapted)]
    counts: dict[str, Count] = {}
    for name, p in tree.named_parameters():
        around = [path for path in adapted if not path or name.startswith(f"{path}.")]
        path = min(around, key=len) if around else name.rpartition(".")[0]
        old = counts.get(path, Count(0, 0))
        counts[path] = Count(old.trainable + p.size * p.requires_grad, old.total + p.size)
    return counts


# ----------------------------------------------------------------------------- walking


def weights(model: Module) -> dict[str, Array]:
    """Return the weight that every Linear layer acts with, by its path: for adapted layers, merged.

    The paths are those of the base, also in a PeftModel; the arrays are copies in float64, shape
    (out, in), so further training does not change them.
    """
    found: dict[str, Array] = {}
    inside: tuple[str, ...] = ()  # adapted layers, whose own base is not a layer of the model
    for path, module in _tree(model).named_modules():
        if path.startswith(inside):
            continue
        if isinstance(module, Adapted):
            inside = (*inside, f"{path}." if path else "")
        if isinstance(module, (Linear, Adapted)):
            found[path] = _matrix(module.weight).copy()
    return found


def _tree(model: Module) -> Module:
    """Return the layers that the model runs now; in a PeftModel they have the paths of its base."""
    return dict(model.named_modules())["base_model"] if isinstance(model, PeftModel) else model


def _matrix(W: Matrix) -> Array:
    array: Any = np.asarray(W, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"a weight has two axes (out, in), not the shape {array.shape}")
    result: Array = array
    return result
