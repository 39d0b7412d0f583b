"""The hint for a function of PyTorch gives the same numbers here."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad as mg
from minigrad import hints

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
compositions = pytest.importorskip("test_hints", reason=NEEDED)

LABELS, MASK = torch.tensor(compositions.LABELS), torch.tensor(compositions.MASK)

#: The arguments for functions that need special ones.  All others get x, or x and y.
ASKED = {
    "einsum": lambda f, x, y: f("...i,...i", x, y),
    "prod": lambda f, x, y: f(x, dim=0),
    "cumsum": lambda f, x, y: f(x, dim=0),
    "flip": lambda f, x, y: f(x, dims=[0]),
    "roll": lambda f, x, y: f(x, 2, dims=0),
    "repeat_interleave": lambda f, x, y: f(x, 2, dim=0),
    "tile": lambda f, x, y: f(x, (2,)),
    "outer": lambda f, x, y: f(x.flatten(), y.flatten()),
    "movedim": lambda f, x, y: f(x, 0, -1),
    "moveaxis": lambda f, x, y: f(x, 0, -1),
    **dict.fromkeys(("vstack", "row_stack", "hstack", "column_stack"), lambda f, x, y: f([x, y])),
    "split": lambda f, x, y: f(x, [2, 1]),
    "sort": lambda f, x, y: f(x).values,
    "topk": lambda f, x, y: f(x, 2).values,
    "gather": lambda f, x, y: f(x, 1, LABELS[:, None])[:, 0],
    "take": lambda f, x, y: f(x, LABELS),
    "index_select": lambda f, x, y: f(x, 0, LABELS),
    "embedding": lambda f, x, y: torch.nn.functional.embedding(LABELS, x),
    "scaled_dot_product_attention": lambda f, x, y: f(x, y, y),
    "masked_fill": lambda f, x, y: f(x, MASK if x.ndim == 2 else MASK[0], 2),
    "normalize": lambda f, x, y: f(x, dim=-1),
    "nll_loss": lambda f, x, y: f(x, LABELS),
    "one_hot": lambda f, x, y: f(LABELS, 3),
    "equal": None,  # one answer for all entries, which is np.array_equal here
    "vdot": None,  # of vectors alone
    "vecdot": lambda f, x, y: torch.linalg.vecdot(x, y),
    "take_along_axis": None,
}


def function(name):
    """Return PyTorch's function of that name, None if it has none that is meant."""
    if name in ASKED and ASKED[name] is None:
        return None
    return getattr(torch, name, None) or getattr(torch.nn.functional, name, None)


CASES = [case for case in compositions.CASES_OF_COMPOSITIONS if function(case.values[0])]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_composition_is_pytorchs_function(name, form):
    a, b = compositions.example(name, form)
    x, y = torch.tensor(a), torch.tensor(b)
    given = ASKED.get(name, lambda f, x, y: f(*[x, y][: compositions.operands(name)]))
    truth = given(function(name), x, y)
    found = compositions.composed(name, mg.Tensor(a), mg.Tensor(b))
    several = isinstance(found, (list, tuple))
    for part, expected in zip(*((found, truth) if several else ([found], [truth])), strict=True):
        assert part.shape == expected.shape
        assert_allclose(np.asarray(part), expected.numpy(), rtol=1e-9)


def test_most_compositions_are_pytorchs():
    names = {case.values[0] for case in CASES}
    assert {
        "silu",
        "leaky_relu",
        "softplus",
        "gather",
        "tile",
        "binary_cross_entropy",
        "gt",
    } <= names
    assert names <= set(hints.COMPOSITIONS)
