"""The chain rule: what a graph remembers, when it forgets, and which work is not done."""

import asyncio
import contextlib
import copy
import pickle
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from interrupting import interrupted_by_a_timer, needs_timers
from numpy.testing import assert_allclose, assert_array_equal

import minigrad as mg
from minigrad.engine import Node, Outline, ancestry

DEEP = 100_000


def leaf(value):
    return mg.Tensor(np.asarray(value, dtype=float), requires_grad=True)


def chain(x, length):
    for _ in range(length):
        x = x + 1
    return x


@pytest.fixture
def spy(monkeypatch):
    """Return a function that notes, for an op, the argument positions whose rules are called."""

    def watch(op):
        called = []

        def watched(position, rule):
            def noting(*args, **params):
                called.append(position)
                return rule(*args, **params)

            return noting

        monkeypatch.setattr(op, "vjps", tuple(watched(i, rule) for i, rule in enumerate(op.vjps)))
        return called

    return watch


# ----------------------------------------------------------------------------- sums over paths


def test_a_tensor_used_twice_receives_both_cotangents():
    a = leaf(3.0)
    b = a + a
    c = b + b
    c.backward()
    assert a.grad == 4


def test_every_path_counts_and_only_once():
    x = leaf(2.0)
    h = x * x
    y = h * x + h  # x³ + x²
    y.backward()
    assert x.grad == 3 * 2**2 + 2 * 2


def test_sixty_doublings_walk_sixty_tensors_not_two_to_the_sixty_paths():
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert y.item() == x.grad == 2.0**60


def test_gradients_add_up_over_backward_calls():
    x = leaf([1.0, 2.0])
    (3 * x).sum().backward()
    (x * x).sum().backward()
    assert_array_equal(x.grad, [3 + 2 * 1, 3 + 2 * 2])


def test_adding_to_a_gradient_leaves_the_earlier_array_alone():
    x = leaf([1.0, 2.0])
    (3 * x).sum().backward()
    earlier = x.grad
    (3 * x).sum().backward()
    assert_array_equal(earlier, [3, 3])
    assert_array_equal(x.grad, [6, 6])


def test_two_leaves_with_the_same_cotangent_own_their_gradients():
    a, b, upstream = leaf([1.0, 2.0]), leaf([3.0, 4.0]), np.ones(2)
    (a + b).backward(upstream)
    a.grad[0] = upstream[1] = 99
    assert_array_equal(b.grad, [1, 1])
    assert_array_equal(a.grad, [99, 1])


def test_a_leaf_is_its_own_result():
    x = leaf(5.0)
    x.backward()
    assert x.grad == 1


def test_a_broadcast_argument_sums_over_its_repetitions():
    column, row = leaf([[1.0], [2.0]]), leaf([10.0, 20.0, 30.0])
    (column * row).sum().backward()
    assert_array_equal(column.grad, [[60], [60]])
    assert_array_equal(row.grad, [3, 3, 3])


# ----------------------------------------------------------------------------- depth and memory


def test_a_deep_chain_goes_forward_and_back_without_recursion():
    x = leaf(0.0)
    y = chain(x, DEEP)
    y.backward()
    assert y.item() == DEEP
    assert x.grad == 1


def test_a_deep_chain_can_be_dropped_without_going_back(no_gc):
    start = leaf(0.0)
    memory = weakref.ref(start)
    y = chain(start, DEEP)
    del start
    assert memory() is not None
    del y
    assert memory() is None


def test_a_dropped_graph_is_freed_without_the_garbage_collector(no_gc):
    x = leaf([1.0, 2.0])
    h = mg.exp(x)
    y = (h * h).sum()
    memories = [weakref.ref(h), weakref.ref(y), *map(weakref.ref, ancestry(y)[1:])]
    del h, y
    assert [memory() for memory in memories] == [None] * (2 + 3)


def test_a_recorded_backward_pass_is_freed_without_the_garbage_collector(no_gc):
    x = leaf([1.0, 2.0])
    slope = mg.grad((x**3).sum(), x, create_graph=True)
    memories = [weakref.ref(node) for node in ancestry(slope) if node is not x]
    assert memories
    del slope
    assert [memory() for memory in memories] == [None] * len(memories)


def test_backward_frees_the_graph_while_the_result_lives_on(no_gc):
    x = leaf([1.0, 2.0])
    h = mg.exp(x)
    y = h.sum()
    memory = weakref.ref(h.data)
    del h
    assert memory() is not None
    y.backward()
    assert memory() is None
    assert y.item() == np.exp([1, 2]).sum()


