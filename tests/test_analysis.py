"""What the analysis measures: the definitions, the identities they imply, and the models they walk."""

import copy
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
from loradora import analysis
from loradora.analysis import Change, Count

SIZES = [12, 8, 6, 4]
PATHS = ["layers.0", "layers.2", "layers.4"]


@st.composite
def matrices(draw, count=1, zero_rows=False):
    """``count`` matrices of one shape, entries of ordinary size; with rows of zeros only if asked."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = [rng.normal(size=shape) for _ in range(count)]
    if zero_rows:
        for W in found:
            W[draw(hnp.arrays(bool, shape[0]))] = 0
    return found


# ----------------------------------------------------------------------------- magnitude and direction


@given(matrices(zero_rows=True))
def test_magnitude_times_direction_is_the_weight(Ws):
    (W,) = Ws
    m, V = analysis.magnitude_and_direction(W)
    assert np.all(m >= 0)
    assert_allclose(m[:, None] * V, W, rtol=1e-14, atol=1e-300)
    lengths = np.linalg.norm(V, axis=1)
    assert_allclose(lengths, np.where(np.any(W != 0, axis=1), 1, 0), rtol=1e-14)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_squares_that_leave_the_range_do_no_harm(size):
    m, V = analysis.magnitude_and_direction(np.array([[3.0, 4.0]]) * size)
    assert_allclose(m, [5 * size])
    assert_allclose(V, [[0.6, 0.8]])


@given(matrices(2))
def test_change_is_the_definition_of_the_paper(Ws):
    W0, W = Ws
    n0, n = np.linalg.norm(W0, axis=1), np.linalg.norm(W, axis=1)
    cosines = np.sum(W * W0, axis=1) / (n * n0)
    expected = np.mean(abs(n - n0)), np.mean(1 - cosines)
    assert_allclose(analysis.change(W0, W), expected, rtol=1e-12, atol=1e-14)


@given(matrices(2, zero_rows=True))
def test_change_is_symmetric_and_in_its_range(Ws):
    W0, W = Ws
    forth, back = analysis.change(W0, W), analysis.change(W, W0)
    assert_allclose(forth, back, rtol=1e-14)
    assert forth.magnitude >= 0
    assert 0 <= forth.direction <= 2 + 1e-12
    assert analysis.change(W, W) == Change(0, 0)
    assert_allclose(analysis.change(W, -W), (0, 2 if W.any() else 0))


@given(matrices(), st.floats(0.01, 100))
def test_scaling_rows_changes_only_their_magnitude(Ws, factor):
    (W,) = Ws
    moved = analysis.change(W, factor * W)
    expected = abs(factor - 1) * np.linalg.norm(W, axis=1).mean()
    assert_allclose(moved.magnitude, expected, rtol=1e-10, atol=1e-14)
    assert moved.direction < 1e-30


@given(matrices(), st.integers(0, 2**32 - 1))
def test_rotating_the_inputs_changes_only_the_direction(Ws, seed):
    (W,) = Ws
    width = W.shape[1]
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
    assert analysis.change(W, W @ Q).magnitude < 1e-13


def test_a_small_turn_keeps_its_digits():
    """1 − cos of an angle of 1e-7 is 5e-15; computed from the cosine, hardly a digit is left."""
    angle = 1e-7
    W0, W = [[1.0, 0.0]], [[math.cos(angle), math.sin(angle)]]
    assert_allclose(analysis.change(W0, W).direction, angle**2 / 2, rtol=1e-7)


def test_rows_of_zeros_have_a_magnitude_and_no_direction():
    W0, W = [[0.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [0.0, 1.0]]
    assert analysis.change(W0, W) == Change(2.5, 1.0)
    assert analysis.change([[0.0]], [[2.0]]) == Change(2.0, 0.0)


@pytest.mark.parametrize(
    ("W0", "W"), [(np.ones((2, 3)), np.ones((3, 2))), (np.ones((0, 3)), np.ones((0, 3)))]
)
def test_weights_that_cannot_be_compared_are_refused(W0, W):
    with pytest.raises(ValueError, match="cannot compare"):
        analysis.change(W0, W)


@pytest.mark.parametrize(
    "f", [analysis.magnitude_and_direction, analysis.spectrum, analysis.effective_rank]
)
@pytest.mark.parametrize("W", [np.ones(3), np.ones((2, 2, 2)), 1.0])
def test_only_a_matrix_is_a_weight(f, W):
    with pytest.raises(ValueError, match="two axes"):
        f(W)


# ----------------------------------------------------------------------------- correlation


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_correlation_is_pearsons(seed, count):
    points = np.random.default_rng(seed).uniform(size=(count, 2))
    expected = np.corrcoef(points.T)[0, 1]
    changes = [Change(*point) for point in points]
    assert_allclose(analysis.correlation(changes), expected, rtol=1e-9, atol=1e-12)
    assert_allclose(analysis.correlation(iter(changes)), expected, rtol=1e-9, atol=1e-12)
    stretched = [Change(3 * m + 1, 5 * d) for m, d in changes]
    assert_allclose(analysis.correlation(stretched), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, 1e307])
def test_correlation_does_not_ask_how_large_the_changes_are(size):
    """Squares of these are 0 or infinite."""
    points = [(1, 3), (2, 1), (4, 0), (5, 2)]
    expected = np.corrcoef(np.transpose(points))[0, 1]
    found = analysis.correlation([Change(m * size, d * size) for m, d in points])
    assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("points", [[], [(1, 2)], [(1, 2), (1, 3)], [(1, 2), (2, 2)]])
def test_correlation_needs_points_that_differ(points):
    with pytest.raises(ValueError, match="two points"):
        analysis.correlation([Change(*p) for p in points])


# ----------------------------------------------------------------------------- rank


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_a_product_has_at_most_the_rank_of_its_factors(seed, out, width, r):
    rng = np.random.default_rng(seed)
    dW = rng.normal(size=(out, r)) @ rng.normal(size=(r, width))
    sigma = analysis.spectrum(dW)
    assert sigma.shape == (min(out, width),)
    assert np.all(np.diff(sigma) <= 0)
    assert_allclose(np.sum(sigma**2), np.sum(dW**2))
    assert np.all(sigma[r:] <= 1e-13 * sigma[0])
    assert 1 - 1e-9 <= analysis.effective_rank(dW) <= min(r, out, width) + 1e-9


@given(matrices(), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_effective_rank_knows_neither_scale_nor_rotation(Ws, factor, seed):
    (W,) = Ws
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(W.shape[0],) * 2))[0]
    assert_allclose(analysis.effective_rank(factor * Q @ W), analysis.effective_rank(W), rtol=1e-9)


@given(st.integers(1, 6), st.integers(0, 3))
def test_equal_singular_values_count_one_each(k, zeros):
    assert_allclose(analysis.effective_rank(np.diag([7.0] * k + [0.0] * zeros)), k)


def test_no_change_has_no_rank():
    assert analysis.effective_rank(np.zeros((3, 4))) == 0
    assert analysis.effective_rank(np.zeros((3, 0))) == 0


# ----------------------------------------------------------------------------- models


def model_of(use_dora=False, seed=0, **options):
    """A base and a model over it with adapters that do something."""
    rng = np.random.default_rng(seed)
    base = ld.MLP(SIZES, rng=rng, dtype=np.float64)
    options = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", **options}
    model = ld.get_peft_model(base, ld.LoraConfig(use_dora=use_dora, **options), rng=rng)
    for p in model.trainable_parameters():
        p.data[:] += 0.1 * rng.normal(size=p.shape)
    return base, model


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapted_layers_count_with_the_weight_they_act_with(use_dora):
    base, model = model_of(use_dora)
    live = analysis.weight_decomposition(base, model)
    assert list(live) == PATHS
    merged = analysis.weight_decomposition(base, model.merge_and_unload())
    for path in PATHS:
        assert_allclose(live[path], merged[path], rtol=1e-12)
        assert live[path].magnitude > 0 < live[path].direction
    with model.disable_adapter():
        assert set(analysis.weight_decomposition(base, model).values()) == {Change(0, 0)}


@given(st.integers(0, 2**32 - 1))
def test_the_magnitude_of_dora_is_m(seed):
    base, model = model_of(use_dora=True, seed=seed)
    changes = analysis.weight_decomposition(base, model)
    named = dict(model.named_parameters())
    for path in PATHS:
        m, before = (
            named[f"base_model.{path}.m"].data,
            np.linalg.norm(analysis.weights(base)[path], axis=1),
        )
        assert_allclose(changes[path].magnitude, np.mean(abs(abs(m) - before)), rtol=1e-10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_the_change_of_a_lora_layer_has_rank_r(seed, r):
    base, model = model_of(seed=seed, r=r)
    before, after = analysis.weights(base), analysis.weights(model)
    for path in PATHS:
        sigma = analysis.spectrum(after[path] - before[path])
        assert np.all(sigma[r:] < 1e-13)
        assert sigma[r - 1] > 1e-9


def test_layers_that_are_not_adapted_have_not_moved():
    base, model = model_of(target_modules=["layers.2"])
    changes = analysis.weight_decomposition(base, model)
    assert changes["layers.0"] == changes["layers.4"] == Change(0, 0) != changes["layers.2"]


def test_several_active_loras_count_with_their_sum():
    base, model = model_of()
    model.add_adapter("second", ld.LoraConfig(r=1, target_modules=["layers.0"]))
    model.set_adapter(["default", "second"])
    assert list(analysis.weight_decomposition(base, model)) == PATHS
    assert list(analysis.parameter_counts(model)) == PATHS


def test_a_single_layer_is_a_model_too():
    layer = ld.Linear(3, 2, dtype=np.float64)
    adapted = ld.LoRALinear(layer, r=1, lora_alpha=1)
    assert analysis.weight_decomposition(layer, adapted) == {"": Change(0, 0)}
    assert analysis.parameter_counts(adapted) == {"": Count(5, 13)}


def test_models_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        analysis.weight_decomposition(ld.MLP([3, 2]), ld.MLP([3, 2, 2]))
    with pytest.raises(ValueError, match="cannot compare"):
        analysis.weight_decomposition(ld.MLP([3, 2]), ld.MLP([4, 2]))


def test_measured_weights_stay_when_training_goes_on():
    model = ld.MLP([3, 2], dtype=np.float64)
    before, then = analysis.weights(model), copy.deepcopy(analysis.weights(model))
    model.parameters()[0].data[:] += 1
    assert_array_equal(before["layers.0"], then["layers.0"])


# ----------------------------------------------------------------------------- how many numbers


@given(st.integers(1, 9), st.booleans())
def test_counts_are_the_closed_form_and_add_up(r, use_dora):
    base, model = model_of(use_dora, r=r)
    counts = analysis.parameter_counts(model)
    for path, (width, out) in zip(PATHS, itertools.pairwise(SIZES), strict=True):
        size = analysis.adapter_size(out, width, r, use_dora=use_dora)
        assert counts[path] == Count(size, size + width * out + out)
    trainable, total = np.sum(list(counts.values()), axis=0)
    assert (trainable, total) == model.get_nb_trainable_parameters()
    assert sum(c.total for c in analysis.parameter_counts(base).values()) == sum(
        p.size for p in base.parameters()
    )


def test_sizes_may_be_small_integers_of_numpy():
    sizes = np.uint8([200, 100, 3])
    assert analysis.adapter_size(*sizes, use_dora=True) == 3 * 300 + 200


def test_a_shared_layer_counts_once():
    layer = ld.Linear(3, 3)
    assert analysis.parameter_counts(ld.Sequential(layer, layer)) == {"0": Count(12, 12)}


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        analysis.adapter_size(*sizes)
