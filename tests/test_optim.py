"""SGD and AdamW are the textbook formulas with PyTorch's defaults, for trained tensors alone."""

import copy
import math
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupting import assert_whole, interrupted_by_a_timer, needs_timers
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora.optim import constant, cosine_decay, linear_decay, warmup

GRADIENTS = np.random.default_rng(0).normal(size=(7, 3, 2))
START = np.random.default_rng(1).normal(size=(3, 2))


def parameter(value=START, dtype=np.float64):
    return mg.Tensor(np.asarray(value, dtype), requires_grad=True)


def run(optimizer, p, gradients, factors=None):
    for g, factor in zip(gradients, factors or [1.0] * len(gradients), strict=True):
        p.grad = None if g is None else np.asarray(g, p.dtype)
        optimizer.step(factor)
    return p.data


OPTIMIZERS = {
    "SGD": ld.SGD,
    "SGD with momentum": lambda params, **o: ld.SGD(params, momentum=0.9, **o),
    "AdamW": ld.AdamW,
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


# ----------------------------------------------------------------------------- the formulas

rates = st.floats(1e-4, 1)
parts = st.floats(0, 0.99)


@given(lr=rates, mu=parts)
def test_sgd_is_its_formula(lr, mu):
    p, v = START.copy(), 0
    for g in GRADIENTS:
        v = mu * v + g
        p = p - lr * v
    found = parameter()
    run(ld.SGD([found], lr=lr, momentum=mu), found, GRADIENTS)
    assert_allclose(found.data, p, rtol=1e-12, atol=1e-12)


@given(lr=rates, beta1=parts, beta2=parts, eps=st.floats(1e-10, 1), decay=st.floats(0, 0.5))
def test_adamw_is_its_formula(lr, beta1, beta2, eps, decay):
    p, m, v = START.copy(), 0, 0
    for t, g in enumerate(GRADIENTS, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        p = p - lr * decay * p - lr * step
    found = parameter()
    optimizer = ld.AdamW([found], lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    run(optimizer, found, GRADIENTS)
    assert_allclose(found.data, p, rtol=1e-10, atol=1e-12)


#: After five steps on Σx²·t/10 + sin z from x = (1, −2, 3) and z = ½, as PyTorch 2.13 computes it.
PYTORCH = {
    "SGD": (
        lambda x, z: ld.SGD([x, z], lr=0.1),
        [0.732243456, -1.464486912, 2.196730368],
        [0.02907307596361953],
    ),
    "SGD with momentum": (
        lambda x, z: ld.SGD([x, z], lr=0.1, momentum=0.9),
        [0.44376595199999985, -0.8875319039999997, 1.3312978559999995],
        [-0.7220427327457374],
    ),
    "AdamW by default": (
        lambda x, z: ld.AdamW([x, z]),
        [0.9950985163287526, -1.9950488893915046, 2.994999014342545],
        [0.4949748642235984],
    ),
    "AdamW": (
        lambda x, z: ld.AdamW([x, z], 0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2),
        [0.7102826537214889, -1.661726529130912, 2.6128713754196116],
        [0.2302169380737132],
    ),
    "AdamW with groups": (
        lambda x, z: ld.AdamW(
            [{"params": [x], "lr": 0.02}, {"params": [z]}], lr=0.1, weight_decay=0
        ),
        [0.9026812403173868, -1.902833482369466, 2.9028837189651657],
        [-0.0012556139657696336],
    ),
}


@pytest.mark.parametrize("name", PYTORCH)
def test_pytorch_takes_the_same_steps(name):
    make, *expected = PYTORCH[name]
    x, z = parameter([1.0, -2.0, 3.0]), parameter([0.5])
    optimizer = make(x, z)
    for t in range(5):
        optimizer.zero_grad()
        x_loss = (x * x).sum() * (t + 1) / 10
        x_loss.backward()
        z.grad = np.cos(z.data)
        optimizer.step()
    assert_allclose(x.data, expected[0], rtol=1e-14)
    assert_allclose(z.data, expected[1], rtol=1e-13, atol=1e-15)  # passes through 0


def test_a_step_without_a_gradient_does_not_age_the_moments():
    p, other = parameter([1.0, -2.0]), parameter([1.0])
    other.grad = np.ones(1)
    run(ld.AdamW([p, other], lr=0.1), p, [[1.0, 2.0], None, None, [0.5, -1.0], [3.0, 0.0]])
    by_pytorch = [0.7190682626346174, -2.14100109779376]
    assert_allclose(p.data, by_pytorch, rtol=1e-14)


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), max_size=6))
def test_parameters_do_not_notice_each_other(moving):
    shapes = (2, 3), (), (0, 2), (2, 4), (5,)
    dtypes = (np.float32,) * 4 + (np.float64,)
    rates = 0.1, 0.1, 0.1, 0.2, 0.2

    def parameters():
        rng = np.random.default_rng(2)
        return [parameter(rng.normal(size=shape), dtype) for shape, dtype in zip(shapes, dtypes)]

    together, alone = parameters(), parameters()
    optimizer = ld.AdamW([{"params": [p], "lr": rate} for p, rate in zip(together, rates)])
    optimizers = [ld.AdamW([p], lr=rate) for p, rate in zip(alone, rates)]
    rng = np.random.default_rng(3)
    for step in moving:
        for i, (p, q) in enumerate(zip(together, alone)):
            g = np.array(rng.normal(size=p.shape), p.dtype, order="F")
            p.grad = q.grad = g if i in step else None
        optimizer.step()
        for i in step:
            optimizers[i].step()
        for p, q in zip(together, alone):
            assert p.data.tobytes() == q.data.tobytes()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_a_copied_optimizer_goes_on_as_the_original(copied):
    p, q = parameter(), parameter([1.0])
    optimizer = ld.AdamW([p, q], lr=0.1)
    p.grad, q.grad = GRADIENTS[0], np.ones(1)
    optimizer.step()
    p2, q2, twin = copied((p, q, optimizer))
    for g in GRADIENTS:
        p.grad = p2.grad = g
        optimizer.step()
        twin.step()
    assert_array_equal(p2.data, p.data)
    assert_array_equal(q2.data, q.data)


@every_optimizer
def test_rates_can_be_changed_and_added(make):
    p, q, r = parameter(), parameter(), parameter()
    optimizer = make([p, q], lr=0.1)
    for x in (p, q, r):
        x.grad = GRADIENTS[0]
    optimizer.step()
    optimizer.add_param_group({"params": [r], "lr": 0.1})
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step(0.5)
    assert optimizer.param_groups[1]["lr"] == 0.1
    optimizer.param_groups[0]["lr"] = 0.0
    before = q.data.copy(), r.data.copy()
    optimizer.step()
    assert_array_equal(q.data, before[0])
    assert np.all(r.data != before[1])


# ----------------------------------------------------------------------------- new arrays, and for whom


@every_optimizer
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 2)], ids=str)
def test_a_step_makes_a_new_array_and_keeps_its_dtype(make, dtype, shape):
    p = parameter(np.ones(shape), dtype)
    optimizer = make([p], lr=0.1)
    for _ in range(3):
        array, before = p.data, p.data.copy()
        p.grad = np.ones(shape, dtype)
        optimizer.step()
        assert type(p.data) is np.ndarray
        assert p.data.dtype == dtype
        assert p.data.flags.writeable
        assert not np.shares_memory(p.data, array)
        assert_array_equal(array, before)
        assert np.all(p.data != before)