# ----------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("f", "n"),
    [
        pytest.param(lambda h: mg.relu(h + 1), 0, id="relu reads its result"),
        pytest.param(lambda h: mg.relu(h) + 1, 1, id="a sum reads nothing"),
        pytest.param(lambda h: mg.sum(h + 1) * 2, 0, id="a sum over an axis has a shape"),
        pytest.param(lambda h: (h + 1).reshape(-1).T, 0, id="shapes read nothing"),
        pytest.param(lambda h: mg.linear(h, SQUARE, h * 2), 0, id="no input and no addend"),
        pytest.param(lambda h: mg.tanh(mg.exp(h)), 1, id="exp and tanh read their results"),
        pytest.param(lambda h: h * h, 1, id="both factors, for both are wanted"),
        pytest.param(lambda h: mg.concatenate([h, h * 2, h * 3]), 0, id="parts have places"),
        pytest.param(lambda h: (h + 1)[2:] + (h + 1)[:-2], 0, id="and so has an entry"),
    ],
)
def test_a_graph_keeps_only_what_its_rules_read(f, n):
    """n arrays besides the result; h is a result itself, which nobody else holds."""
    x = leaf(SQUARE)
    tracemalloc.start()
    try:
        y = f(x * 1)
        held = tracemalloc.get_traced_memory()[0] - y.data.nbytes
    finally:
        tracemalloc.stop()
    assert held // SQUARE.nbytes == n


SQUARE = np.ones((100, 100))


def test_in_the_place_of_what_is_not_read_stands_its_outline():
    x, w, b = leaf([[1.0, 2.0]]), mg.Tensor([[3.0, 4.0]]), np.ones(1)
    h = mg.exp(x)
    of_x, of_w, of_b = mg.linear(h, w, b).inputs
    assert_array_equal(of_w, w.data)
    for outline, kind, array in [(of_x, Node, h.data), (of_b, Outline, b)]:
        assert type(outline) is kind
        for name in ("shape", "dtype", "ndim", "size"):
            assert getattr(outline, name) == getattr(array, name)
    assert repr(of_x) == "<Node of exp, shape (1, 2), float64>"


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(lambda g, _y, _a: g * _a, id="times"),
        pytest.param(lambda g, _y, _a: _a * g, id="times, turned"),
        pytest.param(lambda g, _y, _a: g * np.asarray(_a), id="as an array"),
        pytest.param(lambda g, _y, _a: np.where(_a == 0, 0.0, g), id="compared"),
        pytest.param(lambda g, _y, _a: np.where(_a != 0, g, 0.0), id="compared, turned"),
        pytest.param(lambda g, _y, _a: np.where(_a, g, 0.0), id="as a condition"),
    ],
)
def test_a_rule_that_reads_what_it_said_it_would_not_is_refused(rule):
    """This is about results.  A leaf always has its array, so gradcheck makes a result of it."""
    misleading = mg.ops.Op(lambda a: a * a / 2, (rule,))
    with pytest.raises(TypeError, match="underscore"):
        misleading(mg.exp(leaf([1.0, 2.0]))).sum().backward()
    with pytest.raises(TypeError, match="underscore"):
        mg.gradcheck(misleading, np.array([1.0, 2.0]))


def test_the_parameters_that_a_rule_is_not_given_by_position_do_not_count():
    def rule(g, y, *arrays, _how="well", **_more):
        return g * arrays[1]

    product = mg.ops.Op(lambda a, b: a * b, (rule, lambda g, y, *arrays, **_more: g * arrays[0]))
    x = leaf([1.0, 2.0])
    product(mg.exp(x), mg.exp(-x)).sum().backward()
    assert_allclose(x.grad, [0, 0], atol=1e-15)


def test_the_rules_of_any_number_of_arrays_may_read_differently():
    def each(i):
        return (lambda g, _y, a, b: g * b) if i == 0 else (lambda g, _y, a, _b: g * a)

    product = mg.ops.Op(lambda a, b: a * b, (), each)
    x = leaf([1.0, 2.0])
    product(mg.exp(x), mg.exp(-x)).sum().backward()
    assert_allclose(x.grad, [0, 0], atol=1e-15)


def test_an_op_of_any_number_of_arrays_keeps_a_number_of_plans():
    plus = mg.ops.Op(lambda *arrays: sum(arrays), (), lambda i: lambda g, _y, *_arrays: g)
    for way in range(1, 512):
        row = [mg.Tensor([1.0], requires_grad=bool(way >> i & 1)) for i in range(9)]
        plus(*row).backward()
        assert [x.grad is not None for x in row] == [x.requires_grad for x in row]
    assert len(plus.plans) == 256


# ----------------------------------------------------------------------------- whose array it is


def test_no_cotangent_is_added_into_what_somebody_else_has():
    """The upstream gradient, the owner of a view, an array that a rule returns every time."""
    x, z = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    q, p = z + 0.0, x + z
    (2 * ((q + p) + 3 * x)).sum().backward()
    assert_array_equal([x.grad, z.grad], [[8, 8], [4, 4]])

    x, z = leaf(np.ones((2, 2))), leaf(np.ones((2, 2)))
    q, p = z * 1.0, x.T
    (2 * ((q + p) + 3 * x)).sum().backward()
    assert_array_equal([x.grad[0], z.grad[0]], [[8, 8], [2, 2]])

    always = np.zeros(2)
    step = mg.ops.Op(np.sign, (lambda g, _y, _a: always,))
    for _ in range(3):
        x = leaf([1.0, 2.0])
        (step(x) + 3 * x).sum().backward()
        assert_array_equal(x.grad, [3, 3])


