# %% [markdown]
"""
# Lesson 6: DoRA: the length of each row of the weight, and its direction, trained apart.

LoRA trains the correction of a weight as a whole.  DoRA takes each row of the changed weight apart: its
length becomes a number of its own, m, and LoRA's B A only turns the row (arXiv:2402.09353, eq. 2 and 5).

What you will see: a weight taken apart into magnitude and direction; its gradients by hand, equal to
minigrad's (eq. 6, 7, 11); the term that the paper drops, why finite differences then "fail", and how
often a step against the gradient without that term would raise the loss.

Why it matters: the "gradient" that DoRA follows by default is, on purpose, not the derivative of the
loss.  If you know which part is missing, you know when that is safe.

Read next: loradora/by_hand.py, the derivation; loradora/norms.py, the length of a row without its V; and
the rest of the file begun in lesson 5; then 07_magnitude_and_direction.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, because the imports take a moment

import numpy as np

import loradora as ld
import minigrad as mg
from loradora import analysis, by_hand

# %% [markdown]
# ## A layer in the middle of its training
#
# At the start B = 0, and the gradient of A is 0, too.  So we give A, B and m the kind of values that
# they have after some training.

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
# Every row of a weight is a length times a direction: $W = m \, V / \lVert V \rVert$.  DoRA takes the
# direction from V = W0 + s B A, and trains m as well.

# %%
m, direction = analysis.magnitude_and_direction(W0)
apart = abs(m[:, None] * direction - W0).max()
print("1. W = m * V/||V||: a length for each row, and a direction\n")
print(f"   length times direction gives W0 back, up to  {apart:.0e}")

# %% [markdown]
# m starts as the lengths of the rows of W0.  So DoRA, too, starts equal to the layer that it adapts.
# Later B A only turns the rows, and m alone says how long they are.

# %%
start = ld.DoRALinear(base, r=4, lora_alpha=4, rng=rng)
same = np.array_equal(start(x).data, base(x).data)
print(f"   at the start equal to the base, bit for bit:  {same}")

layer = moved(detach_norm=True)
lengths = np.linalg.norm(layer.merge().weight.data, axis=1)
apart = abs(lengths - layer.m.data).max()
print(f"   later, row lengths of the merged W less m:   {apart:.0e}\n")

# %% [markdown]
# ## 2. Two gradients
#
# ‖V‖ depends on A and B, and the exact derivative says so.  The paper (sec. 4.3) treats it as a plain
# number instead, which saves memory where V is formed: `detach_norm=True`, the default.  `by_hand` has
# the formulas of both in NumPy.  They start from G = ∂L/∂y = y − t.


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
# How do the two differ?  If a row of V gets longer, nothing changes, because it is divided by its length.
# So the exact gradient of V is at right angles to V: their cosine is 0.  The other one is not.

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
# The exact gradient subtracts a part along the row: the row's direction, times m/‖V‖, times the gradient
# of m.  If ‖V‖ is held, this term is dropped, and the part stays.

# %%
stays = (layer.m.data / norms * exact.m / norms)[:, None] * V
error = abs(held.V - exact.V - stays).max()
print("   held less exact is m/||V|| * (gradient of m) * V/||V||, which is along")
print(f"   the row (up to {error:.0e})\n")

# %% [markdown]
# ## 3. Which gradient do differences confirm?
#
# `gradcheck` moves B and looks at the loss.  The loss knows that ‖V‖ moves with B, so differences
# confirm the exact gradient.


# %%
def verdict(loss, B):
    """Return what gradcheck says; it writes to B itself, which the layer has, too."""
    try:
        mg.gradcheck(loss, B)
    except mg.GradcheckError as error:
        return "refused\n      " + str(error).replace(": analytic", ":\n      analytic")
    return "passed"


print("3. Against finite differences of the loss\n")
for name, detach_norm in (("exact gradient:", False), ("||V|| held:", True)):
    layer = moved(detach_norm)
    print(f"   {name:35} {verdict(lambda _, at=layer: loss_of(at), layer.B)}")

# %% [markdown]
# Now hold ‖V‖ in the loss as well: c = m/‖V‖ keeps its value, and only V in y = c ∘ (x Vᵀ) + b moves.
# The derivative of this loss is the held gradient.

# %%
c, s = layer.m.data / layer.norm().data, layer.scaling


def loss_with_norm_kept(B):
    """L, as if ‖V‖ did not depend on B."""
    y = c * mg.linear(x, W0 + s * B @ layer.A.data) + b
    return 0.5 * mg.mse_loss(y, target, reduction="sum")


print(f"   ||V|| held in the differences, too: {verdict(loss_with_norm_kept, layer.B)}")
losses = loss_with_norm_kept(layer.B), loss_of(layer)
kept, held = (mg.grad(loss, layer.B).data for loss in losses)
print(f"   (the last two are one gradient, up to {abs(kept - held).max():.0e})")

# %% [markdown]
# When is it safe to hold ‖V‖?  The dropped term has the gradient of m as a factor.  So we set m to its
# optimum, a least-squares fit for each output.  There the two gradients are equal.

# %%
unscaled = x @ (layer.merge().weight.data / layer.m.data[:, None]).T
layer.m.data = np.sum(unscaled * (target - b), axis=0) / np.sum(unscaled**2, axis=0)
gap = abs(on_paper(layer, True).B - on_paper(layer, False).B).max()
print("   Where m is optimal its gradient is 0, and nothing is dropped:")
print(f"   held and exact agree up to {gap:.0e}\n")

# %% [markdown]
# ## 4. How far apart can they be?
#
# A small step against the held gradient lowers the loss if its inner product with the exact gradient is
# positive.  If it is negative, such a step raises the loss.  Let us count how often that happens.
#
# In each random problem every entry of W0, A, B, x and G is drawn from the standard normal distribution.
# G stands for the gradient of some loss.  m is the length of each row of W0, times a number drawn between
# 0.5 and 2, and s is 1.


# %%
def cosine(u, v):
    """Return the cosine of the angle between two arrays."""
    return np.sum(u * v) / (np.linalg.norm(u) * np.linalg.norm(v))


def random_cosines(out, width, r, rows, rng):
    """Return the cosines of held and exact gradients in a random problem, by their names."""
    shapes = (rows, out), (rows, width), (out, width), (r, width), (out, r)
    G, x, W0, A, B = (rng.normal(size=shape) for shape in shapes)
    m = np.linalg.norm(W0, axis=1) * rng.uniform(0.5, 2, out)
    exact, held = (
        by_hand.dora_gradients(G, x, W0, A, B, m, 1, detach_norm=d) for d in (False, True)
    )
    ours = {name: cosine(getattr(held, name), getattr(exact, name)) for name in "VBA"}
    exact, held = (np.concatenate([g.A.ravel(), g.B.ravel(), g.m]) for g in (exact, held))
    return {**ours, "A, B and m": cosine(held, exact)}


# %% [markdown]
# First in a tiny layer, then in one of the size that we had above.

# %%
PROBLEMS = 2000
print(f"4. {PROBLEMS} random problems: cosine between the held and the exact gradient\n")
print("   layer    r   gradient of   raised   lowest   median   highest")
raised = {}
for out, width, r, rows in ((3, 4, 2, 5), (12, 20, 4, 50)):
    rng = np.random.default_rng(0)
    found = [random_cosines(out, width, r, rows, rng) for _ in range(PROBLEMS)]
    for name in found[0]:
        c = np.array([problem[name] for problem in found])
        raised[out, name] = np.sum(c < 0)
        print(f"   {out:2} x {width:<2}  {r}   {name:11} {raised[out, name]:8}", end="")
        print(f"{c.min():9.2f}{np.median(c):9.2f}{c.max():10.2f}")

# %% [markdown]
# For V it never happens.  In each row the exact v̄ is the held c q without its part along v̂, so
#
# $\langle cq, \bar v\rangle = c^2(\lVert q\rVert^2 - \langle q, \hat v\rangle^2) \ge 0$.
#
# B has no such guarantee.  B̄ = s V̄ Aᵀ, and Aᵀ mixes the directions along the row and across it.  So
# even the opposite direction is possible; `by_hand` ends with the smallest case.  The same is true of
# Ā = s Bᵀ V̄.  (A random problem is no state of training, so these counts do not say how often it happens
# there.)

# %%
assert raised[3, "V"] == raised[12, "V"] == 0 < raised[3, "B"]
print("\n   A small step against the held gradient of V cannot raise the loss; against")
print("   those of B and A it can.  In the tiny layer it does so now and then, and for")
print("   all trained numbers together more rarely.")
print(f"   In the larger layer, B's did so {raised[12, 'B']} times of {PROBLEMS}.")
