"""Lesson 6: DoRA: the length of each row of the weight, and its direction, trained apart.

What you will see: a weight taken apart into magnitude and direction (arXiv:2402.09353, eq. 2 and 5); its
gradients by hand, equal to minigrad's (eq. 6, 7, 11); the term that the paper drops, and why finite
differences then "fail".

Why it matters: "the gradient" that DoRA descends by default is no derivative of the loss, on purpose.
Knowing exactly which part is missing is knowing when it is safe.

Read next: loradora/adapters.py, loradora/by_hand.py (the derivation); then 07_magnitude_and_direction.py.
"""

import numpy as np

import loradora as ld
import minigrad as mg
from loradora import analysis, by_hand

rng = np.random.default_rng(0)
base = ld.Linear(20, 12, rng=rng, dtype=np.float64)
W0, b = base.weight.data, base.bias.data
x, target = rng.normal(size=(50, 20)), rng.normal(size=(50, 12))


def moved(detach_norm):
    """Return a DoRA layer somewhere in the middle of its training."""
    options = {"r": 4, "lora_alpha": 4, "rng": np.random.default_rng(1)}
    layer = ld.DoRALinear(base, detach_norm=detach_norm, **options)
    middle = np.random.default_rng(2)
    layer.B.data = 0.2 * middle.normal(size=layer.B.shape)
    layer.m.data = layer.m.data * middle.uniform(0.5, 2, layer.m.shape)
    return layer


def loss_of(layer):
    """L = Σ(y − target)²/2, so that G = ∂L/∂y is y − target."""
    return 0.5 * mg.mse_loss(layer(x), target, reduction="sum")


def on_paper(layer, detach_norm):
    """Return the gradients by the formulas."""
    G = layer(x).data - target
    A, B, m, s = layer.A.data, layer.B.data, layer.m.data, layer.scaling
    return by_hand.dora_gradients(G, x, W0, A, B, m, s, detach_norm=detach_norm)


def taken_apart():
    """Show eq. 2 and 5."""
    m, V = analysis.magnitude_and_direction(W0)
    start = ld.DoRALinear(base, r=4, lora_alpha=4, rng=rng)
    layer = moved(True)
    lengths = np.linalg.norm(layer.merge().weight.data, axis=1)
    same = np.array_equal(start(x).data, base(x).data)
    print("1. W = m * V/||V||: a length for each row, and a direction\n")
    print(
        f"   m * V/||V|| gives W0 back, up to             {np.abs(m[:, None] * V - W0).max():.0e}"
    )
    print(f"   at the start equal to the base, bit by bit:  {same}")
    apart = abs(lengths - layer.m.data).max()
    print(f"   later, row lengths of the merged W less m:   {apart:.0e}\n")


def gradients():
    """Show eq. 6, 7 and 11: by hand, by the engine, and what is dropped."""
    print("2. The gradients by hand and by minigrad, largest difference\n")
    for detach_norm, name in ((False, "exact, eq. 6"), (True, "||V|| held, eq. 11")):
        layer = moved(detach_norm)
        engine = mg.grad(loss_of(layer), [layer.A, layer.B, layer.m])
        paper = on_paper(layer, detach_norm)
        pairs = zip("ABm", engine, (paper.A, paper.B, paper.m), strict=True)
        print(f"   {name:19}", "  ".join(f"{n}: {abs(e.data - p).max():.0e}" for n, e, p in pairs))
    V = W0 + layer.scaling * layer.B.data @ layer.A.data
    norms = np.linalg.norm(V, axis=1)
    exact, held = on_paper(layer, False), on_paper(layer, True)
    print("\n   |cos| of V and its gradient, row by row, largest:  ", end="")
    for name, v in (("exact", exact.V), ("held", held.V)):
        cosines = np.sum(v * V, axis=1) / np.linalg.norm(v, axis=1) / norms
        print(f"{name} {abs(cosines).max():.2g}", end="   ")
    dropped = (layer.m.data / norms * exact.m / norms)[:, None] * V
    error = abs(held.V - exact.V - dropped).max()
    print(
        "\n   held less exact is m/||V|| * (gradient of m) * V/||V||, which is along the row "
        f"(up to {error:.0e})\n"
    )


def differences():
    """Show whom finite differences believe, and what they have to hold still to believe the other."""
    print("3. Against finite differences of the loss\n")
    exact, held = moved(False), moved(True)
    c, s = held.m.data / held.norm().data, held.scaling

    def loss_with_norm_kept(B):
        y = c * mg.linear(x, W0 + s * B @ held.A.data) + b
        return 0.5 * mg.mse_loss(y, target, reduction="sum")

    print(f"   exact gradient:                     {verdict(lambda _: loss_of(exact), exact.B)}")
    print(f"   ||V|| held:                         {verdict(lambda _: loss_of(held), held.B)}")
    print(f"   ||V|| held in the differences, too: {verdict(loss_with_norm_kept, held.B)}")
    same = mg.grad(loss_with_norm_kept(held.B), held.B).data - mg.grad(loss_of(held), held.B).data
    print(f"   (the last two are one gradient, up to {abs(same).max():.0e})")
    unscaled = x @ (held.merge().weight.data / held.m.data[:, None]).T
    held.m.data = np.sum(unscaled * (target - b), axis=0) / np.sum(unscaled**2, axis=0)
    gap = abs(on_paper(held, True).B - on_paper(held, False).B).max()
    print("   Where m is optimal its gradient is 0, and nothing is dropped: ", end="")
    print(f"held and exact agree up to {gap:.0e}")


def verdict(loss, B):
    """Return what gradcheck says; it moves B itself, wherever the loss finds it."""
    try:
        mg.gradcheck(loss, B)
    except mg.GradcheckError as error:
        return "refused\n      " + str(error)
    return "passed"


if __name__ == "__main__":
    taken_apart()
    gradients()
    differences()
