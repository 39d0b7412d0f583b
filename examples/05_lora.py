# %% [markdown]
"""
# Lesson 5: LoRA: a frozen weight and a trained correction of low rank.

What you will see: LoRA trained twice on a small problem, in plain NumPy with the gradients written out
and by minigrad, and the results are equal; the rank of the change it made; the numbers it trains; and a
merged layer that needs no adapter any more.

Why it matters: y = x W0ᵀ + b + s (x Aᵀ) Bᵀ is the whole idea of LoRA (Hu et al., arXiv:2106.09685,
eq. 3).  W0 has out × in numbers, A and B together only r (in + out).

Read next: loradora/adapters.py up to LoRA, loradora/by_hand.py (the derivation); then 06_dora.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, for the imports take a moment

import numpy as np

import loradora as ld
import minigrad as mg
from loradora import analysis

# %% [markdown]
# ## The problem
#
# A layer W0, and a task that another weight solves.  The two differ by a matrix of rank 2.

# %%
N, IN, OUT = 200, 20, 12
rng = np.random.default_rng(0)
base = ld.Linear(IN, OUT, rng=rng, dtype=np.float64)
W0, b = base.weight.data, base.bias.data
before = W0.copy()

x = rng.normal(size=(N, IN))
target = x @ (W0 + 0.5 * rng.normal(size=(OUT, 2)) @ rng.normal(size=(2, IN))).T + b

# %% [markdown]
# ## 1. The start
#
# A starts at random and B at 0, so s B A is 0, and the layer is the frozen one.  Ā has the factor B: A
# has no gradient yet.  (Were both 0, neither would ever have one.)

# %%
layer = ld.LoRALinear(base, r=4, lora_alpha=4.0, rng=np.random.default_rng(0))
gradients = mg.grad(mg.mse_loss(layer(x), target), [layer.A, layer.B])
norm_A, norm_B = (np.linalg.norm(g.data) for g in gradients)

same = np.array_equal(layer(x).data, base(x).data)
print("1. At the start B = 0\n")
print(f"   the layer equals the frozen one, bit by bit: {same}")
print(f"   the gradient of A has the norm {norm_A:.4f}, that of B {norm_B:.4f}")
print("   so the first step moves B alone\n")

# %% [markdown]
# ## 2. By hand and by minigrad
#
# The loss is $L = \sum (y - t)^2 / 2N$, where t is the target, so ȳ is (y − t)/N.  With h = x Aᵀ the
# layer is y = x W0ᵀ + b + s h Bᵀ, and the chain rule gives
#
# - B̄ = s ȳᵀ h,
# - h̄ = s ȳ B, and from it Ā = h̄ᵀ x.

# %%
RATE, STEPS = 0.02, 1500


def train_by_hand(A, B, s):
    """Return A and B after gradient descent, with the gradients written out."""
    for _ in range(STEPS):
        h = x @ A.T
        y = x @ W0.T + b + s * h @ B.T
        y_bar = (y - target) / N
        h_bar = s * y_bar @ B
        A, B = A - RATE * h_bar.T @ x, B - RATE * s * y_bar.T @ h
    return A, B


# %% [markdown]
# minigrad needs the formula of the loss, and finds the gradients itself.


# %%
def loss_of(layer):
    """L = Σ(y − t)²/2N."""
    return mg.mse_loss(layer(x), target, reduction="sum") / (2 * N)


def train_by_minigrad(layer):
    """Move A and B of the layer by gradient descent, with the gradients of the engine."""
    optimizer = ld.SGD(layer.trainable_parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(layer).backward()
        optimizer.step()


# %% [markdown]
# Both from one start: they stay together, step by step.

# %%
layer = ld.LoRALinear(base, r=4, lora_alpha=4.0, rng=rng)
A, B = train_by_hand(layer.A.data.copy(), layer.B.data.copy(), layer.scaling)
train_by_minigrad(layer)
error = max(abs(layer.A.data - A).max(), abs(layer.B.data - B).max())
print("2. By hand and by minigrad, rank 4\n")
print(f"   largest difference of A and B after {STEPS} steps: {error:.0e}")

# %% [markdown]
# `merge` adds s B A to W0, once and for all.  What it returns is a plain layer, as large and as fast as
# before.

# %%
gap = abs(layer.merge()(x).data - layer(x).data).max()
print(f"   largest difference of live and merged layer: {gap:.0e}\n")

# %% [markdown]
# ## 3. The rank of the change
#
# The change that solves the task can be computed, because the problem is linear.  Its singular values
# tell how many directions it needs: two.


# %%
def show(name, dW, loss):
    """Print a line about a change of the weight."""
    sigma = " ".join(f"{value:7.4f}" for value in analysis.spectrum(dW)[:4])
    print(f"   {name:7} loss {loss:7.1e}  {sigma} ...   {analysis.effective_rank(dW):.2f}")


print("3. The rank of the change s B A\n")
print("                           singular values                       effective rank")
needed = np.linalg.lstsq(x, target - x @ W0.T - b)[0].T
show("needed", needed, np.sum((x @ (W0 + needed).T + b - target) ** 2) / (2 * N))

# %% [markdown]
# Now train with one, two and four.

# %%
for r in (1, 2, 4):
    layer = ld.LoRALinear(base, r=r, lora_alpha=4.0, rng=np.random.default_rng(r))
    train_by_minigrad(layer)
    show(f"r = {r}", layer.weight.data - W0, loss_of(layer).item())
print("\n   r = 1 does what one direction can for these x, which is not to copy the")
print("   larger of the two; r = 4 leaves two of its four unused.  The effective rank")
print("   counts by size.\n")

# %% [markdown]
# ## 4. What is trained
#
# In the net of the lessons to come, LoRA trains r (in + out) numbers for each layer.

# %%
net = ld.MLP([784, 256, 128, 10])
full = sum(p.size for p in net.parameters())
print("4. What is trained in an MLP 784-256-128-10\n")
print(f"   full     {full:9,}   100.00 %")
for r in (1, 4, 16):
    count = sum(analysis.adapter_size(o, i, r) for o, i in [(256, 784), (128, 256), (10, 128)])
    config = ld.LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear")
    assert ld.get_peft_model(net, config).get_nb_trainable_parameters()[0] == count
    print(f"   r = {r:<4} {count:9,}   {100 * count / full:6.2f} %   sum of r (in + out)")
print("\n   (PEFT and finetune_digits.py count the adapter with the rest: 2.59 % for")
print("   r = 4.)")

# %% [markdown]
# Through all of this, W0 has kept every bit.

# %%
print(f"\nThe base has not changed: {np.array_equal(W0, before)}")