@every_optimizer
def test_a_graph_recorded_before_a_step_keeps_its_values(make):
    """As in PyTorch, which refuses the second backward where a parameter was changed in place."""
    w = parameter([3.0])
    optimizer = make([w], lr=1.0)
    a, other = (w * w).sum(), (w * 2.0).sum()
    other.backward()
    optimizer.step()
    w.grad = None
    a.backward()
    assert_array_equal(w.grad, [6.0])


@every_optimizer
def test_state_is_shared_with_neither_gradient_nor_parameter(make):
    p, q = parameter(), parameter()
    optimizer, twin = make([p], lr=0.1), make([q], lr=0.1)
    p.grad, q.grad = GRADIENTS[0].copy(), GRADIENTS[0]
    optimizer.step()
    twin.step()
    p.grad[...], p.data[...] = 7, 7
    p.data = q.data
    p.grad = q.grad = GRADIENTS[1]
    optimizer.step()
    twin.step()
    assert_array_equal(p.data, q.data)


#: Every number that an optimizer takes, as a kind of number.
NUMBERS = {
    "a rate": lambda p, n: ld.AdamW([p], lr=n(0.1)),
    "a rate of a group": lambda p, n: ld.SGD([{"params": [p], "lr": n(0.1)}]),
    "momentum": lambda p, n: ld.SGD([p], lr=0.1, momentum=n(0.9)),
    "betas": lambda p, n: ld.AdamW([p], lr=0.1, betas=(n(0.9), n(0.999))),
    "eps and decay": lambda p, n: ld.AdamW([p], lr=0.1, eps=n(1e-8), weight_decay=n(0.01)),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.dtype(">f4"), np.dtype(">f8")], ids=str
)
def test_a_number_of_numpy_is_a_number_and_widens_nothing(name, dtype):
    results = []
    for kind in (np.float64, float):
        p = parameter(dtype=dtype)
        optimizer = NUMBERS[name](p, kind)
        for g in GRADIENTS[:3]:
            p.grad = g.astype(dtype)
            optimizer.step(kind(0.5))
        results.append([p.data, *map(np.asarray, optimizer.state[p].values())])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    assert p.dtype == dtype


@pytest.mark.parametrize(("dtype", "huge"), [(np.float32, 2e19), (np.float64, 1e154)], ids=str)
def test_adamw_survives_a_gradient_whose_square_is_near_the_largest_number(dtype, huge):
    p = parameter([1.0], dtype)
    optimizer = ld.AdamW([p], lr=1e-3, weight_decay=0)
    for g in (huge, 1.0, 1.0):
        before = p.data
        p.grad = np.array([g], dtype)
        optimizer.step()
        assert np.isfinite(p.data).all()
        assert p.data < before


@every_optimizer
def test_the_gradient_itself_is_not_changed(make):
    p = parameter()
    optimizer = make([p], lr=0.1)
    for g in GRADIENTS:
        p.grad = g.copy()
        optimizer.step()
        assert p.grad.tobytes() == g.tobytes()


@every_optimizer
def test_frozen_tensors_stay_and_have_no_state_until_they_are_freed(make):
    trained, frozen = parameter(), mg.Tensor(START)
    optimizer = make([frozen, trained], lr=0.1)
    frozen.grad = np.ones(START.shape)
    run(optimizer, trained, GRADIENTS)
    assert frozen.data.tobytes() == START.tobytes()
    assert list(optimizer.state) == [trained]
    frozen.requires_grad, trained.requires_grad = True, False
    before = trained.data
    optimizer.step()
    assert np.all(frozen.data != START)
    assert trained.data is before, "its gradient is a stale one"


@every_optimizer
def test_a_tensor_without_a_gradient_stays_where_it_is(make):
    p, idle = parameter(), parameter()
    run(make([p, idle], lr=0.1), p, GRADIENTS)
    assert idle.data.tobytes() == START.tobytes()


@every_optimizer
@pytest.mark.parametrize(
    "wrong",
    [np.ones((3, 2)), np.ones((2, 3), np.float32), np.ones((2, 3), complex), [[1.0] * 3] * 2],
)
def test_a_gradient_unlike_its_parameter_is_refused_and_nothing_moves(make, wrong):
    p, q = parameter(), parameter(START.T)
    optimizer = make([p, q], lr=0.1)
    p.grad, q.grad = np.ones(p.shape), wrong
    message = r"shape \(2, 3\) and dtype float64 has been given a gradient|an array, not a list"
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.step()
    assert p.data.tobytes() == START.tobytes()
    q.grad = np.ones(q.shape)
    optimizer.step()
    fresh = parameter()
    run(make([fresh], lr=0.1), fresh, [np.ones(p.shape)])
    assert_array_equal(p.data, fresh.data)


@every_optimizer
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_factor_that_is_no_finite_number_is_refused_and_nothing_moves(make, factor):
    p = parameter()
    p.grad = GRADIENTS[0]
    with pytest.raises(ValueError, match="factor must be finite"):
        make([p], lr=0.1).step(factor)
    assert p.data.tobytes() == START.tobytes()


@every_optimizer
def test_a_shared_read_only_array_is_left_to_those_who_share_it(make):
    p = parameter()
    shared = p.data
    shared.setflags(write=False)
    run(make([p], lr=0.1), p, GRADIENTS)
    assert shared.tobytes() == START.tobytes()
    assert not np.any(p.data == START)


def test_zero_grad_forgets_all_gradients():
    p, q = parameter(), parameter()
    p.grad = np.ones(START.shape)
    ld.SGD([p, q]).zero_grad()
    assert p.grad is None
    assert q.grad is None


# ----------------------------------------------------------------------------- all or nothing


def trained(make, dtype=np.float64):
    """Return parameters that have taken a step and have a gradient for another, and their optimizer."""
    params = [parameter(dtype=dtype), parameter(2.0, dtype), parameter(GRADIENTS[1, :1], dtype)]
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    for p in params[1:]:
        p.grad = np.ones_like(p.data)
    optimizer.step()
    for p in params:
        p.grad = np.full_like(p.data, 0.5)
    return params, optimizer


def all_of(params, optimizer):
    """Return everything that a step changes."""
    state = {name: array.tobytes() for name, array in optimizer.state_dict().items()}
    return [p.data.tobytes() for p in params], state, len(optimizer.state)


@every_optimizer
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_an_interrupt_leaves_a_step_taken_or_not_taken(make, dtype):
    def prepare():
        params, optimizer = trained(make, dtype)
        return (params, optimizer), optimizer.step

    assert_whole(prepare, lambda subject: all_of(*subject), instructions=True)


@needs_timers
def test_a_real_signal_leaves_a_step_taken_or_not_taken():
    """With a constant gradient, the moments tell how many steps there were."""
    params = [parameter(np.full(3, 1.0)) for _ in range(20)]
    optimizer = ld.AdamW(params, lr=1e-6)
    for p in params:
        p.grad = np.ones(3)
    for _ in interrupted_by_a_timer(optimizer.step, 300):
        assert len({p.data.tobytes() for p in params}) == 1
        moments = {repr(optimizer.state[p]) for p in params} if optimizer.state else {""}
        assert len(moments) == 1
    t, m = (optimizer.state[params[0]][name] for name in ("step", "exp_avg"))
    assert t > 10
    assert_allclose(m, 1 - 0.9**t, rtol=1e-9)


