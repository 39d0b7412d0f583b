# %% [markdown]
"""
# Lesson 6: DoRA: the length of each row of the weight, and its direction, trained apart.

What you will see: a weight taken apart into magnitude and direction (arXiv:2402.09353, eq. 2 and 5); its
gradients by hand, equal to minigrad's (eq. 6, 7, 11); the term that the paper drops, and why finite
differences then "fail".

Why it matters: "the gradient" that DoRA descends by default is no derivative of the loss, on purpose.
Knowing exactly which part is missing is knowing when it is safe.

Read next: loradora/adapters.py, loradora/by_hand.py (the derivation); then 07_magnitude_and_direction.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, for the imports take a moment

import numpy as np

import loradora as ld
import minigrad as mg
from loradora import analysis, by_hand

# %% [markdown]
# ## A layer in the middle of its training
#
# At the start B = 0, and much is 0 with it.  So A, B and m get values as after some training.

# %%
rng = np.random.default_rng(0)
base = ld.Linear(20, 12, rng=rng, dtype=np.float64)
W0, b = base.weight.data, base.bias.data
x, target = rng.normal(size=(50, 20)), rng.normal(size=(50, 12))


def moved(detach_norm):
    """Return a DoRA layer somewhere in the middle of its training."""
    how = {"r": 4, "lora_alpha": 4, "rng": np.random.default_rng(1)}
    layer = ld.DoRALinear(base, detach_norm=detach_norm, **how)
    middle = np.random.default_rng(2)
    layer.B.data = 0.2 * middle.normal(size=layer.B.shape)
    layer.m.data = layer.m.data * middle.uniform(0.5, 2, layer.m.shape)
    return layer


# %% [markdown]
# ## 1. Taken apart
#
# Every row of a weight is a length times a direction: $W = m \, V / \lVert V \rVert$.  LoRA gives V its
# B A, and DoRA trains m beside it.

# %%
m, V = analysis.magnitude_and_direction(W0)
print("1. W = m * V/||V||: a length for each row, and a direction\n")
print(f"   m * V/||V|| gives W0 back, up to             {abs(m[:, None] * V - W0).max():.0e}")

# %% [markdown]
# m starts as the lengths of W0, so DoRA, too, starts as the layer that it adapts.  Later B A only turns
# the rows, and their lengths are those in m.

# %%
start = ld.DoRALinear(base, r=4, lora_alpha=4, rng=rng)
same = np.array_equal(start(x).data, base(x).data)
print(f"   at the start equal to the base, bit by bit:  {same}")

layer = moved(detach_norm=True)
lengths = np.linalg.norm(layer.merge().weight.data, axis=1)
apart = abs(lengths - layer.m.data).max()
print(f"   later, row lengths of the merged W less m:   {apart:.0e}\n")

# %% [markdown]
# ## 2. Two gradients
#
# ‖V‖ depends on A and B, and the exact derivative says so.  The paper (sec. 4.3) treats it as a plain
# number instead, which saves memory: `detach_norm=True`, the default.  Both can be written down.  With
# G = ∂L/∂y = y − t, `by_hand` has them in NumPy.


# %%
def loss_of(layer):
    """L = Σ(y − t)²/2."""
    return 0.5 * mg.mse_loss(layer(x), target, reduction="sum")


def on_paper(layer, detach_norm):
    """Return the gradients by the formulas."""
    G = layer(x).data - target
    A, B, m, s = layer.A.data, layer.B.data, layer.m.data, layer.scaling
    return by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=detach_norm)


# %% [markdown]
# minigrad agrees with both.

# %%
print("2. The gradients by hand and by minigrad, largest difference\n")
for detach_norm, name in ((False, "exact, eq. 6"), (True, "||V|| held, eq. 11")):
    layer = moved(detach_norm)
    engine = mg.grad(loss_of(layer), [layer.A, layer.B, layer.m])
    paper = on_paper(layer, detach_norm)
    pairs = zip("ABm", engine, (paper.A, paper.B, paper.m), strict=True)
    print(f"   {name:19}", "  ".join(f"{n}: {abs(e.data - p).max():.0e}" for n, e, p in pairs))

# %% [markdown]
# How do the two differ?  If a row of V gets longer, nothing changes, for it is divided by its length.
# So the exact gradient of V is at right angles to V.  The other one is not.

# %%
V = W0 + layer.scaling * layer.B.data @ layer.A.data
norms = np.linalg.norm(V, axis=1)
exact, held = on_paper(layer, False), on_paper(layer, True)
print("\n   |cos| of V and its gradient, row by row, largest:", end="")
for name, v in (("exact", exact.V), ("held", held.V)):
    cosines = np.sum(v * V, axis=1) / np.linalg.norm(v, axis=1) / norms
    print(f"  {name} {abs(cosines).max():.2g}", end="")
print()

# %% [markdown]
# What is dropped lies along the row, and its factor is the gradient of m.

# %%
dropped = (layer.m.data / norms * exact.m / norms)[:, None] * V
error = abs(held.V - exact.V - dropped).max()
print("   held less exact is m/||V|| * (gradient of m) * V/||V||, which is along")
print(f"   the row (up to {error:.0e})\n")

# %% [markdown]
# ## 3. Which gradient do differences confirm?
#
# `gradcheck` moves B and looks at the loss.  The loss knows that ‖V‖ moves with B, so differences
# confirm the exact gradient.


# %%
def verdict(loss, B):
    """Return what gradcheck says; it moves B itself, wherever the loss finds it."""
    try:
        mg.gradcheck(loss, B)
    except mg.GradcheckError as error:
        return "refused\n      " + str(error).replace(": analytic", ":\n      analytic")
    return "passed"


exact, held = moved(detach_norm=False), moved(detach_norm=True)
print("3. Against finite differences of the loss\n")
print(f"   exact gradient:                     {verdict(lambda _: loss_of(exact), exact.B)}")
print(f"   ||V|| held:                         {verdict(lambda _: loss_of(held), held.B)}")

# %% [markdown]
# Hold ‖V‖ still in the loss as well: c = m/‖V‖ keeps its value, and only V in y = c ∘ (x Vᵀ) + b moves.
# The gradient of that is the other one.

# %%
c, s = held.m.data / held.norm().data, held.scaling


def loss_with_norm_kept(B):
    """L, as if ‖V‖ did not depend on B."""
    y = c * mg.linear(x, W0 + s * B @ held.A.data) + b
    return 0.5 * mg.mse_loss(y, target, reduction="sum")


print(f"   ||V|| held in the differences, too: {verdict(loss_with_norm_kept, held.B)}")
same = mg.grad(loss_with_norm_kept(held.B), held.B).data - mg.grad(loss_of(held), held.B).data
print(f"   (the last two are one gradient, up to {abs(same).max():.0e})")

# %% [markdown]
# When is it safe?  The dropped term has the gradient of m as a factor.  So set m to its optimum, which
# is a least-squares fit for each output: there the two gradients are one.

# %%
unscaled = x @ (held.merge().weight.data / held.m.data[:, None]).T
held.m.data = np.sum(unscaled * (target - b), axis=0) / np.sum(unscaled**2, axis=0)
gap = abs(on_paper(held, True).B - on_paper(held, False).B).max()
print("   Where m is optimal its gradient is 0, and nothing is dropped:")
print(f"   held and exact agree up to {gap:.0e}")