def test_the_parts_of_a_tensor_go_back_into_one_array_of_their_own():
    x = leaf(np.ones(3))
    upstream = np.array([1.0, 2.0, 3.0])
    h = x * 1
    parts = [h + 0, *(h[i : i + 1] * 10 for i in range(3)), h[1:], h * 1]
    y = sum(part.sum() for part in parts[1:5]) + (parts[0] * upstream).sum() + parts[5].sum()
    y.backward()
    assert_array_equal(x.grad, upstream + [10, 10, 10] + [0, 1, 1] + 1)
    assert_array_equal(upstream, [1, 2, 3])
    two = leaf([1.0, 2.0])
    (a, b) = (h[0] for h in (two, two))
    mg.grad(a + b, [two, a, b])
    assert_array_equal(mg.grad(a + b, two).data, [2, 0])


# ----------------------------------------------------------------------------- new leaves


def test_a_constant_that_becomes_a_leaf_is_born_then():
    w = leaf([1.0, 2.0])
    h = w * w
    h.sum().backward()  # which releases the graph
    c = h.detach()
    c.requires_grad = True
    assert_array_equal(mg.grad((c * h).sum(), c).data, [1, 4])


def test_the_first_tensor_of_a_process_may_be_a_constant_that_becomes_a_leaf():
    code = (
        "import minigrad as mg; c = mg.exp(1.0); c.requires_grad = True; y = c * c; "
        "print(mg.grad(y, c).item()); y.backward(); print(c.grad)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert [float(line) for line in printed.split()] == pytest.approx([2 * np.e] * 2)


# ----------------------------------------------------------------------------- released graphs


def test_a_second_backward_is_refused_and_names_the_way_out():
    x = leaf(3.0)
    y = x * x
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()
    assert x.grad == 6


def test_a_retained_graph_can_be_walked_again():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad == 3 * 6
    with pytest.raises(RuntimeError, match="released"):
        y.backward()


def test_results_that_share_a_released_part_are_refused_before_any_gradient_is_written():
    x, w = leaf(2.0), leaf(5.0)
    shared = x * x
    first, second = shared * 3, shared * w
    first.backward()
    with pytest.raises(RuntimeError, match="released"):
        second.backward()
    with pytest.raises(RuntimeError, match="released"):
        mg.grad(second, w)
    assert x.grad == 12
    assert w.grad is None


def test_results_that_share_a_retained_part_add_up():
    x, w = leaf(2.0), leaf(5.0)
    shared = x * x
    first, second = shared * 3, shared * w
    first.backward(retain_graph=True)
    second.backward()
    assert x.grad == 3 * 4 + 5 * 4
    assert w.grad == 4


# ----------------------------------------------------------------------------- refusals


def constant():
    return mg.Tensor([1.0, 2.0]).sum(), None


def vector():
    return leaf([1.0, 2.0]) * 2, None


def wrong_shape(gradient_shape):
    return lambda: (leaf(np.ones((2, 3))) * 2, np.ones(gradient_shape))


REFUSALS = [
    pytest.param(constant, RuntimeError, "requires a gradient", id="needs no gradient"),
    pytest.param(vector, RuntimeError, r"\(2,\)", id="vector without a gradient"),
    pytest.param(wrong_shape(()), ValueError, r"\(\).*\(2, 3\)", id="scalar gradient"),
    pytest.param(wrong_shape((3,)), ValueError, r"\(3,\).*\(2, 3\)", id="row gradient"),
    pytest.param(wrong_shape((1, 3)), ValueError, r"\(1, 3\).*\(2, 3\)", id="stretched gradient"),
    pytest.param(wrong_shape((1, 2, 3)), ValueError, r"\(1, 2, 3\)", id="one axis more"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSALS)
def test_backward_refuses(make, error, message):
    y, gradient = make()
    with pytest.raises(error, match=message):
        y.backward(gradient)


@pytest.mark.parametrize(("make", "error", "message"), REFUSALS)
def test_grad_refuses(make, error, message):
    y, gradient = make()
    with pytest.raises(error, match=message):
        mg.grad(y, [], gradient)


def test_a_refused_backward_leaves_the_graph_and_every_gradient_untouched():
    x = leaf([1.0, 2.0])
    x.grad = kept = np.array([7.0, 7.0])
    y = x * x
    with pytest.raises(RuntimeError):
        y.backward()
    with pytest.raises(ValueError, match="shape"):
        y.backward(np.ones(3))
    assert x.grad is kept
    y.backward(np.ones(2))
    assert_array_equal(x.grad, [7 + 2, 7 + 4])


def test_the_gradient_weights_the_entries_of_the_result():
    x = leaf([1.0, 2.0, 3.0])
    (x * x).backward([1, 0, -1])
    assert_array_equal(x.grad, [2, 0, -6])


def test_a_single_number_of_any_shape_needs_no_gradient():
    x = leaf([[[3.0]]])
    (x * x).backward()
    assert_array_equal(x.grad, [[[6]]])


# ----------------------------------------------------------------------------- grad


def test_grad_differentiates_to_leaves_intermediates_and_the_result_itself():
    x = leaf(2.0)
    h = x * x
    y = 3 * h
    assert [g.item() for g in mg.grad(y, [x, h, y])] == [12, 3, 1]


def test_grad_returns_a_tensor_for_a_tensor_and_a_list_for_several():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    assert isinstance(mg.grad(y, x), mg.Tensor)
    assert isinstance(mg.grad(y, [x]), list)
    assert mg.grad(y, ()) == []


def test_the_gradient_of_what_was_not_used_is_zeros_of_its_shape_and_dtype():
    x, unused = leaf(2.0), mg.Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    after = x * 5
    _, g, of_later = mg.grad(x * x, [x, unused, after])
    assert_array_equal(g.data, np.zeros((2, 3), np.float32), strict=True)
    assert of_later.item() == 0


def test_grad_writes_to_no_tensor_and_keeps_the_graph():
    x = leaf(3.0)
    y = x * x
    first, second = mg.grad(y, x), mg.grad(y, x)
    assert first.item() == second.item() == 6
    assert x.grad is None
    y.backward()
    assert x.grad == 6


def test_grad_refuses_what_requires_no_gradient_and_says_which():
    x, frozen = leaf(2.0), mg.Tensor(np.ones((4, 5)))
    with pytest.raises(RuntimeError, match=r"tensor 1 .*\(4, 5\)"):
        mg.grad((x * frozen).sum(), [x, frozen])


def test_the_gradients_share_no_memory():
    a, b, upstream = leaf([1.0, 2.0]), leaf([1.0, 2.0]), np.ones(2)
    left, right = mg.grad(a + b, [a, b], upstream)
    assert not np.shares_memory(left.data, right.data)
    assert not np.shares_memory(left.data, upstream)


# ----------------------------------------------------------------------------- work not done


def test_grad_does_no_work_outside_the_path(spy):
    called, elsewhere = spy(mg.mul), spy(mg.exp)
    x, w = leaf(2.0), leaf(3.0)
    y = mg.exp(w) + x * x
    assert mg.grad(y, x).item() == 4
    assert called == [0, 1]
    assert elsewhere == []


def test_grad_stops_at_the_intermediate_that_was_asked_for(spy):
    called = spy(mg.exp)
    h = mg.exp(leaf(0.0))
    assert mg.grad(h * 5, h).item() == 5
    assert called == []


@pytest.mark.parametrize("trained", [0, 1])
def test_the_rule_of_a_frozen_argument_is_never_called(spy, trained):
    called = spy(mg.matmul)
    arguments = [mg.Tensor(np.ones((2, 2)), requires_grad=i == trained) for i in (0, 1)]
    mg.matmul(*arguments).sum().backward()
    assert called == [trained]
    assert arguments[1 - trained].grad is None


def test_a_computation_on_frozen_tensors_leaves_no_trace(no_gc):
    frozen = mg.Tensor([1.0, 2.0])
    h = mg.exp(frozen)
    y = h + leaf([1.0, 1.0])
    memory = weakref.ref(h.data)
    del h
    assert memory() is None
    assert len(ancestry(y)) == 2


# ----------------------------------------------------------------------------- no_grad


def records():
    return (leaf(1.0) * 2).requires_grad


def test_no_grad_records_nothing_and_keeps_no_memory(no_gc):
    x = leaf([1.0, 2.0])
    with mg.no_grad():
        h = x * x
        y = h.sum()
    memory = weakref.ref(h.data)
    del h
    assert memory() is None
    assert y.item() == 5
    assert not y.requires_grad
    assert records()


def test_no_grad_nests():
    with mg.no_grad():
        with mg.no_grad():
            assert not records()
        assert not records()
    assert records()


def test_no_grad_ends_on_an_exception():
    with pytest.raises(KeyError), mg.no_grad():
        raise KeyError
    assert records()


def test_no_grad_decorates():
    @mg.no_grad()
    def recording():
        return records()

    assert [recording(), recording(), records()] == [False, False, True]


def test_no_grad_concerns_its_own_thread_only():
    elsewhere = []
    with mg.no_grad():
        thread = threading.Thread(target=lambda: elsewhere.append(records()))
        thread.start()
        thread.join()
        assert not records()
    assert elsewhere == [True]


@needs_timers
def test_an_interrupt_never_leaves_recording_paused():
    @mg.no_grad()
    def decorated():
        return mg.is_grad_enabled()

    def work():
        with mg.no_grad():
            assert not decorated()
            with mg.no_grad():
                pass
            assert not mg.is_grad_enabled()
        assert mg.is_grad_enabled()

    assert all(mg.is_grad_enabled() for _ in interrupted_by_a_timer(work, 3000))


@needs_timers
def test_an_interrupt_inside_of_a_no_grad_does_not_end_it():
    def work():
        with mg.no_grad():
            pass
        with again:
            pass

    with mg.no_grad():
        again = mg.no_grad()
        assert not any(mg.is_grad_enabled() for _ in interrupted_by_a_timer(work, 3000))
    assert mg.is_grad_enabled()


def test_a_no_grad_can_be_copied_and_takes_nothing():
    scope = mg.no_grad()
    with scope, copy.deepcopy(scope), pickle.loads(pickle.dumps(scope)):
        assert not mg.is_grad_enabled()
    with pytest.raises(TypeError, match=r"no_grad takes nothing: write 'with no_grad\(\):'"):
        mg.no_grad(len)


def test_one_no_grad_can_be_entered_again_inside_and_afterwards():
    scope = mg.no_grad()
    for _ in range(2):
        with scope:
            with scope:
                assert not records()
            assert not records()
        assert records()


def test_no_grad_may_be_left_by_an_exit_stack():
    with contextlib.ExitStack() as stack:
        stack.enter_context(mg.no_grad())
        assert not records()
    assert records()


def test_each_call_of_what_no_grad_decorates_has_one_of_its_own():
    @mg.no_grad()
    def nested(depth):
        return not records() and (depth == 0 or (nested(depth - 1) and not records()))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(nested, [5] * 40))
    assert records()


def test_one_no_grad_is_not_shared_by_threads():
    scope = mg.no_grad()
    with scope, ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="make one for each"):
            pool.submit(scope.__enter__).result()
        assert pool.submit(records).result()
        assert not records()
    assert records()