@every_optimizer
@pytest.mark.parametrize("what", ["over", "invalid"])
def test_a_step_that_numpy_refuses_is_not_taken(make, what):
    """The first two parameters could have moved before the third one fails."""
    params, optimizer = trained(make)
    last = params[-1]
    last.grad[...], last.data[...] = (1e308, -1.7e308) if what == "over" else (np.inf, np.inf)
    optimizer.param_groups[1]["lr"] = 10.0
    before = all_of(params, optimizer)
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        optimizer.step()
    assert all_of(params, optimizer) == before


class Halving(ld.SGD):
    """A custom optimizer: p ← p/2.  It remembers the last gradient."""

    def _moved(self, p, g, state, rate, options):
        return p / 2, {"last": g}


def test_an_optimizer_of_ones_own_returns_the_new_value_and_the_new_state():
    p = parameter()
    optimizer = Halving([p])
    p.grad = GRADIENTS[0]
    optimizer.step()
    assert_array_equal(p.data, START / 2)
    assert_array_equal(optimizer.state[p]["last"], GRADIENTS[0])


#: What the step of a custom optimizer may return by mistake.
MISTAKES = {
    "a value without a state": lambda p: p / 2,
    "a value of another shape": lambda p: (p[:1], {}),
    "nothing": lambda p: None,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_step_of_ones_own_that_makes_something_else_is_not_taken(name):
    class Wrong(ld.SGD):
        def _moved(self, p, g, state, rate, options):
            return MISTAKES[name](p) if p.ndim else (p / 2, {})

    p, q = parameter(2.0), parameter()
    optimizer = Wrong([p, q])
    p.grad, q.grad = np.ones(()), np.ones(q.shape)
    with pytest.raises((ValueError, TypeError)):
        optimizer.step()
    assert all_of([p, q], optimizer) == all_of([parameter(2.0), parameter()], Wrong([p, q]))


@every_optimizer
def test_an_interrupt_leaves_a_state_loaded_or_not_loaded(make):
    _, optimizer = trained(make)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.3
    state = optimizer.state_dict()

    def prepare():
        params, optimizer = trained(make)
        return (params, optimizer), lambda: optimizer.load_state_dict(state)

    assert_whole(prepare, lambda subject: all_of(*subject))


def test_an_interrupt_leaves_all_gradients_or_none():
    def prepare():
        params, optimizer = trained(ld.SGD)
        return params, optimizer.zero_grad

    assert_whole(prepare, lambda params: [p.grad is None for p in params])


def test_an_interrupt_leaves_a_group_added_or_not_added():
    def prepare():
        params, optimizer = trained(ld.SGD)
        group = {"params": [parameter(), parameter()], "lr": 3.0}
        return (params, optimizer), lambda: optimizer.add_param_group(group)

    assert_whole(prepare, lambda subject: all_of(*subject))


@every_optimizer
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_number_too_small_to_matter_raises_nothing(make, dtype):
    """The square of a small gradient, the rate times it, a moment that fades: they underflow to 0."""
    tiny = float(np.finfo(dtype).tiny)
    params = [parameter(np.array([1.0, 0.1]), dtype), parameter(tiny, dtype)]
    plain = [parameter(p.data, dtype) for p in params]
    optimizer, twin = make(params, lr=1e-3), make(plain, lr=1e-3)
    for small in (tiny, 2 * tiny, 0.0, tiny):
        for p in params + plain:
            p.grad = np.full_like(p.data, small)
        with np.errstate(all="raise"):
            optimizer.step(1e-3)
        twin.step(1e-3)
    assert all_of(params, optimizer) == all_of(plain, twin)


# ----------------------------------------------------------------------------- groups and schedules


def test_each_group_has_its_own_rate_and_the_factor_multiplies_it():
    p, q = parameter(np.zeros(2)), parameter(np.zeros(2))
    optimizer = ld.SGD([{"params": [p], "lr": 0.5}, {"params": [q]}], lr=0.01)
    p.grad = q.grad = np.ones(2)
    optimizer.step()
    assert_allclose(p.data, -0.5)
    assert_allclose(q.data, -0.01)
    optimizer.step(0.1)
    assert_allclose(p.data, -0.55)
    assert_allclose(q.data, -0.011)


def test_a_schedule_scales_the_weight_decay_too():
    p = parameter(np.ones(2))
    run(ld.AdamW([p], lr=0.1, weight_decay=0.5), p, [np.zeros(2)], [0.5])
    assert_allclose(p.data, 1 - 0.1 * 0.5 * 0.5)


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [(constant, 1, 1, 1), (linear_decay, 1, 0.5, 0), (cosine_decay, 1, 0.5, 0)],
    ids=["constant", "linear", "cosine"],
)
def test_schedules_go_from_the_full_rate_to_their_end(schedule, start, middle, end):
    assert_allclose([schedule(t) for t in (0, 0.5, 1)], [start, middle, end], atol=1e-15)
    values = [schedule(t) for t in np.linspace(0, 1, 50)]
    assert values == sorted(values, reverse=True)


