# %% [markdown]
"""
# Lesson 5: LoRA: a frozen weight and a trained correction of low rank.

LoRA adapts a trained layer to a new task.  It freezes the weight W0 and adds a small trained correction:
y = x W0ᵀ + b + s (x Aᵀ) Bᵀ (Hu et al., arXiv:2106.09685, eq. 3), where s = α/r and α (`lora_alpha`) is
chosen.

What you will see: LoRA trained twice on a small problem, in plain NumPy with the gradients written out
and by minigrad, with equal results; the rank of the change it made, beside the best change of that rank;
how many numbers it trains; and a merged layer that needs no adapter any more.

Why it matters: W0 has out × in numbers, A and B together only r (in + out).  So there is little
to train and to store, and the old layer is still there when they are taken away.

Read next: loradora/adapters.py, up to the end of LoRALinear; loradora/low_rank.py, what its layers share;
loradora/init.py, other starts; then 06_dora.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, because the imports take a moment

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
# A starts at random and B at 0.  So s B A is 0, and the layer still equals the frozen one.  The gradient
# Ā has the factor B, so it starts as 0, too.  (With both at 0, neither would ever get a gradient.)

# %%
layer = ld.LoRALinear(base, r=4, lora_alpha=4.0, rng=np.random.default_rng(0))
gradients = mg.grad(mg.mse_loss(layer(x), target), [layer.A, layer.B])
norm_A, norm_B = (np.linalg.norm(g.data) for g in gradients)

same = np.array_equal(layer(x).data, base(x).data)
print("1. At the start B = 0\n")
print(f"   the layer equals the frozen one, bit for bit: {same}")
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
#
# The module `by_hand` derives both.

# %%
RATE, STEPS = 0.01, 1500


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
# Both begin with the same A and B.  After all the steps they are still together.

# %%
layer = ld.LoRALinear(base, r=4, lora_alpha=4.0, rng=rng)
A, B = train_by_hand(layer.A.data.copy(), layer.B.data.copy(), layer.scaling)
train_by_minigrad(layer)
error = max(abs(layer.A.data - A).max(), abs(layer.B.data - B).max())
print("2. By hand and by minigrad, rank 4\n")
print(f"   largest difference of A and B after {STEPS} steps: {error:.0e}")

# %% [markdown]
# `merge` adds s B A to W0.  It returns a plain layer, as large and as fast as the one before LoRA.

# %%
gap = abs(layer.merge()(x).data - layer(x).data).max()
print(f"   largest difference of live and merged layer: {gap:.0e}\n")

# %% [markdown]
# ## 3. The rank of the change
#
# This problem is linear, so we can compute the change of W0 that solves it.  Every matrix is a sum of
# products of a column and a row, where the columns are at right angles to each other, and so are the
# rows.  Its singular values σ say how strong these products are.  The rank is the number that are not 0,
# here two.  The effective rank counts a weaker one for less: 1.93 means two, one of them weaker.  (It is
# $e^H$, where H is the entropy of the shares σᵢ/Σσ: see `effective_rank` in loradora/analysis.py.)
#
# We can also compute the best change of any smaller rank.  Let F be what the needed change adds to the
# outputs, F = x ΔWᵀ.  Keep the r largest singular values of F and drop the others.  No matrix of rank r
# is closer to F (Eckart and Young).  What is kept is F P, where P projects the outputs on r directions.
# It is again x times a change of rank r, because F P = x (P ΔW)ᵀ.  Statisticians call this reduced-rank
# regression.

# %%
missing = target - x @ W0.T - b
needed = np.linalg.lstsq(x, missing)[0].T
directions = np.linalg.svd(x @ needed.T)[2]  # in the space of the outputs, the strongest first


def best_of_rank(r):
    """Return the change of rank r with the smallest loss."""
    kept = directions[:r]
    return kept.T @ kept @ needed


def loss_with(dW):
    """L of the layer with the weight W0 + ΔW."""
    return np.sum((x @ dW.T - missing) ** 2) / (2 * N)


def show(name, dW):
    """Print a line about a change of the weight."""
    sigma = " ".join(f"{value:7.4f}" for value in analysis.spectrum(dW)[:4])
    print(f"   {name:14} {loss_with(dW):8.4f}   {sigma} ...   {analysis.effective_rank(dW):.2f}")


# %% [markdown]
# Now train with one, two and four.  Before we say anything about the results, we make sure that the
# training has ended: the gradient is 0 but for rounding, and the loss is the best for this rank.
#
# That is worth checking.  With a rate of 0.02 instead of 0.01, r = 2 and r = 4 get here as well, but
# r = 1 jumps back and forth between two points forever, with a loss of 19.3 and 19.4.

# %%
print("3. The rank of the change s B A\n")
print(f"   {'':14}     loss   singular values                      effective rank")
show("needed", needed)
for r in (1, 2, 4):
    layer = ld.LoRALinear(base, r=r, lora_alpha=4.0, rng=np.random.default_rng(r))
    train_by_minigrad(layer)
    trained, best = layer.weight.data - W0, best_of_rank(r)
    show(f"r = {r}, trained", trained)
    show("       best", best)

    slopes = mg.grad(loss_of(layer), [layer.A, layer.B])
    assert max(np.linalg.norm(g.data) for g in slopes) < 1e-9
    assert abs(loss_with(trained) - loss_with(best)) < 1e-9

# %% [markdown]
# With two directions or more the task is solved.  With one, LoRA finds the best change that there is.
# Its singular value is not the larger of the two needed, because the outputs x ΔWᵀ are fitted and not
# ΔW itself: directions in which the inputs vary more count for more.

# %%
print("\n   Every run has converged to the best loss of its rank.  With r = 1 the")
print("   singular value is close to the larger of the two, but not equal: it fits the")
print("   outputs, for these x, and not the weight.  r = 4 leaves two of its four")
print("   directions unused.  The effective rank counts directions by their size.\n")

# %% [markdown]
# ## 4. What is trained
#
# The lessons to come adapt this net.  In each of its layers, LoRA trains r (in + out) numbers.

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
# W0 was never touched.  (The copy is compared with the weight that the base has now, because an optimizer
# gives a parameter a new array.)

# %%
print(f"\nThe base has not changed: {np.array_equal(base.weight.data, before)}")
