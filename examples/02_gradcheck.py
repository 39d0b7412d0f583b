"""Lesson 2: doubt: how a wrong derivative is found, and what finite differences cannot see.

What you will see: a rule with a planted bug, and the report that names the wrong entry; why the step of
a difference must be neither large nor small; and a kink, where a right gradient is refused.

Why it matters: a wrong rule does not crash.  The loss goes down a little less well, and nobody knows.

Read next: minigrad/gradcheck.py; then 03_add_an_op.py.
"""

import numpy as np

import minigrad as mg
from minigrad.ops import Op


def planted_bug():
    """A tanh whose rule forgets a square: gradcheck says where, and by how much."""
    print("1. A bug: the rule of tanh says 1 - y where it should say 1 - y^2\n")
    wrong = Op(np.tanh, (lambda g, y, a: g * (1 - y),))
    x = np.array([0.5, -1.0, 2.0])
    print(f"   mg.tanh : {verdict(mg.tanh, x)}")
    print(f"   wrong   : {verdict(wrong, x)}\n")


def step_size():
    """The error of a central difference is O(h²) from the curve and O(ε/h) from rounding."""
    print("2. The step: the derivative of tanh at 0.5 by central differences, in float64\n")
    exact = 1 - np.tanh(0.5) ** 2
    print("   step h     error")
    for h in 10.0 ** -np.arange(1, 14):
        error = abs((np.tanh(0.5 + h) - np.tanh(0.5 - h)) / (2 * h) - exact)
        print(f"   {h:7.0e}   {error:8.1e}  {'#' * round(2 * (13 + np.log10(error + 1e-13)))}")
    best = np.finfo(np.float64).eps ** (1 / 3)
    print(
        "\n   Large steps miss the curve, with an error of O(h^2); small ones lose digits, O(eps/h).\n"
        f"   The two balance near eps^(1/3) = {best:.0e}, and some ten digits remain.  In float32\n"
        "   half of the digits are missing to begin with,"
    )
    try:
        mg.gradcheck(mg.tanh, np.float32([0.5]))
    except TypeError as error:
        print(f"   so gradcheck refuses it: {error}\n")


def kinks():
    """At a kink there are two slopes; a difference averages them, a gradient chooses."""
    print("3. What differences cannot see: relu at its kink\n")
    x = mg.Tensor(0.0, requires_grad=True)
    chosen = mg.grad(mg.relu(x), x).item()
    h = 6e-6
    central = (mg.relu(h) - mg.relu(-h)).item() / (2 * h)
    print(f"   relu'(0) by minigrad {chosen:g}, by differences {central:g}\n")
    for at in (0.0, 1e-9, 1e-6):
        print(f"   gradcheck at {at:<6g}: {verdict(mg.relu, np.array([at]))}")
    print(
        "\n   0 is a convention (PyTorch's, too); 1/2 would be another, both lie between the slopes.\n"
        "   The second refusal is worse: relu has the slope 1 there, but every step that is still\n"
        "   useful reaches across the kink.  (At 1e-06 a smaller step than the first one decides.)\n"
        "   So gradients at kinks are tested by their exact values, and differences are kept away."
    )


def verdict(f, x):
    """Return what gradcheck says."""
    try:
        mg.gradcheck(f, x)
    except mg.GradcheckError as error:
        text = str(error).replace(": analytic", ":\n      analytic")
        return f"refused\n      {text}"
    return "passed"


if __name__ == "__main__":
    planted_bug()
    step_size()
    kinks()