def test_cosine_is_its_formula():
    assert cosine_decay(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("then", [linear_decay, cosine_decay, constant])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
def test_a_warm_up_climbs_in_a_straight_line_and_goes_on_as_the_other_schedule(share, then):
    schedule = warmup(share, then)
    assert [schedule(0), schedule(share / 4), schedule(share / 2)] == [0, 0.25, 0.5]
    assert (schedule(share), schedule(1)) == (1, then(1))
    assert schedule((1 + share) / 2) == pytest.approx(then(0.5))
    climbing = [schedule(t) for t in np.linspace(0, share, 50)]
    assert climbing == sorted(climbing)


def test_no_warm_up_is_the_other_schedule_and_by_default_it_decays_linearly():
    for t in (0, 0.3, 1):
        assert warmup(0, cosine_decay)(t) == cosine_decay(t)
        assert warmup(0)(t) == linear_decay(t)


def test_warm_up_is_that_of_hugging_face_counted_in_steps():
    """step/w while it warms up, then (n − step)/(n − w): their get_linear_schedule_with_warmup."""
    n, w = 40, 10
    expected = [step / w if step < w else (n - step) / (n - w) for step in range(n)]
    assert_allclose([warmup(w / n)(step / n) for step in range(n)], expected, rtol=1e-13)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_a_warm_up_can_be_copied_and_pickled(copied):
    schedule = warmup(0.2, cosine_decay)
    assert [copied(schedule)(t) for t in (0, 0.1, 0.7)] == [schedule(t) for t in (0, 0.1, 0.7)]


def test_training_that_warms_up_goes_on_where_it_was_interrupted():
    def trained(*parts):
        model = ld.MLP([4, 3], rng=0)
        optimizer, records = ld.AdamW(model.parameters(), lr=0.1), []
        for start, stop in parts:
            training = ld.fit(
                model,
                X,
                LABELS,
                optimizer=optimizer,
                steps=20,
                schedule=warmup(0.3),
                start=start,
                rng=0,
            )
            records += [next(training) for _ in range(start, stop)]
        return records, model.state_dict()

    once, twice = trained((0, 20)), trained((0, 4), (4, 20))
    assert [step.rate for step in once[0][:4]] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert once[0] == twice[0]
    assert all(np.array_equal(a, twice[1][name]) for name, a in once[1].items())


X, LABELS = np.random.default_rng(3).normal(size=(30, 4)), np.arange(30) % 3


# ----------------------------------------------------------------------------- clipping


def with_gradients(*gradients, dtype=np.float64):
    """Return one parameter for each gradient; None for one that has none."""
    params = []
    for g in gradients:
        p = parameter(np.zeros(np.shape([] if g is None else g)), dtype)
        p.grad = None if g is None else np.asarray(g, dtype)
        params.append(p)
    return params


def test_gradients_are_scaled_to_the_largest_norm_together():
    params = with_gradients([3.0, 0.0], None, [[4.0]])
    assert ld.clip_grad_norm_(params, 2.5) == 5
    assert_allclose(params[0].grad, [1.5, 0], rtol=1e-6)
    assert params[1].grad is None
    assert_allclose(params[2].grad, [[2]], rtol=1e-6)
    assert params[2].grad == 4 * (2.5 / (5 + 1e-6))


@pytest.mark.parametrize("max_norm", [5.1, math.inf])
def test_gradients_that_are_small_enough_stay_the_arrays_they_are(max_norm):
    params = with_gradients([3.0, 0.0], [4.0])
    before = [p.grad for p in params]
    assert ld.clip_grad_norm_(params, max_norm) == 5
    assert all(p.grad is g for p, g in zip(params, before, strict=True))


def test_clipping_writes_into_no_array():
    params = with_gradients([3.0, 0.0], [4.0])
    before = [p.grad for p in params]
    for g in before:
        g.setflags(write=False)
    ld.clip_grad_norm_(params, 1)
    assert_array_equal(before[0], [3, 0])
    assert all(p.grad.flags.writeable for p in params)


def test_a_parameter_that_is_given_twice_counts_once_and_a_generator_will_do():
    p, q = with_gradients([3.0], [4.0])
    assert ld.clip_grad_norm_((x for x in (p, q, p)), 1) == 5
    assert_allclose(p.grad, 0.6, rtol=1e-6)


def test_without_gradients_the_norm_is_0():
    assert ld.clip_grad_norm_(with_gradients(None), 1) == 0
    assert ld.clip_grad_norm_([], 1) == 0
    params = with_gradients(np.zeros(3), [])
    assert ld.clip_grad_norm_(params, 1) == 0
    assert_array_equal(params[0].grad, np.zeros(3))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(np.float16, 6e4), (np.float32, 2e38), (np.float64, 1e308), (np.float64, 1e-200)],
    ids=str,
)
def test_a_norm_is_found_whose_squares_overflow_or_underflow(dtype, size):
    (p,) = with_gradients([size, -size], dtype=dtype)
    kept = p.grad
    norm = ld.clip_grad_norm_([p], 1.0)
    assert norm == pytest.approx(math.hypot(*kept.astype(float)), rel=1e-3)
    assert p.grad.dtype == dtype
    if size > 1:
        assert_allclose(p.grad, np.array([1, -1]) / math.sqrt(2), rtol=1e-3)


