"""The checker is checked: every rule in the registry is broken in three ways, and each is noticed."""

import numpy as np
import pytest
from strategies import CASES
from test_ops import of_its_variables

import minigrad as mg
from minigrad import OPS

#: Arguments on which each rule has a gradient that no planted bug leaves alone.
EXAMPLES = {
    "clip": (([0.5, -2.0, 3.0],), {"min": -1.0, "max": 1.0}),
    "getitem": (([1.0, 2.0, 3.0], [2, 0, 2]), {}),
    "join": (([[1.0, 2.0]], [[3.0, 4.0]]), {"axis": 0}),
    "linear": (([[1.0, 2.0]], [[0.5, -1.0], [2.0, 1.5], [1.0, 3.0]], [0.1, 0.2, 0.3]), {}),
    "matmul": (([[1.0, 2.0], [0.5, -1.0]], [[2.0, 1.5], [1.0, 3.0]]), {}),
    "pow": (([1.5, 2.0], [2.5, -1.5]), {}),
    "scatter": (([1.0, 2.0, 3.0], [2, 0, 2], (4,)), {}),
    "swapaxes": (([[1.0, 2.0]],), {"axis1": 0, "axis2": 1}),
    "reshape": (([[1.0, 2.0]],), {"shape": (2,)}),
    "broadcast_to": (([1.0, 2.0],), {"shape": (3, 2)}),
    "astype": (([1.0, 2.0],), {"dtype": np.float64}),
    "transpose": (([[1.0, 2.0]],), {}),
    "where": (([True, False], [1.0, 2.0], [3.0, 4.0]), {}),
    "affine": (([1.0, 2.0], [3.0, 0.5], [0.1, 0.2]), {}),
    "linear_beside": (
        (
            [[1.0, 2.0]],
            np.float32([[1, 2]]),
            [[0.5]],
            [[2.5]],
            np.float32([[3, 4]]),
            np.zeros((1, 1), np.float32),
        ),
        {},
    ),
}
ONE = (([0.5, 1.5, 2.5],), {})
TWO = (([0.5, 1.5, 2.5], [1.25, 0.75, 3.5]), {})

MUTATIONS = {
    "a factor 1 + 1e-4": lambda rule: lambda g, *a, **k: rule(g, *a, **k) * (1 + 1e-4),
    "a flipped sign": lambda rule: lambda g, *a, **k: -rule(g, *a, **k),
    "an ignored upstream gradient": lambda rule: lambda g, *a, **k: rule(np.ones_like(g), *a, **k),
}


def example(name):
    op = OPS[name]
    args, params = EXAMPLES.get(name, TWO if len(op.vjps) == 2 else ONE)
    floats = [
        np.array(a) if rule and isinstance(a, list) else np.asarray(a) if rule is None else a
        for a, rule in zip(args, op.vjps, strict=False)
    ]
    return [*floats, *args[len(op.vjps) :]], params


RULES = [(name, i) for name, op in sorted(OPS.items()) for i, rule in enumerate(op.vjps) if rule]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_rules_as_they_are_pass(name):
    args, params = example(name)
    f, variables = of_its_variables(name, args, params)
    mg.gradcheck(f, *variables)


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize(("name", "argument"), RULES)
def test_a_planted_bug_is_noticed(name, argument, mutation, monkeypatch):
    args, params = example(name)
    rules = list(OPS[name].vjps)
    rules[argument] = MUTATIONS[mutation](rules[argument])
    monkeypatch.setattr(OPS[name], "vjps", tuple(rules))
    f, variables = of_its_variables(name, args, params)
    with pytest.raises(mg.GradcheckError):
        mg.gradcheck(f, *variables)