def test_no_grad_takes_no_arguments():
    with pytest.raises(TypeError):
        mg.no_grad(records)


# ----------------------------------------------------------------------------- no_grad and asyncio


def test_tasks_on_one_thread_do_not_see_each_others_no_grad():
    async def paused(turns):
        with mg.no_grad():
            for _ in range(turns):
                await asyncio.sleep(0)
                found.append(records())

    async def free():
        for _ in range(5):
            await asyncio.sleep(0)
            found_free.append(records())

    async def both():
        await asyncio.gather(paused(3), free(), paused(5))

    found, found_free = [], []
    asyncio.run(both())
    assert found == [False] * 8
    assert found_free == [True] * 5


def test_a_task_is_inside_of_the_no_grad_that_it_is_started_in_while_that_lasts():
    async def reporting():
        found.append(records())
        await left.wait()
        found.append(records())

    async def starting():
        with mg.no_grad():
            task = asyncio.create_task(reporting())
            await asyncio.sleep(0)
        left.set()
        await task

    found, left = [], asyncio.Event()
    asyncio.run(starting())
    assert found == [False, True]


def test_one_no_grad_is_not_shared_by_tasks():
    scope = mg.no_grad()

    async def holding():
        with scope:
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def joining():
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="make one for each"):
            scope.__enter__()
        assert records()

    async def both():
        await asyncio.gather(holding(), joining())

    asyncio.run(both())
    assert records()


