"""Lesson 5: LoRA: a frozen weight and a trained correction of low rank.

What you will see: LoRA trained twice on a small problem, in plain NumPy with the gradients written out
and by minigrad, and the results are equal; the rank of the change it made; the numbers it trains; and a
merged layer that needs no adapter any more.

Why it matters: y = x W0ᵀ + b + s (x Aᵀ) Bᵀ is the whole idea of LoRA (Hu et al., arXiv:2106.09685,
eq. 3).  W0 has out × in numbers, A and B together only r (in + out).

Read next: loradora/adapters.py up to LoRA, loradora/by_hand.py (the derivation); then 06_dora.py.
"""

import numpy as np

import loradora as ld
import minigrad as mg
from loradora import analysis

N, IN, OUT, ALPHA, RATE, STEPS = 200, 20, 12, 4.0, 0.02, 1500
rng = np.random.default_rng(0)

# A layer W0, and a task that another weight solves, which differs from W0 by a matrix of rank 2.
base = ld.Linear(IN, OUT, rng=rng, dtype=np.float64)
W0, b = base.weight.data, base.bias.data
x = rng.normal(size=(N, IN))
target = x @ (W0 + 0.5 * rng.normal(size=(OUT, 2)) @ rng.normal(size=(2, IN))).T + b


def start():
    """At the start B = 0: nothing is changed, and A has no gradient yet."""
    layer = ld.LoRALinear(base, r=4, lora_alpha=ALPHA, rng=np.random.default_rng(0))
    gradients = mg.grad(mg.mse_loss(layer(x), target), [layer.A, layer.B])
    same = np.array_equal(layer(x).data, base(x).data)
    print("1. At the start B = 0\n")
    print(f"   the layer equals the frozen one, bit by bit: {same}")
    norm_A, norm_B = (np.linalg.norm(g.data) for g in gradients)
    print(f"   the gradient of A has the norm {norm_A:.4f}, that of B {norm_B:.4f}: ", end="")
    print("the first step moves B alone\n")


def train_by_hand(A, B, s):
    """Gradient descent on L = Σ(y − target)²/2N, with the gradients of LoRA written out."""
    for _ in range(STEPS):
        h = x @ A.T
        y = x @ W0.T + b + s * h @ B.T
        G = (y - target) / N  #                    ȳ
        h_bar = s * G @ B
        A, B = A - RATE * h_bar.T @ x, B - RATE * s * G.T @ h  # Ā = h̄ᵀx,  B̄ = s ȳᵀh
    return A, B


def train_by_minigrad(layer):
    """Do the same, but leave the gradients to the engine."""
    optimizer = ld.SGD(layer.trainable_parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = mg.mse_loss(layer(x), target, reduction="sum") / (2 * N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def twice():
    """Train both ways from one start and compare; then merge."""
    print("2. By hand and by minigrad, rank 4\n")
    layer = ld.LoRALinear(base, r=4, lora_alpha=ALPHA, rng=rng)
    A, B = train_by_hand(layer.A.data.copy(), layer.B.data.copy(), layer.scaling)
    train_by_minigrad(layer)
    error = max(abs(layer.A.data - A).max(), abs(layer.B.data - B).max())
    print(f"   largest difference of A and B after {STEPS} steps: {error:.0e}")
    gap = abs(layer.merge()(x).data - layer(x).data).max()  # merge: a plain Linear
    print(f"   largest difference of live and merged layer: {gap:.0e}\n")


def ranks():
    """Train with several ranks: what cannot be done with fewer directions than the task needs."""
    print("3. The rank of the change s B A\n")
    needed = np.linalg.lstsq(x, target - x @ W0.T - b)[0].T  # the ΔW that solves the task
    show("needed", needed, np.sum((x @ (W0 + needed).T + b - target) ** 2) / (2 * N))
    for r in (1, 2, 4):
        layer = ld.LoRALinear(base, r=r, lora_alpha=ALPHA, rng=np.random.default_rng(r))
        train_by_minigrad(layer)
        loss = mg.mse_loss(layer(x), target, reduction="sum").item() / (2 * N)
        show(f"r = {r}", layer.weight.data - W0, loss)
    print(
        "\n   r = 1 does what one direction can for these x, which is not to copy the larger of the two;"
    )
    print("   r = 4 leaves two of its four unused.  The effective rank counts by size.\n")


def show(name, dW, loss):
    """Print a line about a change of the weight."""
    sigma = " ".join(f"{value:7.4f}" for value in analysis.spectrum(dW)[:4])
    rank = analysis.effective_rank(dW)
    print(f"   {name:7} loss {loss:7.1e}   singular values {sigma} ...   effective rank {rank:.2f}")


def counts():
    """Count what is trained in the net of the next lessons."""
    print("4. What is trained in an MLP 784-256-128-10\n")
    net = ld.MLP([784, 256, 128, 10])
    full = sum(p.size for p in net.parameters())
    print(f"   full     {full:9,}   100.00 %")
    for r in (1, 4, 16):
        formula = sum(
            analysis.adapter_size(o, i, r) for o, i in [(256, 784), (128, 256), (10, 128)]
        )
        config = ld.LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear")
        assert ld.get_peft_model(net, config).get_nb_trainable_parameters()[0] == formula
        print(f"   r = {r:<4} {formula:9,}   {100 * formula / full:6.2f} %   sum of r (in + out)")
    print("\n   (PEFT and finetune_digits.py count the adapter with the rest: 2.59 % for r = 4.)")


if __name__ == "__main__":
    before = W0.copy()
    start()
    twice()
    ranks()
    counts()
    print(f"\nThe base has not changed: {np.array_equal(W0, before)}")
