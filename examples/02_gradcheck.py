# %% [markdown]
"""
# Lesson 2: doubt: how a wrong derivative is found, and what finite differences cannot see.

What you will see: a rule with a planted bug, and the report that names the wrong entry; why the step of
a difference must be neither too large nor too small; and a kink, where a right gradient is refused.

Why it matters: a wrong rule does not crash.  The loss goes down a little more slowly, and nobody notices.

Read next: minigrad/gradcheck.py; then 03_add_an_op.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, because the imports take a moment

import numpy as np

import minigrad as mg
from minigrad.ops import Op

# %% [markdown]
# ## 1. A bug
#
# `gradcheck` compares a gradient with finite differences, entry by entry.  It returns True if they agree
# and raises an error if they do not.


# %%
def verdict(f, x):
    """Return what gradcheck says."""
    try:
        mg.gradcheck(f, x)
    except mg.GradcheckError as error:
        text = str(error).replace(": analytic", ":\n      analytic").replace("; ", ";\n      ")
        return f"refused\n      {text}"
    return "passed"


# %% [markdown]
# The derivative of tanh is $1 - y^2$, in terms of its result y.  Here is a tanh whose rule forgets the
# square.  The report says where it is wrong, and by how much.

# %%
wrong = Op(np.tanh, (lambda g, y, a: g * (1 - y),))
x = np.array([0.5, -1.0, 2.0])
print("1. A bug: the rule of tanh says 1 - y where it should say 1 - y^2\n")
print(f"   mg.tanh : {verdict(mg.tanh, x)}")
print(f"   wrong   : {verdict(wrong, x)}\n")

# %% [markdown]
# ## 2. The step
#
# A central difference is $(f(x + h) - f(x - h))/2h$.  Its error has two parts.  The curve contributes
# O(h²), which shrinks with h.  Rounding contributes O(ε/h), which grows as h shrinks: the two values get
# so close that they differ in their last digits only.

# %%
exact = 1 - np.tanh(0.5) ** 2
print("2. The step: the derivative of tanh at 0.5 by central differences, in float64\n")
print("   step h     error")
for h in 10.0 ** -np.arange(1, 14):
    error = abs((np.tanh(0.5 + h) - np.tanh(0.5 - h)) / (2 * h) - exact)
    print(f"   {h:7.0e}   {error:8.1e}  {'#' * round(2 * (13 + np.log10(error + 1e-13)))}")

# %% [markdown]
# Up to constants, the two parts are equal where $h^2 = \varepsilon/h$.  `gradcheck` starts from this
# step.

# %%
best = np.finfo(np.float64).eps ** (1 / 3)
print("\n   Large steps miss the curve, with an error of O(h^2); small ones lose digits,")
print(f"   O(eps/h).  The two balance near eps^(1/3) = {best:.0e}, and some ten digits")
print("   remain.  In float32 half of the digits are missing to begin with, so")
print("   gradcheck refuses it:")
try:
    mg.gradcheck(mg.tanh, np.float32([0.5]))
except TypeError as refusal:
    print(f"      {refusal}\n")

# %% [markdown]
# ## 3. What differences cannot see
#
# relu has two slopes at 0: 0 on the left and 1 on the right.  A difference averages them.  A gradient
# has to choose.

# %%
x = mg.Tensor(0.0, requires_grad=True)
chosen = mg.grad(mg.relu(x), x).item()
h = 6e-6
central = (mg.relu(h) - mg.relu(-h)).item() / (2 * h)
print("3. What differences cannot see: relu at its kink\n")
print(f"   relu'(0) by minigrad {chosen:g}, by differences {central:g}\n")

# %% [markdown]
# Now move away from the kink, first by less than a step, then by more than the smallest step that is
# tried.

# %%
for at in (0.0, 1e-9, 1e-6):
    print(f"   gradcheck at {at:<6g}: {verdict(mg.relu, np.array([at]))}")
print("\n   The 0 is a convention, also in PyTorch; 1/2 would be another.  Both lie")
print("   between the slopes.  The second refusal is worse: relu has the slope 1 there,")
print("   but both steps that gradcheck tries, 6e-06 and one 64 times smaller, reach")
print("   across the kink.  (At 1e-06 the second one does not.)  So gradients at kinks")
print("   are tested by their exact values, without differences.")