def test_another_thread_records_even_in_the_context_of_a_task_that_does_not():
    async def asking():
        with mg.no_grad():
            return await asyncio.to_thread(records), records()

    assert asyncio.run(asking()) == (True, False)


def test_a_constant_made_under_no_grad_is_a_constant_of_a_later_graph():
    x = leaf(3.0)
    with mg.no_grad():
        square = x * x
    (square * x).backward()
    assert x.grad == 9


def test_threads_walk_their_own_graphs_over_shared_leaves():
    x, found = leaf(2.0), {}
    start = threading.Barrier(4)

    def walk(n):
        start.wait()
        found[n] = [mg.grad(chain(x * n, 200), x).item() for _ in range(10)]

    threads = [threading.Thread(target=walk, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [n] * 10 for n in range(4)}


# ----------------------------------------------------------------------------- values under a graph


def test_detach_shares_memory_and_stops_the_gradient():
    x = leaf([1.0, 2.0])
    stopped = x.detach()
    assert np.shares_memory(stopped.data, x.data)
    assert not stopped.requires_grad
    (x * stopped).sum().backward()
    assert_array_equal(x.grad, [1, 2])


def test_detach_of_a_result_frees_its_graph(no_gc):
    h = mg.exp(leaf(1.0))
    memory = weakref.ref(ancestry(h)[-1])
    h = h.detach()
    assert memory() is None
    assert h.item() == np.exp(1.0)


def test_a_leaf_assigned_between_forward_and_backward_does_not_corrupt_the_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    x.data = np.array([100.0, 200.0])
    y.backward()
    assert_array_equal(x.grad, [2, 4])


RESULTS = {
    "arithmetic": lambda x: x * 2,
    "view of a leaf": lambda x: x.reshape(2, 1),
    "slice": lambda x: x[:1],
    "reduction": lambda x: x.sum(),
    "constant": lambda x: x.detach() * 2,
}


@pytest.mark.parametrize("f", RESULTS.values(), ids=RESULTS)
def test_results_are_read_only(f):
    y = f(leaf([1.0, 2.0]))
    with pytest.raises(ValueError, match="read-only"):
        y.data[...] = 0


def test_a_view_being_read_only_leaves_its_leaf_writable():
    x = leaf([1.0, 2.0])
    x.reshape(2, 1)
    x.data[0] = 5
    assert_array_equal(x.data, [5, 2])


# ----------------------------------------------------------------------------- higher derivatives


def test_a_third_derivative():
    x = leaf([1.0, -2.0, 0.5])
    y = (x**4).sum()
    for expected in (4 * x.data**3, 12 * x.data**2, 24 * x.data):
        g = mg.grad(y, x, create_graph=True)
        assert_allclose(g.data, expected, rtol=1e-14)
        y = g.sum()


def test_without_create_graph_a_gradient_is_a_constant():
    x = leaf(2.0)
    assert not mg.grad(x**3, x).requires_grad


def test_backward_through_a_gradient_fills_the_leaf():
    x = leaf(2.0)
    slope = mg.grad(x**3, x, create_graph=True)
    (slope * slope).backward()  # d(9x⁴)/dx
    assert x.grad == 36 * 2**3


def test_the_gradient_itself_can_be_differentiated_by_its_upstream():
    x, v = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    g = mg.grad(x * x, x, v, create_graph=True)  # 2xv
    assert_array_equal(mg.grad(g.sum(), v).data, 2 * x.data)


class TestHessianVectorProduct:
    """The Hessian of logistic regression is Xᵀ diag(p(1 − p)) X / n, p = σ(Xw)."""

    n = 7
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    t = rng.integers(0, 2, n).astype(float)
    w = rng.normal(size=3)
    v = rng.normal(size=3)

    def gradient(self, w, create_graph=False):
        p = mg.sigmoid(self.X @ w)
        loss = -mg.mean(self.t * mg.log(p) + (1 - self.t) * mg.log(1 - p))
        return mg.grad(loss, w, create_graph=create_graph)

    def product(self):
        w = leaf(self.w)
        return mg.grad(mg.sum(self.gradient(w, create_graph=True) * self.v), w).data

    def test_is_the_closed_form(self):
        p = 1 / (1 + np.exp(-self.X @ self.w))
        expected = self.X.T @ (p * (1 - p) * (self.X @ self.v)) / self.n
        assert_allclose(self.product(), expected, rtol=1e-12)

    def test_is_the_slope_of_the_gradient(self):
        h = 6e-6
        up, down = (self.gradient(leaf(self.w + s * h * self.v)).data for s in (1, -1))
        assert_allclose(self.product(), (up - down) / (2 * h), rtol=1e-7)


# ----------------------------------------------------------------------------- what is written


def test_a_backward_pass_writes_to_leaves_only():
    x = leaf([1.0, 2.0])
    y = x * 2
    z = y.sum()
    z.backward()
    assert y.grad is z.grad is None
    assert_array_equal(x.grad, [2, 2])


@pytest.mark.parametrize(
    "f",
    [lambda a, b: a + b, lambda a, b: a.T + b, lambda a, b: a.T + b.T],
    ids=["a + b", "a.T + b", "a.T + b.T"],
)
def test_no_two_leaves_share_a_gradient_that_was_handed_on_to_both(f):
    a, b = leaf(np.ones((2, 2))), leaf(np.ones((2, 2)))
    (f(a, b) * 2).sum().backward()
    a.grad[...] = 5
    assert_array_equal(b.grad, np.full((2, 2), 2))


def test_a_gradient_is_added_in_the_dtype_of_its_leaf_and_stays_an_array():
    x = mg.Tensor(np.ones(2, np.float32), requires_grad=True)
    x.grad = np.ones(2)
    (x * 3).sum().backward()
    assert_array_equal(x.grad, np.full(2, 4, np.float32), strict=True)
    number = leaf(3.0)
    for _ in range(2):
        (number * 2).backward()
    assert_array_equal(number.grad, np.array(4.0), strict=True)


# ----------------------------------------------------------------------------- what has changed since


def test_the_graph_of_a_gradient_refuses_a_leaf_that_was_assigned_to():
    x = leaf(2.0)
    y = x * x
    x.data = np.array(5.0)
    assert mg.grad(y, x).item() == 4  # of the graph that was recorded
    with pytest.raises(RuntimeError, match=r"leaf of shape \(\) was assigned to"):
        mg.grad(y, x, create_graph=True)


def test_no_gradient_is_written_if_a_rule_fails():
    def broken(g, y, a):
        raise ArithmeticError

    a, b = leaf(3.0), leaf([1.0, 2.0])
    fails = mg.ops.Op(lambda x: x * 1, (broken,))
    for y in ((fails(a) * b).sum(), (b * fails(a)).sum()):
        with pytest.raises(ArithmeticError):
            y.backward()
        assert a.grad is None
        assert b.grad is None


def test_a_graph_that_was_released_further_back_does_not_matter():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.sum().backward()
    z = (y * 3).sum()
    assert_array_equal(mg.grad(z, y).data, [3, 3])
    with pytest.raises(RuntimeError, match="released"):
        mg.grad(z, x)


def test_a_gradient_to_differentiate_again_is_recorded_also_within_no_grad():
    x = leaf(2.0)
    y = x**3
    with mg.no_grad():
        slope = mg.grad(y, x, create_graph=True)
        assert not (x * 2).requires_grad
    assert mg.grad(slope, x).item() == 12


def test_no_grad_refuses_to_decorate_what_runs_later():
    def generator():
        yield

    async def coroutine():
        pass

    async def both():
        yield

    for function in (generator, coroutine, both):
        with pytest.raises(TypeError, match=f"{function.__name__} runs later"):
            mg.no_grad()(function)


def test_whether_results_are_recorded_can_be_asked():
    assert mg.is_grad_enabled()
    with mg.no_grad():
        assert not mg.is_grad_enabled()


@pytest.mark.parametrize("xs", [np.ones(2), [np.ones(2)], 1.0], ids=str)
def test_only_tensors_can_be_differentiated_by(xs):
    with pytest.raises(TypeError):
        mg.grad(leaf(1.0) * 2, xs)


def test_a_result_that_is_no_tensor_cannot_be_differentiated():
    with pytest.raises(TypeError, match="expected a Tensor"):
        mg.grad(np.ones(1), leaf(1.0))


def test_the_gradient_has_the_byte_order_of_its_leaf():
    x = mg.Tensor(np.ones(2, ">f8"), requires_grad=True)
    (x * 2 + x * 3).sum().backward()
    assert x.grad.dtype == x.dtype == np.dtype(">f8")


def test_a_gradient_is_never_the_callers_own_array():
    x, g = leaf(np.ones(3)), mg.Tensor(np.ones(3))
    (x + 1).backward(g)
    assert not np.shares_memory(x.grad, g.data)
    x.grad = None
    x.backward(x.detach())
    assert not np.shares_memory(x.grad, x.data)


# ----------------------------------------------------------------------------- an op while an op runs


def test_a_forward_may_call_an_op():
    def doubled(a):
        return (mg.Tensor(a) * 2).data

    twice = mg.ops.Op(doubled, (lambda g, y, a: g * 2,))
    x = leaf([1.0, 2.0])
    twice(twice(x)).sum().backward()
    assert_array_equal(x.grad, [4, 4])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
def test_a_signal_handler_may_call_an_op_while_an_op_runs():
    def handler(*_):
        answers.append((leaf(3.0) * 2 > 5).item())

    def patient(a):
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while not answers:
            pass
        return a * 1

    answers, before = [], signal.signal(signal.SIGALRM, handler)
    try:
        y = mg.ops.Op(patient, (lambda g, y, a: g,))(leaf(1.0))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert y.item() == 1
    assert answers == [True]


def test_a_finaliser_may_call_an_op_while_an_op_runs():
    def generator():
        try:
            yield
        finally:
            answers.append((leaf(3.0) * 2).item())

    def dropping(a):
        waiting.clear()
        return a * 1

    answers, waiting = [], [generator()]
    next(waiting[0])
    assert mg.ops.Op(dropping, (lambda g, y, a: g,))(leaf(1.0)).item() == 1
    assert answers == [6]


# ----------------------------------------------------------------------------- no_grad while an op runs


def asked_while_an_op_runs(question):
    """Return what ``question()`` returns when it is called inside the forward of an op."""
    answers = []
    op = mg.ops.Op(lambda a: answers.append(question()) or a * 1, (lambda g, y, a: g,))
    op(np.ones(1))
    return answers[0]


def test_what_runs_while_an_op_runs_is_inside_of_the_same_no_grad():
    assert asked_while_an_op_runs(records)
    with mg.no_grad():
        assert not asked_while_an_op_runs(records)
        with mg.no_grad():
            assert not asked_while_an_op_runs(mg.is_grad_enabled)
        assert not asked_while_an_op_runs(records)
    assert asked_while_an_op_runs(records)


def test_no_grad_works_while_an_op_runs():
    def question():
        with mg.no_grad():
            inside = records(), asked_while_an_op_runs(records)
        return *inside, records(), asked_while_an_op_runs(records)

    for _ in range(2):
        assert asked_while_an_op_runs(question) == (False, False, True, True)
    assert records()


def test_a_rule_is_inside_of_the_no_grad_around_the_backward_pass():
    found = []
    op = mg.ops.Op(lambda a: a * 1, (lambda g, y, a: found.append(mg.is_grad_enabled()) or g,))
    x = leaf(1.0)
    y, z = op(x), op(x)
    y.backward()
    with mg.no_grad():
        z.backward()
    assert found == [True, False]


@needs_timers
def test_a_recorded_gradient_leaves_no_grad_as_it_was_if_it_is_interrupted():
    x = leaf(2.0)
    y = x**3

    def work():
        mg.grad(y, x, create_graph=True)
        assert not mg.is_grad_enabled()

    with mg.no_grad():
        assert not any(mg.is_grad_enabled() for _ in interrupted_by_a_timer(work, 2000))
    assert mg.is_grad_enabled()


# ----------------------------------------------------------------------------- interrupted passes


@needs_timers
@needs_timers
def test_an_interrupted_pass_adds_to_all_leaves_or_to_none():
    leaves = [leaf(1.0) for _ in range(50)]

    def work():
        mg.stack(leaves).sum().backward()

    work()
    for _ in interrupted_by_a_timer(work, 300):
        assert len({x.grad.item() for x in leaves}) == 1


def test_a_gradient_that_cannot_be_added_leaves_those_of_all_leaves():
    a, b = leaf(1.0), leaf(2.0)
    a.grad, b.grad = np.float64(1.0), np.array("text")
    with pytest.raises(TypeError):
        (a * b).backward()
    assert a.grad == 1.0


@needs_timers
@needs_timers
def test_an_interrupted_pass_leaves_the_warnings_of_numpy_as_they_were():
    x = leaf(1.0)
    before = np.geterr()
    for _ in interrupted_by_a_timer(lambda: (x * 2).backward(), 2000):
        assert np.geterr() == before


# ----------------------------------------------------------------------------- rules that are wrong

# what a rule for arguments of shape (2, 3) returns, and what the report says of it
NO_COTANGENT = {
    "None": (lambda g: None, "returned a NoneType"),
    "text": (lambda g: "g", "returned a str"),
    "a list of rows": (lambda g: list(g), "returned a list"),
    "a ragged list": (lambda g: [[1.0], [2.0, 3.0]], "returned a list"),
    "complex numbers": (lambda g: np.asarray(g) * 1j, "dtype complex128"),
    "objects": (lambda g: np.asarray(g).astype(object), "dtype object"),
    "a number": (lambda g: 1.0, "shape ()"),
    "one row": (lambda g: g[0], "shape (3,)"),
    "one column": (lambda g: g[:, :1], "shape (2, 1)"),
    "a transpose": (lambda g: g.T, "shape (3, 2)"),
    "more entries": (lambda g: np.ones((2, 6)), "shape (2, 6)"),
    "as many in one row": (lambda g: g.reshape(6), "shape (6,)"),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("wrong", "said"), NO_COTANGENT.values(), ids=NO_COTANGENT)
def test_a_rule_that_returns_no_cotangent_is_named(wrong, said, create_graph):
    def product(a, b):
        return a * b

    op = mg.ops.Op(product, (lambda g, y, a, b: g * b, lambda g, y, a, b: wrong(g)))
    a, b = leaf(np.ones((2, 3))), leaf(np.ones((2, 3)))
    y = op(a, b)
    with pytest.raises((TypeError, ValueError), match="rule of product for argument 1") as report:
        mg.grad(y.sum(), [a, b], create_graph=create_graph)
    assert re.search(re.escape(said), str(report.value))
    with pytest.raises((TypeError, ValueError), match="rule of product for argument 1"):
        y.sum().backward()
    assert a.grad is None
    assert b.grad is None


def test_a_rule_gives_back_also_axes_of_length_1():
    y = mg.ops.Op(lambda a: a * 2, (lambda g, y, a: 2 * g[0],))(leaf([[1.0]]))
    with pytest.raises(ValueError, match=r"shape \(1,\), not one to sum to \(1, 1\)"):
        y.backward()


@pytest.mark.parametrize(
    "cotangent", [2, 2.0, True, np.float32(2), np.array(2), mg.Tensor(2.0), np.array(2, np.uint8)]
)
def test_a_rule_may_return_any_real_number_for_a_number(cotangent):
    x = leaf(3.0)
    y = mg.ops.Op(lambda a: a * 2, (lambda g, y, a: cotangent,))(x)
    for create_graph in (False, True):
        found = mg.grad(y, x, create_graph=create_graph)
        assert found.item() == float(cotangent)
        assert found.dtype == np.float64
    y.backward()
    assert_array_equal(x.grad, np.array(float(cotangent)), strict=True)
