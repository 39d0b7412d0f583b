"""The types that type checkers infer: each is asserted for them, and true when it is run."""

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import loradora as ld
import minigrad as mg
from loradora.train import Evaluation, Step, Training

Floats = npt.NDArray[np.float64]

t = mg.Tensor(np.ones((2, 2)), requires_grad=True)
floats = np.ones((2, 2))
singles = np.ones((2, 2), np.float32)
whole = np.ones((2, 2), np.int64)
pair = [1.0, 2.0]
number = 1.5

# an array and a Tensor make a Tensor, whichever stands on the left
assert_type(floats + t, mg.Tensor)
assert_type(floats - t, mg.Tensor)
assert_type(floats * t, mg.Tensor)
assert_type(floats / t, mg.Tensor)
assert_type(floats**t, mg.Tensor)
assert_type(floats @ t, mg.Tensor)
assert_type(t + floats, mg.Tensor)
assert_type(t - floats, mg.Tensor)
assert_type(t * floats, mg.Tensor)
assert_type(t / floats, mg.Tensor)
assert_type(t**floats, mg.Tensor)
assert_type(t @ floats, mg.Tensor)
assert_type(singles + t, mg.Tensor)
assert_type(whole * t, mg.Tensor)


# an operation of one's own, whatever its arguments are
@mg.op(lambda g, y, a, mask, c: g, None, lambda g, y, a, mask, c: g)
def pick(a: mg.ops.Array, mask: mg.ops.Array, c: mg.ops.Array) -> mg.ops.Array:
    """Return a where mask holds, else c."""
    return np.where(mask, a, c)


@mg.op(each=lambda i: lambda g, y, *arrays: g)
def total(*arrays: mg.ops.Array) -> mg.ops.Array:
    """Return the sum of the arrays."""
    return np.sum(arrays, axis=0)


assert_type(pick(t, floats > 0, t), mg.Tensor)
assert_type(total(t, t), mg.Tensor)

# so do numbers, NumPy's scalars and lists
assert_type(2 * t, mg.Tensor)
assert_type(2.0 - t, mg.Tensor)
assert_type(2.0**t, mg.Tensor)
assert_type(t / 2, mg.Tensor)
assert_type(np.float64(2) + t, mg.Tensor)
assert_type(np.float64(2) / t, mg.Tensor)
assert_type(np.float32(2) * t, mg.Tensor)
assert_type(np.int64(2) ** t, mg.Tensor)
assert_type(t - np.float64(2), mg.Tensor)
assert_type(t + pair, mg.Tensor)
assert_type(pair + t, mg.Tensor)
assert_type(t @ pair, mg.Tensor)
assert_type(pair @ t, mg.Tensor)
assert_type(-abs(+t), mg.Tensor)

# comparisons give arrays of bools
assert_type(t < floats, npt.NDArray[np.bool_])
assert_type(t <= t, npt.NDArray[np.bool_])
assert_type(t > 0, npt.NDArray[np.bool_])
assert_type(t >= pair, npt.NDArray[np.bool_])
assert_type(number < t, npt.NDArray[np.bool_])
assert_type(t == floats, Any)

# what a Tensor has
assert_type(t.grad, npt.NDArray[Any] | None)
assert_type(t.data, npt.NDArray[Any])
assert_type(t.shape, tuple[int, ...])
assert_type(t[0], mg.Tensor)
assert_type(t[:, None], mg.Tensor)
assert_type(t.T, mg.Tensor)
assert_type(t.sum(), mg.Tensor)
assert_type(t.sum(axis=1, keepdims=True), mg.Tensor)
assert_type(t.max(axis=[0, 1]), mg.Tensor)
assert_type(t.reshape(4), mg.Tensor)
assert_type(t.reshape([4, 1]), mg.Tensor)
assert_type(t.transpose(1, 0), mg.Tensor)
assert_type(t.clip(np.zeros(2), None), mg.Tensor)
assert_type(t.sum().item(), float)
assert_type(list(t), list[mg.Tensor])
assert_type(len({t: 1}), int)

