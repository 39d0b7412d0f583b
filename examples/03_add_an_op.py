# %% [markdown]
"""
# Lesson 3: a new operation: one block, and everything else follows.

What you will see: softplus(a) = log(1 + eᵃ), a smooth relu, added to minigrad in one block; then, for
free, float32, a place in the table of operations, a second and a third derivative; and an operation of
two arguments, with broadcasting.
(An op that is to stay also needs a line in tests/strategies.py, which draws its arguments and computes
the same with NumPy.  The tests ask for it.)

Why it matters: a derivative that can be read beside its function can be checked.

Read next: minigrad/ops.py, which begins with what a rule may use, and the tricks behind its fast paths:
minigrad/sums.py, minigrad/products.py, minigrad/adding.py and minigrad/taylor.py; minigrad/functional.py,
functions made of operations; then 04_mlp.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, because the imports take a moment

import numpy as np

import minigrad as mg
from minigrad.ops import OPS, op, sigmoid

# %% [markdown]
# ## The block
#
# Below is the function, on plain arrays.  Above it is a rule for its argument: g is ȳ, the gradient of
# the result, and the rule returns the gradient of a.  It could also read y, the result itself.  The
# underscore says that it does not, so y need not be kept for the walk back.


# %%
@op(lambda g, _y, a: g * sigmoid(a))  # d log(1 + eᵃ) = eᵃ/(1 + eᵃ) da = σ(a) da   ⟹   ā = ȳ∘σ(a)
def softplus(a):
    """Return log(1 + eᵃ) = log(e⁰ + eᵃ), which NumPy computes without overflow."""
    return np.logaddexp(0, a)


# %% [markdown]
# ## Higher derivatives
#
# The rule is written in operations that minigrad knows.  So a gradient can itself be recorded
# (`create_graph=True`) and differentiated again.

# %%
x = mg.Tensor([-30.0, -2.0, 0.0, 2.0, 30.0, 1000.0], requires_grad=True)
columns = [softplus(x)]
for _ in range(3):
    columns.append(mg.grad(columns[-1].sum(), x, create_graph=True))

print("        x    softplus          1st          2nd          3rd derivative")
for row in zip(x.data, *(c.data for c in columns), strict=True):
    print("   {:6g}{:12.4g}{:13.4g}{:13.4g}{:13.4g}".format(*row))

# %% [markdown]
# On paper, the second derivative is $\sigma'(x) = e^{-x}/(1 + e^{-x})^2$.  It is even, so |x| may
# stand for x, and nothing overflows, whatever x is.  (In the table, the fourth digit at 30 is rounding:
# 1 − σ has lost its digits there.)

# %%
e = np.exp(-np.abs(x.data))
worst = np.abs(columns[2].data - e / (1 + e) ** 2).max()
print(f"\n   The second should be e^-x/(1 + e^-x)^2: the largest difference is {worst:.0e}\n")

# %% [markdown]
# ## For free
#
# The block has also put the operation into the table of all operations.

# %%
print(f"In the table of operations: {'softplus' in OPS}  ({len(OPS)} of them)")

# %% [markdown]
# It says nothing about dtypes, or about arguments that need no gradient.  The engine takes care of that,
# in one place for all operations.

# %%
single = mg.Tensor(np.ones(3, np.float32), requires_grad=True)
y = softplus(single)
y.sum().backward()
print(f"float32 stays: result {y.dtype}, gradient {single.grad.dtype}")

frozen = softplus(mg.Tensor([1.0]))
print(f"A frozen argument leaves no graph: requires_grad is {frozen.requires_grad}")

# %% [markdown]
# The check of lesson 2 takes the operation as it is.  So does the check of second derivatives.

# %%
points = np.array([[-3.0, -0.5], [0.0, 2.0]])
mg.gradcheck(softplus, points)
mg.gradgradcheck(softplus, points)
print("gradcheck and gradgradcheck: passed\n")

# %% [markdown]
# ## Two arguments, two rules
#
# softplus(a) is log(e⁰ + eᵃ).  With b in place of the 0 there are two arguments, and so there are two
# rules.  On paper, the derivative by a is eᵃ/(eᵃ + eᵇ) = σ(a − b).


# %%
@op(lambda g, _y, a, b: g * sigmoid(a - b), lambda g, _y, a, b: g * sigmoid(b - a))
def logaddexp(a, b):
    """Return log(eᵃ + eᵇ)."""
    return np.logaddexp(a, b)


# %% [markdown]
# NumPy broadcasts: it repeats the smaller argument.  The rules say nothing about that, either.  The
# engine adds up the gradients of the repetitions.

# %%
a = mg.Tensor(np.linspace(-1, 1, 3)[:, None], requires_grad=True)
b = mg.Tensor(np.linspace(0, 1, 4), requires_grad=True)
y = logaddexp(a, b)
y.sum().backward()
print(f"Broadcasting: from a {a.shape} and b {b.shape} comes y {y.shape},")
print(f"and back come gradients {a.grad.shape} and {b.grad.shape}")
mg.gradcheck(logaddexp, a.data, b.data)
print("gradcheck: passed\n")

# %% [markdown]
# ## Against relu
#
# Where relu has a kink, softplus is smooth.  So its gradient agrees with differences even at 0.

# %%
mg.gradcheck(softplus, 0.0)
try:
    mg.gradcheck(mg.relu, 0.0)
except mg.GradcheckError:
    print("At 0: gradcheck passes softplus and refuses relu, which has its kink there.")

# %% [markdown]
# Seen from far away, softplus is relu.  $\mathrm{softplus}(kx)/k$ is the view from k times as far.

# %%
x = np.linspace(-5, 5, 1001)
for k in (1, 10, 100):
    gap = np.abs(softplus(k * x).data / k - mg.relu(x).data)
    worst, at = gap.max(), x[gap.argmax()]
    print(f"   softplus({k:3}*x)/{k:<3} is at most {worst:.4f} from relu(x), at x = {at:g}")