def test_a_norm_may_be_larger_than_the_dtype_of_the_gradients_can_hold():
    (p,) = with_gradients(np.full(10, 3e38), dtype=np.float32)
    norm = ld.clip_grad_norm_([p], 1.0)
    assert norm == pytest.approx(math.sqrt(10) * 3e38)
    assert_allclose(p.grad, np.full(10, math.sqrt(0.1)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_clipped_gradient_of_a_scalar_is_an_array_that_a_step_can_take(dtype):
    p = parameter(3.0, dtype)
    (p * p).backward()
    for max_norm in (1.0, 0.5):
        assert ld.clip_grad_norm_([p], max_norm) > max_norm
        assert type(p.grad) is np.ndarray
        assert (p.grad.shape, p.grad.dtype) == ((), dtype)
    ld.SGD([p], lr=1.0).step()
    assert p.item() == pytest.approx(2.5, rel=1e-3)


def test_float16_is_scaled_in_float32_and_what_gets_too_small_is_0_without_a_word():
    p, q = with_gradients(np.full(10**4, 6e4), [1e-7], dtype=np.float16)
    with np.errstate(all="raise"):
        ld.clip_grad_norm_([p, q], 1.0)  # by 1.67e-7, which float16 would round to 1.79e-7
    assert_allclose(p.grad, np.full(10**4, 0.01), rtol=1e-3)
    assert_array_equal(q.grad, np.float16([0]), strict=True)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_refused_and_nothing_is_scaled(wrong):
    params = with_gradients([3.0], [wrong, 1.0])
    for max_norm in (1.0, math.inf):
        with pytest.raises(FloatingPointError, match=r"the norm of the gradients is (nan|inf)"):
            ld.clip_grad_norm_(params, max_norm)
    assert_array_equal(params[0].grad, [3])


NOT_TO_BE_CLIPPED = {
    "a negative norm": (lambda p: ([p], -1), ValueError, "max_norm must not be negative, not -1"),
    "a norm that is NaN": (lambda p: ([p], math.nan), ValueError, "max_norm must be finite"),
    "a string": (lambda p: ([p], "1"), TypeError, "max_norm must be a number"),
    "a Tensor": (lambda p: (p, 1), TypeError, "a list of Tensors.*not a Tensor"),
    "a model": (lambda p: (ld.ReLU(), 1), TypeError, "a list of Tensors.*not a ReLU"),
    "groups": (lambda p: ([{"params": [p]}], 1), TypeError, "a list of Tensors.* dict"),
    "an array among them": (
        lambda p: ([p, np.ones(2)], 1),
        TypeError,
        r"not a list of numpy\.ndarray",
    ),
    "a gradient of another shape": (lambda p: ([p, odd()], 1), ValueError, r"shape \(2,\).*\(3,\)"),
}


def odd():
    p = parameter([1.0, 2.0])
    p.grad = np.ones(3)
    return p


@pytest.mark.parametrize(
    ("given", "error", "said"), NOT_TO_BE_CLIPPED.values(), ids=NOT_TO_BE_CLIPPED
)
def test_what_cannot_be_clipped_is_refused_and_nothing_is_scaled(given, error, said):
    (p,) = with_gradients([3.0])
    with pytest.raises(error, match=said):
        ld.clip_grad_norm_(*given(p))
    assert_array_equal(p.grad, [3])


def test_an_interrupt_leaves_all_gradients_clipped_or_none():
    def prepare():
        params = with_gradients([3.0], [4.0], [5.0])
        return params, lambda: ld.clip_grad_norm_(params, 1.0)

    assert_whole(prepare, lambda params: [p.grad.item() for p in params], instructions=True)


def test_a_clipped_step_is_bounded():
    p = parameter([0.0, 0.0])
    optimizer = ld.SGD([p], lr=0.5)
    p.grad = np.array([300.0, -400.0])
    ld.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    assert_allclose(p.data, [-0.3, 0.4], rtol=1e-6)


# ----------------------------------------------------------------------------- what is refused

NOT_A_SHARE = [(1, ValueError), (1.5, ValueError), (-0.1, ValueError), (math.nan, ValueError)]


@pytest.mark.parametrize(("share", "error"), [*NOT_A_SHARE, ("a", TypeError), (True, TypeError)])
def test_a_warm_up_takes_a_share_of_the_training(share, error):
    with pytest.raises(error, match="share must"):
        warmup(share)


def test_a_warm_up_is_followed_by_a_function():
    with pytest.raises(TypeError, match=r"then must be a function.*not 0\.5"):
        warmup(0.1, 0.5)


REFUSED = {
    "a negative rate": (lambda p: ld.SGD([p], lr=-0.1), "not -0.1"),
    "an infinite rate": (lambda p: ld.AdamW([p], lr=math.inf), "not inf"),
    "a rate that is no number": (lambda p: ld.AdamW([p], lr=math.nan), "not nan"),
    "a bad rate of a group": (lambda p: ld.SGD([{"params": [p], "lr": -1}]), "not -1"),
    "momentum 1": (lambda p: ld.SGD([p], momentum=1.0), "momentum must lie in .* not 1.0"),
    "negative momentum": (lambda p: ld.SGD([p], momentum=-0.5), "not -0.5"),
    "beta 1": (lambda p: ld.AdamW([p], betas=(0.9, 1.0)), "beta must lie in .* not 1.0"),
    "a negative beta": (lambda p: ld.AdamW([p], betas=(-0.1, 0.9)), "beta must lie in .* not -0.1"),
    "a negative eps": (lambda p: ld.AdamW([p], eps=-1e-8), "eps must not be negative, not -1e-08"),
    "negative decay": (
        lambda p: ld.AdamW([p], weight_decay=-0.1),
        "weight_decay must not be .* not -0.1",
    ),
    "an infinite eps": (lambda p: ld.AdamW([p], eps=math.inf), "eps must be finite, not inf"),
    "eps that is no number": (lambda p: ld.AdamW([p], eps=math.nan), "eps must be finite, not nan"),
    "infinite decay": (lambda p: ld.AdamW([p], weight_decay=math.inf), "weight_decay must be fin"),
    "momentum that is no number": (lambda p: ld.SGD([p], momentum=math.nan), "momentum must be"),
    "a beta that is no number": (
        lambda p: ld.AdamW([p], betas=(math.nan, 0.9)),
        "beta must be fin",
    ),
    "one beta": (lambda p: ld.AdamW([p], betas=(0.9,)), r"betas must be two numbers, not \(0.9,\)"),
    "three betas": (lambda p: ld.AdamW([p], betas=(0.9, 0.9, 0.9)), "betas must be two numbers"),
    "a number for betas": (
        lambda p: ld.AdamW([p], betas=0.9),
        "betas must be two numbers, not 0.9",
    ),
    "a default that is not used": (lambda p: ld.SGD([{"params": [p], "lr": 1}], lr=-1), "not -1"),
    "a group without parameters": (lambda p: ld.SGD([{"lr": 1}]), "needs 'params'.* got .'lr'"),
    "bad decay of a group": (lambda p: ld.AdamW([{"params": [p], "weight_decay": -1}]), "not -1"),
    "a tensor twice": (lambda p: ld.SGD([p, p]), r"shape \(3, 2\) occurs twice"),
    "a tensor in two groups": (lambda p: ld.SGD([{"params": [p]}, {"params": [p]}]), "twice"),
    "an unknown option": (lambda p: ld.SGD([{"params": [p], "eps": 1}]), r"not \['eps'\]"),
    "nothing to train": (lambda p: ld.AdamW([p.detach()]), "nothing to train"),
    "nothing at all": (lambda p: ld.AdamW([]), "nothing to train"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_value_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make(parameter())


NOT_A_NUMBER = {
    "True as a rate": lambda p: ld.SGD([p], lr=True),
    "a text as momentum": lambda p: ld.SGD([p], lr=0.1, momentum="x"),
    "True as momentum": lambda p: ld.SGD([p], momentum=True),
    "texts as betas": lambda p: ld.AdamW([p], betas=("a", "b")),
    "bools as betas": lambda p: ld.AdamW([p], betas=(False, False)),
    "a list as eps": lambda p: ld.AdamW([p], eps=[1e-8]),
    "True as eps": lambda p: ld.AdamW([p], eps=True),
    "nothing as decay": lambda p: ld.AdamW([p], weight_decay=None),
    "True as decay": lambda p: ld.AdamW([p], weight_decay=True),
    "a tensor as a rate": lambda p: ld.AdamW([p], lr=p),
}


@pytest.mark.parametrize("name", NOT_A_NUMBER)
def test_what_is_no_number_is_refused_by_name(name):
    option = "(lr|momentum|beta|eps|weight_decay) must be a number, not"
    with pytest.raises(TypeError, match=option):
        NOT_A_NUMBER[name](parameter())


#: What is not a list of leaves or of groups, and what the error says.
NOT_PARAMETERS = {
    "a tensor": (lambda p: p, "not a Tensor"),
    "a result": (lambda p: [p * 2], r"not the result of mul \(shape \(3, 2\)\)"),
    "a row": (lambda p: [p[0]], "not the result of getitem"),
    "named parameters": (lambda p: [("w", p)], "not a list of tuple"),
    "a group that is not in a list": (lambda p: {"params": [p]}, "not a dict"),
    "a state": (lambda p: {"w": p}, "not a dict"),
    "a model": (lambda p: ld.Linear(2, 3), "not a Linear"),
    "a model that can be iterated": (lambda p: ld.Sequential(ld.Linear(2, 3)), "not a Sequential"),
    "a method": (lambda p: ld.Linear(2, 3).parameters, "not a method"),
    "a text": (lambda p: "params", "not a str"),
    "a set, which has no order": (lambda p: {p}, "not a set"),
    "an array": (lambda p: p.data, "not a ndarray"),
    "arrays": (lambda p: [p.data], r"not a list of numpy\.ndarray"),
    "names": (lambda p: ["w"], "not a list of str"),
    "nothing": (lambda p: None, "not a NoneType"),
    "groups and tensors": (lambda p: [{"params": [p]}, parameter()], "not both in one list"),
    "a tensor as a group": (lambda p: [{"params": p}], "not a Tensor"),
    "a model as a group": (lambda p: [{"params": ld.Linear(2, 3)}], "not a Linear"),
    "a result in a group": (lambda p: [{"params": [p + 1]}], "not the result of add"),
}


@every_optimizer
@pytest.mark.parametrize("name", NOT_PARAMETERS)
def test_what_cannot_be_trained_is_refused(make, name):
    params, message = NOT_PARAMETERS[name]
    with pytest.raises(TypeError, match=message):
        make(params(parameter()), lr=0.1)


@every_optimizer
def test_a_group_that_is_refused_is_not_added(make):
    p, q = parameter(), parameter()
    optimizer = make([p], lr=0.1)
    for wrong in ([p], [q, q], [q * 2], q):
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group({"params": wrong})
    assert [list(group["params"]) for group in optimizer.param_groups] == [[p]]


# ----------------------------------------------------------------------------- nothing to do


def models():
    """A base, an adapter on it, and data."""
    rng = np.random.default_rng(0)
    base = ld.MLP([4, 3, 2], rng=rng)
    config = ld.LoraConfig(r=2, target_modules="all-linear")
    return base, ld.get_peft_model(base, config, rng=rng), rng.normal(size=(5, 4))


def built_before_adapting():
    base, model, x = models()
    return ld.SGD(base.parameters()), model(x)


def built_before_another_adapter_was_activated():
    _, model, x = models()
    optimizer = ld.SGD(model.parameters())
    model.add_adapter("other", ld.LoraConfig(r=2, target_modules="all-linear"))
    model.set_adapter("other")
    return optimizer, model(x)


def used_after_merging():
    _, model, x = models()
    return ld.SGD(model.parameters()), model.merge_and_unload()(x)


def unpickled_without_its_model():
    base, _, x = models()
    return pickle.loads(pickle.dumps(ld.SGD(base.parameters()))), base(x)


def frozen_since():
    base, _, x = models()
    optimizer = ld.SGD(base.parameters())
    base(x).sum().backward()
    base.requires_grad_(False)
    return optimizer, parameter()


def built_from_copies():
    base, _, x = models()
    return ld.SGD([mg.Tensor(p.data, requires_grad=True) for p in base.parameters()]), base(x)


@pytest.mark.parametrize(
    "situation",
    [
        built_before_adapting,
        built_before_another_adapter_was_activated,
        used_after_merging,
        unpickled_without_its_model,
        frozen_since,
        built_from_copies,
    ],
)
def test_a_step_that_would_move_nothing_says_what_usually_happened(situation):
    optimizer, y = situation()
    (y * y).mean().backward()
    before = [p.data for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(
        RuntimeError, match=r"no parameter .* has a gradient .* get_peft_model, set_ad"
    ):
        optimizer.step()
    after = [p.data for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(after, before, strict=True))


@every_optimizer
def test_a_step_right_after_zero_grad_asks_for_backward(make):
    p = parameter()
    optimizer = make([p], lr=0.1)
    p.grad = GRADIENTS[0]
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"backward\(\) has not been called since zero_grad\(\)"):
        optimizer.step()


@every_optimizer
def test_one_gradient_is_enough(make):
    p, idle = parameter(), parameter()
    optimizer = make([{"params": [idle]}, {"params": [p]}], lr=0.1)
    run(optimizer, p, GRADIENTS)
    assert idle.data.tobytes() == START.tobytes()
    assert np.all(p.data != START)


@every_optimizer
def test_a_negative_factor_would_climb_and_is_refused(make):
    p = parameter()
    p.grad = GRADIENTS[0]
    with pytest.raises(ValueError, match="factor must not be negative, not -1"):
        make([p], lr=0.1).step(-1)
    assert p.data.tobytes() == START.tobytes()


# ----------------------------------------------------------------------------- options of a group


@every_optimizer
@pytest.mark.parametrize(
    "name", ["lr", "momentum", "betas", "eps", "weight_decay", "rate", "learning_rate", "rates"]
)
def test_an_attribute_that_would_be_ignored_is_refused(make, name):
    optimizer = make([parameter()], lr=0.1)
    says = rf"has no attribute '{name}'; options are kept by group: optimizer.param_groups\[0\]"
    with pytest.raises(AttributeError, match=says):
        setattr(optimizer, name, 0)
    with pytest.raises(AttributeError, match=says):
        getattr(optimizer, name)


def test_every_option_can_be_set_for_a_group_and_changed():
    options = {"lr": 0.3, "betas": (0.5, 0.6), "eps": 0.01, "weight_decay": 0.7}
    p, q, alone = parameter(), parameter(), parameter()
    optimizer = ld.AdamW([{"params": [p], **options}, {"params": [q]}], lr=0.1)
    other = ld.AdamW([alone], **options)
    q.grad = GRADIENTS[0]
    for g in GRADIENTS[:4]:
        p.grad = alone.grad = g
        optimizer.step()
        other.step()
    assert p.data.tobytes() == alone.data.tobytes()
    twin = parameter(p.data)
    p.grad = twin.grad = GRADIENTS[0]
    optimizer.param_groups[0].update(lr=0.0, betas=[0.1, 0.1], eps=1, weight_decay=0.0)
    optimizer.step()
    assert p.data.tobytes() == twin.data.tobytes()
    assert dict(optimizer.param_groups[0]) == {
        "params": (p,),
        "lr": 0.0,
        "betas": (0.1, 0.1),
        "eps": 1.0,
        "weight_decay": 0.0,
    }


def test_momentum_can_differ_by_group():
    p, q, alone = parameter(), parameter(), parameter()
    optimizer = ld.SGD([{"params": [p], "momentum": 0.9}, {"params": [q]}], lr=0.1)
    q.grad = GRADIENTS[0]
    run(optimizer, p, GRADIENTS)
    assert p.data.tobytes() == run(ld.SGD([alone], 0.1, momentum=0.9), alone, GRADIENTS).tobytes()
    assert_allclose(q.data, START - 0.7 * GRADIENTS[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: g.update(lr=math.nan), ValueError, "lr must be finite, not nan"),
        (lambda g: g.update(lr=-1), ValueError, "lr must not be negative, not -1"),
        (lambda g: g.update(lr="x"), TypeError, "lr must be a number, not 'x'"),
        (lambda g: g.update(momentum=1), ValueError, "momentum must lie in"),
        (
            lambda g: g.update(rate=1),
            ValueError,
            "options of this group are lr, momentum, not 'rate'",
        ),
        (lambda g: g.setdefault("eps", 1), ValueError, "not 'eps'"),
        (lambda g: g.update(params=[]), TypeError, "parameters of a group cannot be exchanged"),
        (lambda g: g.pop("lr"), TypeError, "'lr' cannot be removed"),
        (lambda g: g.clear(), TypeError, "cannot be removed"),
        (lambda g: g["params"].append(parameter()), AttributeError, "append"),
    ],
)
def test_what_a_group_cannot_be_is_refused_at_once(change, error, message):
    optimizer = ld.SGD([parameter()], lr=0.1)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=message):
        change(optimizer.param_groups[0])
    assert dict(optimizer.param_groups[0]) == before


def test_groups_are_neither_added_nor_exchanged_past_their_check():
    optimizer = ld.SGD([parameter()], lr=0.1)
    with pytest.raises(AttributeError, match="append"):
        optimizer.param_groups.append({"params": [parameter()]})
    with pytest.raises(TypeError, match="item assignment"):
        optimizer.param_groups[0] = {"params": [parameter()]}
    assert repr(optimizer.param_groups) == "(Group(1 parameters, lr=0.1, momentum=0.0),)"


# ----------------------------------------------------------------------------- float16


def adamw_of_wide_moments(p, gradients, lr, eps):
    """AdamW on a float16 value, with everything but the value in float64."""
    m, v = 0.0, 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        p = (p - lr * 0.01 * p - lr * step).astype(np.float16).astype(np.float64)
    return p


@pytest.mark.parametrize("size", [6e-8, 1e-5, 1e-2, 1.0, 300.0, 6e4])
@pytest.mark.parametrize("lr", [1e-5, 1e-3, 1.0])
def test_adamw_keeps_the_moments_of_float16_in_float32(size, lr):
    """As the formula in float64: neither g² nor ε underflows, and g² does not overflow."""
    p = parameter(START, np.float16)
    gradients = (np.clip(GRADIENTS / 3, -1, 1) * size).astype(np.float16)
    optimizer = ld.AdamW([p], lr=lr)
    expected = adamw_of_wide_moments(p.data.astype(np.float64), gradients, lr, 1e-8)
    run(optimizer, p, gradients)
    assert p.dtype == np.float16
    assert_allclose(p.data, expected, rtol=2e-3, atol=1e-6)
    assert {optimizer.state[p][n].dtype.name for n in ("exp_avg", "exp_avg_sq")} == {"float32"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("eps", [0, 1e-50, 1e-8])
def test_adamw_does_not_move_what_never_had_a_gradient_but_0(dtype, eps):
    p = parameter(START, dtype)
    before = p.data
    run(ld.AdamW([p], lr=0.1, eps=eps, weight_decay=0), p, np.zeros((3, *START.shape)))
    assert_array_equal(p.data, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_eps_the_first_step_is_the_rate(dtype):
    g = np.array([1e-18, -1e-5, 1.0, -1e18], dtype)
    p = parameter(np.zeros(4), dtype)
    run(ld.AdamW([p], lr=0.5, eps=0, weight_decay=0), p, [g])
    assert_allclose(p.data, -0.5 * np.sign(g), rtol=1e-3)  # 1e-36/1000 is a coarse number


@pytest.mark.parametrize("lr", [1e-8, 1e5])
def test_sgd_moves_float16_by_rates_that_are_no_float16(lr):
    p = parameter([0.0], np.float16)
    run(ld.SGD([p], lr=lr), p, [[1.0 / lr if lr > 1 else 6e4]])
    assert_allclose(p.data, [-1.0 if lr > 1 else -6e-4], rtol=2e-3)


def test_the_velocity_of_float16_is_kept_in_float32():
    p, wide = parameter([0.0], np.float16), parameter([0.0], np.float64)
    gradients = [[6e4]] * 3 + [[-6e4]] * 3
    optimizer = ld.SGD([p], lr=1e-6, momentum=0.9)
    run(optimizer, p, gradients)
    run(ld.SGD([wide], lr=1e-6, momentum=0.9), wide, gradients)
    assert_allclose(p.data, wide.data, rtol=3e-3)
    assert optimizer.state[p]["momentum_buffer"].dtype == np.float32
    assert np.isfinite(optimizer.state[p]["momentum_buffer"]).all()


@pytest.mark.parametrize("cast", [True, False])
def test_a_float16_lora_trains_with_the_default_adamw(cast):
    rng = np.random.default_rng(0)
    base = ld.Linear(8, 4, rng=rng, dtype=np.float16)
    layer = ld.LoRALinear(base, r=2, lora_alpha=4, rng=rng, autocast_adapter_dtype=cast)
    factors = [layer.A, layer.B]
    x = rng.normal(size=(16, 8)).astype(np.float16)
    y = rng.normal(size=(16, 4)).astype(np.float16)
    optimizer = ld.AdamW(factors, lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = mg.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ----------------------------------------------------------------------------- interruption

STATEFUL = {
    **OPTIMIZERS,
    "groups": lambda params, lr: ld.AdamW(
        [{"params": params[:1], "lr": 3 * lr, "weight_decay": 0.0}, {"params": params[1:]}],
        lr,
        betas=(0.7, 0.8),
    ),
}
every_state = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)


def some_parameters(dtype=np.float32):
    return [parameter(START, dtype), parameter(2.0, dtype), parameter([1.0], dtype)]


def some_steps(optimizer, params, seed):
    """Take steps in which the first parameter always has a gradient and the last never."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        for p in params[:2]:
            p.grad = np.asarray(rng.normal(size=p.shape), p.dtype)
        params[1].grad = params[1].grad if rng.random() < 0.5 else None
        optimizer.step()


@every_state
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("taken", [0, 1])
def test_a_state_in_a_file_goes_on_bit_by_bit(make, dtype, taken, tmp_path):
    params = some_parameters(dtype)
    optimizer = make(params, lr=0.1)
    for seed in range(taken):
        some_steps(optimizer, params, seed)
    np.savez(tmp_path / "optimizer.npz", **optimizer.state_dict())
    copies = [parameter(p.data, dtype) for p in params]
    twin = make(copies, lr=0.5)
    twin.load_state_dict(np.load(tmp_path / "optimizer.npz"))
    some_steps(optimizer, params, 9)
    some_steps(twin, copies, 9)
    for p, q in zip(params, copies, strict=True):
        assert p.data.tobytes() == q.data.tobytes()
    assert repr(twin.state_dict()) == repr(optimizer.state_dict())


@every_state
def test_a_state_is_a_copy_on_both_ways(make):
    params = some_parameters()
    optimizer = make(params, lr=0.1)
    some_steps(optimizer, params, 0)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    twin = make(some_parameters(), lr=0.1)
    twin.load_state_dict(state)
    some_steps(optimizer, params, 1)
    some_steps(twin, some_parameters_of(twin), 2)
    for name, array in state.items():
        assert array.tobytes() == kept[name].tobytes()


def some_parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_the_names_of_a_state_are_the_paths_of_pytorchs():
    p, q = parameter(), parameter([1.0])
    optimizer = ld.AdamW([{"params": [p], "lr": 0.5}, {"params": [q]}])
    q.grad = np.ones(1)
    optimizer.step()
    assert {name: array.tolist() for name, array in optimizer.state_dict().items()} == {
        "param_groups.0.params": [0],
        "param_groups.0.lr": 0.5,
        "param_groups.0.betas": [0.9, 0.999],
        "param_groups.0.eps": 1e-8,
        "param_groups.0.weight_decay": 0.01,
        "param_groups.1.params": [1],
        "param_groups.1.lr": 0.001,
        "param_groups.1.betas": [0.9, 0.999],
        "param_groups.1.eps": 1e-8,
        "param_groups.1.weight_decay": 0.01,
        "state.1.step": 1,
        "state.1.exp_avg": pytest.approx([0.1]),
        "state.1.exp_avg_sq": pytest.approx([0.001]),
    }


def changed(**entries):
    """Return a change of a state: entries set, or removed if they are None."""
    named = {name.replace("__", "."): value for name, value in entries.items()}
    return lambda state: {n: v for n, v in (state | named).items() if v is not None}


WRONG_STATES = {
    "a moment is missing": (changed(state__0__exp_avg=None), "missing state.0.exp_avg$"),
    "the number of steps is missing": (changed(state__0__step=None), "missing state.0.step"),
    "an option is missing": (changed(param_groups__0__lr=None), "missing param_groups.0.lr"),
    "one parameter too many": (
        changed(state__3__exp_avg=np.zeros(1)),
        "unexpected state.3.exp_avg",
    ),
    "one group too many": (changed(param_groups__1__lr=0.1), "unexpected param_groups.1.lr"),
    "another shape": (
        changed(state__0__exp_avg=np.zeros((2, 3), np.float32)),
        r"state.0.exp_avg is float32 of shape \(2, 3\), expected float32 of shape \(3, 2\)",
    ),
    "digits would be lost": (
        changed(state__0__exp_avg=np.zeros((3, 2))),
        "state.0.exp_avg is float64 .* expected float32",
    ),
    "steps that are no integer": (changed(state__0__step=1.5), "state.0.step is float64"),
    "negative steps": (changed(state__0__step=-1), "state.0.step is negative"),
    "a negative square": (
        changed(state__0__exp_avg_sq=np.full((3, 2), -1, np.float32)),
        "state.0.exp_avg_sq is negative",
    ),
    "NaN": (
        changed(state__0__exp_avg=np.full((3, 2), np.nan, np.float32)),
        "state.0.exp_avg holds NaN or infinity",
    ),
    "texts": (changed(state__0__exp_avg=np.full((3, 2), "a")), "state.0.exp_avg is <U1"),
    "other parameters": (
        changed(param_groups__0__params=[0, 2, 1]),
        r"params are \[0, 2, 1\], expected \[0, 1, 2\]",
    ),
    "fewer parameters": (changed(param_groups__0__params=[0, 1]), r"shape \(2,\), expected"),
    "a negative rate": (changed(param_groups__0__lr=-1.0), "lr must not be negative"),
    "a beta of 1": (changed(param_groups__0__betas=[0.9, 1.0]), "beta must lie in"),
    "the state of SGD": (
        lambda state: ld.SGD(some_parameters(), momentum=0.9).state_dict(),
        "missing param_groups.0.betas; .*unexpected param_groups.0.momentum",
    ),
}


@pytest.mark.parametrize("name", WRONG_STATES)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(name):
    change, message = WRONG_STATES[name]
    params = some_parameters()
    optimizer = ld.AdamW(params, lr=0.1)
    some_steps(optimizer, params, 0)
    before = optimizer.state_dict()
    state = change(a_state())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == repr(before)


def a_state():
    params = some_parameters()
    optimizer = ld.AdamW(params, lr=0.2)
    some_steps(optimizer, params, 1)
    return optimizer.state_dict()


# ----------------------------------------------------------------------------- LoRA+


def low_rank(**options):
    rng = np.random.default_rng(0)
    model = ld.MLP([4, 3, 2], rng=rng)
    config = ld.LoraConfig(r=2, target_modules="all-linear", **options)
    return ld.get_peft_model(model, config, rng=rng)


def groups_by_name(model, groups):
    names = {p: name.removeprefix("base_model.") for name, p in model.named_parameters()}
    return [({names[p] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups]


def test_lora_plus_gives_b_and_vectors_the_higher_rate_and_vectors_no_decay():
    model = low_rank(use_dora=True, bias="lora_only")
    layers = [f"layers.{i}." for i in (0, 2)]
    assert groups_by_name(model, ld.lora_plus(model, 0.01, 4, weight_decay=0.3)) == [
        ({i + "A" for i in layers}, 0.01, 0.3),
        ({i + "B" for i in layers}, 0.04, 0.3),
        ({i + name for i in layers for name in ("m", "base_layer.bias")}, 0.04, 0.0),
    ]


def test_lora_plus_is_what_its_groups_say():
    plus, plain = low_rank(), low_rank()
    x = np.ones((5, 4))
    optimizer = ld.SGD([{**g, "lr": g["lr"]} for g in without_decay(ld.lora_plus(plus, 0.1, 4))])
    (plus(x) * plus(x)).sum().backward()
    (plain(x) * plain(x)).sum().backward()
    optimizer.step()
    ld.SGD(plain.parameters(), lr=0.1).step()
    start = low_rank().base_model.layers[0]
    one, other = plus.base_model.layers[0], plain.base_model.layers[0]
    assert_allclose(one.B.data - start.B.data, 4 * (other.B.data - start.B.data), rtol=1e-6)
    assert_array_equal(one.A.data, other.A.data)


def without_decay(groups):
    return [{n: v for n, v in g.items() if n != "weight_decay"} for g in groups]


@pytest.mark.parametrize(
    ("use_dora", "plus", "left"), [(False, False, 1), (True, False, 0.905), (True, True, 1)]
)
def test_decay_shrinks_doras_merged_weight_unless_m_is_exempt(use_dora, plus, left):
    """1000 steps without a gradient at η = λ = 0.01."""
    base = ld.Linear(4, 3, rng=np.random.default_rng(0))
    kind = ld.DoRALinear if use_dora else ld.LoRALinear
    layer = kind(base, r=2, lora_alpha=4, rng=np.random.default_rng(1))
    params = ld.lora_plus(layer, 0.01, 1, weight_decay=0.01) if plus else layer.parameters()
    optimizer = ld.AdamW(params, lr=0.01)
    for p in layer.trainable_parameters():
        p.grad = np.zeros_like(p.data)
    for _ in range(1000):
        optimizer.step()
    assert_allclose(layer.merge().weight.data / base.weight.data, left, atol=5e-4)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (lambda: ld.MLP([4, 3]), {}, ValueError, "needs a B to train"),
        (lambda: low_rank().requires_grad_(False), {}, ValueError, "needs a B to train"),
        (low_rank, {"ratio": 0}, ValueError, "ratio must be positive, not 0"),
        (low_rank, {"ratio": -1}, ValueError, "ratio must not be negative, not -1"),
        (low_rank, {"ratio": "x"}, TypeError, "ratio must be a number"),
        (low_rank, {"lr": math.nan}, ValueError, "lr must be finite"),
        (low_rank, {"weight_decay": -1}, ValueError, "weight_decay must not be negative"),
    ],
)
def test_lora_plus_refuses(model, options, error, message):
    with pytest.raises(error, match=message):
        ld.lora_plus(model(), **{"lr": 0.1, **options})


def test_a_subclass_of_ones_own_may_have_attributes_but_no_options():
    class Mine(ld.SGD):
        def __init__(self, params, lr):
            self.note = "mine"
            super().__init__(params, lr=lr)

    p = parameter()
    optimizer = Mine([p], lr=0.1)
    assert optimizer.note == "mine"
    for name in ("lr", "momentum"):
        with pytest.raises(AttributeError, match=rf"param_groups\[0\]\['{name}'\]"):
            setattr(optimizer, name, 0.0)


@every_optimizer
def test_an_optimizer_can_be_referred_to_wrapped_and_not_emptied(make):
    p = parameter()
    optimizer = make([p], lr=0.1)
    assert weakref.ref(optimizer)() is optimizer
    steps, step = [], optimizer.step
    optimizer.step = lambda factor=1.0: (steps.append(factor), step(factor))
    p.grad = np.ones(p.shape)
    optimizer.step()
    assert steps == [1.0]
    for name in ("param_groups", "state"):
        with pytest.raises(AttributeError, match=name):
            setattr(optimizer, name, ())
    make(dict.fromkeys([parameter()]).keys(), lr=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-50])
def test_without_epsilon_a_gradient_whose_square_is_0_does_not_move(dtype, eps):
    p = mg.Tensor(np.ones(3, dtype), requires_grad=True)
    number = mg.Tensor(np.ones((), dtype), requires_grad=True)
    optimizer = ld.AdamW([p, number], lr=0.01, eps=eps, weight_decay=0)
    p.grad, number.grad = np.array([0.0, 1e-30, 1.0], dtype), np.zeros((), dtype)
    optimizer.step()
    assert number.item() == 1
    assert optimizer.state[p]["exp_avg"].dtype == dtype
    moved = 0.99 if dtype == np.float64 else 1.0  # its square is 1e-60, which float32 does not have
    assert_allclose(p.data, [1, moved, 0.99], rtol=1e-6)