# NumPy's functions that only ask
assert_type(np.allclose(t, floats), bool)
assert_type(np.array_equal(t, t), bool)
assert_type(np.shape(t), tuple[int, ...])
assert_type(np.asarray(t, np.float64), Floats)
assert_type(np.argmax(t, axis=1), Any)

# functions
loss = (t * t).mean()
assert_type(mg.grad(loss, t), mg.Tensor)
assert_type(mg.grad(loss, [t]), list[mg.Tensor])
assert_type(mg.norm(t, axis=1), mg.Tensor)
assert_type(mg.norm(t, (0, 1), True), mg.Tensor)
assert_type(mg.linear(floats, t), mg.Tensor)
assert_type(mg.linear(floats, t, b=t[0]), mg.Tensor)
assert_type(mg.where(floats > 0, t, 0), mg.Tensor)
assert_type(mg.getitem(t, slice(1)), mg.Tensor)
assert_type(mg.broadcast_to(t, [3, 2, 2]), mg.Tensor)
assert_type(mg.exp([1.0, 2.0]), mg.Tensor)
assert_type(mg.OPS["exp"](t), mg.Tensor)
assert_type(mg.stack([t, floats]), mg.Tensor)
assert_type(mg.cross_entropy(t, [0, 1]), mg.Tensor)


# operations of one's own, however they are annotated
@mg.op(lambda g, y, a: g * mg.sigmoid(a))
def softplus(a: Floats) -> Floats:
    """Return log(1 + eᵃ)."""
    return np.logaddexp(0, a)


@mg.op(lambda g, y, a, p=2: g * p * a ** (p - 1))
def power(a: npt.NDArray[Any], p: int = 2) -> Any:
    """Return aᵖ."""
    return a**p


@mg.op(lambda g, y, a, b: g * b, lambda g, y, a, b: g * a)
def product(a: Floats, b: Floats) -> Floats:
    """Return a∘b."""
    return a * b


@mg.op(
    lambda g, y, a, b, c: g * b,
    lambda g, y, a, b, c: g * a,
    lambda g, y, a, b, c: g,
)
def product_and_sum(a: Floats, b: Floats, c: mg.ops.Array) -> Any:
    """Return a∘b + c."""
    return a * b + c


assert_type(softplus(t), mg.Tensor)
assert_type(softplus(floats), mg.Tensor)
assert_type(softplus([1.0]), mg.Tensor)
assert_type(power(t, p=3), mg.Tensor)
assert_type(product(t, floats), mg.Tensor)
assert_type(product(2.0, t), mg.Tensor)
assert_type(product_and_sum(t, t, c=t), mg.Tensor)


# training
class Holder:
    """Whatever has an operation as an attribute of its class."""

    activation = mg.relu


assert_type(Holder().activation(t), mg.Tensor)

model = ld.MLP([2, 2], rng=0)
assert_type(model(t), mg.Tensor)
assert_type(model.eval(), ld.MLP)
assert_type(model.parameters(), list[mg.Tensor])
optimizer = ld.AdamW(model.parameters())
training = ld.fit(model, [[1, 2], [3, 4]], [0, 1], optimizer=optimizer, steps=2, rng=0)
assert_type(training, Training)
assert_type(list(training), list[Step])
assert_type(ld.evaluate(model, [[1.0, 2.0]], [1]), Evaluation)
assert_type(ld.evaluate(model, t, np.array([0, 1])).accuracy, float)
x, y = ld.windows([0, 1, 2], length=1, stride=1)
assert_type(x, npt.NDArray[Any])
layer = ld.Linear(2, 2, rng=0)
assert_type(layer.weight, mg.Tensor)
assert_type(layer.bias, mg.Tensor | None)
adapted = ld.get_peft_model(model, ld.LoraConfig(target_modules={"layers.0"}), rng=0)
assert_type(adapted, ld.PeftModel)
assert_type(adapted.merge_and_unload(), ld.Module)
assert_type(ld.DoRALinear(layer, r=1, lora_alpha=1).m, mg.Tensor)


@mg.no_grad()
def value(x: mg.Tensor) -> float:
    """Return a number."""
    return x.sum().item()


assert_type(value(t), float)
