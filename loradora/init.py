"""How A and B start.

In every scheme the adapted layer starts out equal to the base, up to rounding, except for ``False``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.nn import short

Scheme: TypeAlias = bool | Literal["gaussian", "orthogonal", "pissa", "olora"]
Matrix: TypeAlias = npt.NDArray[Any]

SCHEMES = (True, False, "gaussian", "orthogonal", "pissa", "olora")


def initial_factors(
    scheme: Scheme, W0: Matrix, r: int, s: float, rng: np.random.Generator
) -> tuple[Matrix, Matrix, Matrix | None]:
    """Return A (r, in), B (out, r) and the weight to freeze in place of W0, None for W0 itself.

    Parameters
    ----------
    scheme
        - True: A uniform in ±1/√in, B = 0 (LoRA's reference code, Microsoft's loralib).
        - False: A and B uniform, in ±1/√in and ±1/√r: an adapter that acts from the start.
        - "gaussian": A normal with standard deviation 1/r, B = 0 (arXiv:2106.09685, §4.1).
        - "orthogonal": the columns of A and the rows of B lie in complementary halves of ℝʳ, each
          spanned by half the rows of a random orthogonal matrix.  So B A = 0, though B ≠ 0; r must be
          even.
        - "pissa": s B A is the best rank-r approximation of W0, W0 − s B A is frozen
          (Meng et al., arXiv:2404.02948).
        - "olora": B and A are the first r columns of Q and rows of R in W0 = Q R, W0 − s B A is
          frozen (Büyükakyüz, arXiv:2406.01775).
    W0
        The weight, shape (out, in).
    r
        The rank.
    s
        The scaling of B A.
    rng
        The source of randomness.

    Raises
    ------
    ValueError
        For an unknown scheme, an odd r with "orthogonal", or with "pissa" and "olora" an r that is
        larger than W0 allows or an s that is not positive.
    """
    if not any(type(known) is type(scheme) and known == scheme for known in SCHEMES):
        raise ValueError(f"init_lora_weights must be one of {SCHEMES}, not {short(scheme)}")
    out_features, in_features = W0.shape
    if scheme == "gaussian":
        return rng.normal(0, 1 / r, (r, in_features)), np.zeros((out_features, r)), None
    if scheme == "orthogonal":
        return *_orthogonal(r, in_features, out_features, rng), None
    if scheme in ("pissa", "olora"):
        if r > min(W0.shape) or s <= 0:
            raise ValueError(
                f"{scheme!r} takes s B A out of a weight of shape {W0.shape}: it needs a positive "
                f"scaling and r of at most {min(W0.shape)}, not {s:g} and {r}"
            )
        A, B = _principal(W0, r, s) if scheme == "pissa" else _qr(W0, r)
        return A, B, (W0 - s * (B @ A)).astype(W0.dtype)
    bound_A, bound_B = 1 / math.sqrt(in_features), 0 if scheme else 1 / math.sqrt(r)
    A = rng.uniform(-bound_A, bound_A, (r, in_features))
    return A, rng.uniform(-bound_B, bound_B, (out_features, r)), None


def _orthogonal(
    r: int, in_features: int, out_features: int, rng: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """Return A and B ≠ 0 with B A = 0: A's columns and B's rows come from different rows of Q.

    Q is a random orthogonal matrix, (r, r).
    """
    if r % 2:
        raise ValueError(f"orthogonal initialisation needs an even r, not {r}")
    Q = np.linalg.qr(rng.normal(size=(r, r)))[0]
    A = Q[0::2].T @ rng.normal(size=(r // 2, in_features)) / 10
    B = rng.normal(size=(out_features, r // 2)) @ Q[1::2] / 10
    return A, B


def _principal(W0: Matrix, r: int, s: float) -> tuple[Matrix, Matrix]:
    """Return √(S/s) Vᵀ and U √(S/s) of the r largest singular values S of W0 = U S Vᵀ."""
    U, S, Vt = np.linalg.svd(W0.astype(np.float64), full_matrices=False)
    root = np.sqrt(S[:r] / s)
    return root[:, None] * Vt[:r], U[:, :r] * root


def _qr(W0: Matrix, r: int) -> tuple[Matrix, Matrix]:
    """Return the first r rows of R and columns of Q in W0 = Q R."""
    Q, R = np.linalg.qr(W0.astype(np.float64))
    return R[:r], Q[:, :r]
