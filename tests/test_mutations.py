"""The checker is checked: every rule in the registry is broken in five ways, and each is noticed.

The bug is planted, and Hypothesis draws calls of the op, as for its other tests, until one shows it.
"""

import numpy as np
import pytest
from hypothesis import Phase, find, settings
from strategies import CASES
from test_ops import change_rules, every

import minigrad as mg
from minigrad import OPS


def but_for_the_last(cotangent):
    kept = np.array(cotangent)
    kept.flat[-1:] = 0
    return kept


MUTATIONS = {
    "a factor 1 + 1e-4": lambda rule: lambda g, *a: rule(g, *a) * (1 + 1e-4),
    "a flipped sign": lambda rule: lambda g, *a: -rule(g, *a),
    "an ignored upstream gradient": lambda rule: lambda g, *a: rule(np.ones_like(g), *a),
    "a last entry forgotten": lambda rule: lambda g, *a: but_for_the_last(rule(g, *a)),
    "digits lost to float16": lambda rule: lambda g, *a: np.float16(rule(g, *a)),
}

RULES = [
    (name, i)
    for name, op in sorted(OPS.items())
    for i in range(len(op.vjps) + bool(op.each))
    if op.has_rule(i)
]

SEARCH = settings(max_examples=200, phases=[Phase.generate], database=None, derandomize=True)


def is_refused(function, variables):
    try:
        mg.gradcheck(function, *variables)
    except mg.GradcheckError:
        return True
    return False


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize(("name", "argument"), RULES)
def test_a_planted_bug_is_noticed(name, argument, mutation, monkeypatch):
    def broken(position, rule):
        return MUTATIONS[mutation](rule) if position == argument else rule

    change_rules(monkeypatch, OPS[name], broken)
    function = getattr(mg, name, None) or OPS[name]
    find(
        CASES[name].calls,
        lambda call: is_refused(call.of(function), call.variables),
        settings=SEARCH,
    )


@every(CASES)
def test_the_rules_as_they_are_pass(name, drawn, seed):
    assert not is_refused(drawn.function, drawn.variables)
