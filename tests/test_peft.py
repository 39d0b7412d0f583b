"""An adapted model is a new one: the base it shares is never touched, and what it merges to is plain."""

import asyncio
import contextlib
import copy
import dataclasses
import functools
import json
import logging
import pickle
import re
import subprocess
import sys
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MethodType
from typing import NamedTuple

import numpy as np
import pytest
from interrupting import assert_whole, interrupted_by_a_timer, keeps_finally, needs_timers
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora.adapters import ColumnDoRALinear
from loradora.adapting import Adapter
from loradora.low_rank import Adapted, LowRankLinear
from loradora.matching import match

METHODS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
every_method = pytest.mark.parametrize("method", METHODS)

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


class Block(ld.Module):
    """x + v(relu(q(x))): a residual block as users write them."""

    def __init__(self, rng):
        self.q, self.v = ld.Linear(4, 6, rng=rng), ld.Linear(6, 4, rng=rng, bias=False)

    def forward(self, x):
        return x + self.v(mg.relu(self.q(x)))


class Net(ld.Module):
    """Attributes, a list, a Sequential, a bare tensor, and one block under two names."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.scale = mg.Tensor(np.full(4, 0.5, np.float32), requires_grad=True)
        self.blocks = [Block(rng), Block(rng)]
        self.tied = self.blocks[0]
        self.head = ld.Sequential(ld.Linear(4, 4, rng=rng), ld.ReLU(), ld.Linear(4, 3, rng=rng))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.tied(x) * self.scale)


def config(method="LoRA", **options):
    return ld.LoraConfig(
        **{"r": 2, "lora_alpha": 3, "target_modules": ["q", "v"]} | METHODS[method] | options
    )


def adapted(method="LoRA", base=None, seed=0, trained=True, name="default", **options):
    """Return a model with one adapter, all of whose tensors are random if ``trained``."""
    base = Net() if base is None else base
    model = ld.get_peft_model(
        base, config(method, **options), name, rng=np.random.default_rng(seed)
    )
    return randomized(model, seed) if trained else model


def randomized(model, seed=0):
    """Give all trainable tensors random values near the old ones."""
    rng = np.random.default_rng(seed + 100)
    for p in model.trainable_parameters():
        p.data = p.data + rng.normal(scale=0.3, size=p.shape).astype(p.dtype)
    return model


def add(model, name, seed=1, trained=True, **options):
    """Add an adapter, random if ``trained``; leave the active one active."""
    active = model.active_adapters
    model.add_adapter(name, config(**options), rng=np.random.default_rng(seed))
    if trained:
        model.set_adapter(name)
        randomized(model, seed)
        model.set_adapter(active)
    return model


def bytes_of(model):
    return {name: p.data.tobytes() for name, p in model.named_parameters()}


def out(model):
    return model(X).data


def step(model, lr=0.1):
    (model(X) * model(X)).mean().backward()
    ld.SGD(model.parameters(), lr).step()


# ----------------------------------------------------------------------------- the call everyone knows


def test_the_call_of_the_peft_readme_works_on_a_model_with_q_and_v():
    rng = np.random.default_rng(0)

    class Attention(ld.Module):
        def __init__(self):
            self.q, self.k, self.v = (ld.Linear(64, 64, rng=rng) for _ in range(3))

        def forward(self, x):
            weights = mg.softmax(self.q(x) @ self.k(x).mT / 8)
            return weights @ self.v(x)

    base = Attention()
    peft_config = ld.LoraConfig(
        r=32,
        lora_alpha=32,
        target_modules=["q", "v"],
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = ld.get_peft_model(base, peft_config)
    adapted_paths = [path for path, m in model.named_modules() if isinstance(m, ld.LoRALinear)]
    assert adapted_paths == ["base_model.q", "base_model.v"]
    assert model.get_nb_trainable_parameters() == (4 * 32 * 64, 4 * 32 * 64 + 3 * 64 * 65)
    x = rng.normal(size=(2, 10, 64)).astype(np.float32)
    assert_array_equal(model.eval()(x).data, base(x).data)


def test_the_trainable_parameters_are_printed_exactly_as_in_peft(capsys):
    base = ld.MLP([784, 256, 128, 10])
    targets = {"target_modules": ["0", "2", "4"]}
    model = ld.get_peft_model(base, ld.LoraConfig(r=4, use_dora=True, **targets))
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        "trainable params: 6,642 || all params: 241,788 || trainable%: 2.7470\n"
    )
    assert model.get_nb_trainable_parameters() == (6642, 241788)


def test_importing_loradora_brings_in_numpy_and_nothing_else():
    code = """
        import sys
        before = set(sys.modules)
        import loradora
        found = {name.partition('.')[0] for name in set(sys.modules) - before}
        print(sorted(found - set(sys.stdlib_module_names)))
    """
    run = subprocess.run(
        [sys.executable, "-c", re.sub(r"(?m)^ +", "", code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "['loradora', 'minigrad', 'numpy']\n"


# ----------------------------------------------------------------------------- the model


@every_method
def test_nested_and_tied_layers_are_adapted_where_they_are_named(method):
    model = adapted(method)
    found = [path for path, m in model.named_modules() if isinstance(m, LowRankLinear)]
    assert found == [
        f"base_model.{block}.{layer}"
        for block in ("blocks.0", "blocks.1", "tied")
        for layer in ("q", "v")
    ]
    modules = dict(model.named_modules())
    assert modules["base_model.tied.q"] is modules["base_model.blocks.0.q"]


@every_method
@pytest.mark.parametrize(
    "target_modules", [["q", "v"], "all-linear", ["tied.q", "head.2"], r"blocks\.0\..*"], ids=str
)
def test_live_is_merged_for_nested_and_tied_layers(method, target_modules):
    base = Net()
    model = adapted(method, base, target_modules=target_modules)
    merged = model.merge_and_unload()
    assert type(merged) is Net
    assert not any(isinstance(m, LowRankLinear) for _, m in merged.named_modules())
    assert merged.tied is merged.blocks[0]
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert_allclose(out(merged), out(model), rtol=1e-4, atol=1e-5)
    assert np.abs(out(merged) - out(base)).max() > 1e-3


@every_method
def test_the_merged_model_is_a_plain_trainable_model_that_shares_nothing(method):
    base = Net()
    model = adapted(method, base)
    before, expected = bytes_of(base), out(model)
    merged = model.merge_and_unload()
    assert all(p.requires_grad and p.data.flags.writeable for p in merged.parameters())
    others = [p.data for m in (base, model) for p in m.parameters()]
    assert not any(np.shares_memory(p.data, a) for p in merged.parameters() for a in others)
    step(merged, lr=1.0)
    assert bytes_of(base) == before
    assert_array_equal(out(model), expected)
    assert pickle.loads(pickle.dumps(merged))(X).shape == (5, 3)


@every_method
def test_the_base_is_untouched_byte_by_byte_and_usable_beside(method):
    base = Net()
    before, expected = bytes_of(base), out(base)
    model = adapted(method, base, trained=False)
    assert_array_equal(out(model), expected)
    for _ in range(5):
        step(model)
    assert np.abs(out(model) - expected).max() > 1e-3
    assert bytes_of(base) == before
    assert_array_equal(out(base), expected)
    assert model.get_base_model() is base
    assert all(p.requires_grad for p in base.parameters())


def test_the_base_is_shared_not_copied():
    base = Net()
    model = adapted(base=base)
    shared = {id(p.data) for p in base.parameters()}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert {id(p.data) for p in frozen} == shared


@every_method
def test_an_optimizer_on_the_base_works_on_its_own_copy(method):
    base = Net()
    optimizer = ld.SGD(base.parameters(), lr=0.1)
    model = adapted(method, base)
    before, expected = bytes_of(model), out(model)
    (base(X) * base(X)).mean().backward()
    optimizer.step()
    assert not np.array_equal(out(base), out(Net()))
    assert bytes_of(model) == before
    assert_array_equal(out(model), expected)


def test_shared_arrays_cannot_be_written_to_by_mistake():
    base = Net()
    adapted(base=base)
    for p in base.parameters():
        with pytest.raises(ValueError, match="read-only"):
            p.data[...] = 0


def test_two_models_on_one_base_are_independent():
    base = Net()
    one, other = adapted(base=base, seed=0), adapted("DoRA", base=base, seed=1)
    expected = out(one)
    step(other)
    assert_array_equal(out(one), expected)


def test_a_seed_determines_the_adapters():
    one, same, other = (adapted(seed=s, trained=False, init_lora_weights=False) for s in (0, 0, 1))
    assert bytes_of(one) == bytes_of(same)
    assert not np.array_equal(out(one), out(other))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@every_method
def test_a_copy_of_the_adapted_model_is_independent(method, copied):
    model = adapted(method)
    expected = out(model)
    twin = copied(model)
    assert_array_equal(out(twin), expected)
    step(twin)
    assert not np.array_equal(out(twin), expected)
    assert_array_equal(out(model), expected)
    with twin.disable_adapter():
        assert_array_equal(out(twin), out(Net()))


def test_training_mode_reaches_every_adapter():
    model = add(adapted(lora_dropout=0.5), "other", lora_dropout=0.5)
    model.eval()
    assert_array_equal(out(model), out(model))
    model.set_adapter("other")
    assert_array_equal(out(model), out(model))
    model.train()
    assert not np.array_equal(out(model), out(model))


def test_the_mode_of_the_base_is_its_own():
    base = ld.Sequential(ld.Linear(4, 4), ld.Dropout(0.5))
    model = adapted(base=base, target_modules=["0"])
    model.eval()
    assert {m.training for _, m in base.named_modules()} == {True}
    base.eval()
    model.train()
    assert {m.training for _, m in base.named_modules()} == {False}


@every_method
def test_fifty_rounds_of_saving_loading_and_merging_leave_the_base_byte_by_byte(method, tmp_path):
    base = Net()
    before = bytes_of(base)
    model = adapted(method, base)
    expected = out(model.eval())
    for _ in range(50):
        model.save_adapter(tmp_path / "a.npz")
        model = ld.PeftModel.from_pretrained(base, tmp_path / "a.npz", is_trainable=True)
        model.merge_and_unload()
    assert bytes_of(base) == before
    assert_array_equal(out(model), expected)


# ----------------------------------------------------------------------------- what does not match

NOWHERE = [
    (
        {"target_modules": ["zz"]},
        r"\['zz'\] matches no Linear layer; there are: blocks.0.q, blocks.0",
    ),
    ({"target_modules": "q"}, "'q' matches no Linear layer; there are: .*head.2"),
    ({"target_modules": None}, "target_modules is not set"),
    ({"target_modules": ["q"], "exclude_modules": ["q"]}, "matches no Linear layer"),
    ({"target_modules": ["head"]}, r"only Linear layers can be adapted, not head \(Sequential\)"),
    ({"target_modules": ["q", "1"]}, r"not blocks.1 \(Block\), head.1 \(ReLU\)"),
    (
        {"modules_to_save": ["tail"]},
        "modules_to_save='tail' matches no module; there are: blocks.0",
    ),
    (
        {"target_modules": ["q", "head.2"], "modules_to_save": ["head"]},
        r"^head\.2: named by both target_modules and modules_to_save",
    ),
    (
        {"target_modules": ["q", "v", "head.0"], "modules_to_save": ["ead.0"]},
        r"^head\.0: named by both",
    ),
    (
        {"target_modules": ["q", "v"], "exclude_modules": ["1.q"], "modules_to_save": ["0.q"]},
        r"^blocks\.0\.q, tied\.q: named by both",
    ),
    ({"rank_pattern": {"k": 2}}, "rank_pattern key 'k' matches none of blocks.0.q"),
    ({"alpha_pattern": {"head.0": 2}}, "alpha_pattern key 'head.0' matches none of blocks.0.q"),
    ({"rank_pattern": {"tied.q": 2}}, "'tied.q' matches none of blocks.0.q"),  # its other name
    (
        {"r": 5, "init_lora_weights": "pissa"},
        "needs a positive scaling and r of at most 4, not 0.6 and 5",
    ),
]


@pytest.mark.parametrize(("options", "message"), NOWHERE, ids=lambda v: str(v)[:60])
def test_a_name_that_matches_nothing_is_refused_and_nothing_is_changed(options, message):
    base = Net()
    before = bytes_of(base)
    with pytest.raises(ValueError, match=message):
        adapted(base=base, **options)
    assert bytes_of(base) == before
    assert all(p.requires_grad and p.data.flags.writeable for p in base.parameters())


def test_an_exclusion_that_excludes_nothing_warns():
    with pytest.warns(UserWarning, match=r"exclude_modules=\['k'\] excludes nothing"):
        adapted(exclude_modules=["k"])


def test_a_warning_points_to_the_line_that_made_the_adapter(tmp_path):
    unused = config(exclude_modules=["k"])
    model = adapted()
    model.save_adapter(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as content:
        arrays = dict(content)
    text = json.loads(arrays["adapter_config.json"].tobytes()) | {"new": 1}
    arrays["adapter_config.json"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez(tmp_path / "newer.npz", **arrays)
    for attempt in (
        lambda: ld.get_peft_model(Net(), unused),
        lambda: ld.PeftModel(Net(), unused),
        lambda: model.add_adapter("other", unused),
        lambda: ld.LoraConfig.from_dict(text),
        lambda: model.load_adapter(tmp_path / "newer.npz", "newer"),
        lambda: ld.PeftModel.from_pretrained(Net(), tmp_path / "newer.npz"),
    ):
        with pytest.warns(UserWarning, match=r"excludes nothing|unknown keys") as found:
            attempt()
        assert [w.filename for w in found] == [__file__]


def test_a_match_says_what_each_layer_gets_and_an_adapter_relies_on_it():
    base, own = Net(), config(target_modules=["0.q", "0.v"], rank_pattern={"v": 3})
    found = match(base, own)
    assert {path: o["r"] for path, o in found.options.items()} == {"blocks.0.q": 2, "blocks.0.v": 3}
    found.options["blocks.0.q"]["r"] = 4  # as the tensors of a file may say
    layers = Adapter(base, own, found, np.random.default_rng(0), ()).layers()
    assert {path: layer.r for path, layer in layers.items()} == {"blocks.0.q": 4, "blocks.0.v": 3}


def test_a_model_with_adapters_is_not_adapted_again(tmp_path):
    model = adapted()
    model.save_adapter(tmp_path / "a.npz")
    with pytest.raises(TypeError, match="has adapters already: use add_adapter"):
        ld.get_peft_model(model, config())
    with pytest.raises(TypeError, match="has adapters already: use add_adapter"):
        ld.PeftModel.from_pretrained(model, tmp_path / "a.npz")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "/x", "a\\b", "C:x", "a\0b", None, 3]
)
def test_a_name_that_is_no_folder_name_is_refused(name):
    model = adapted()
    for attempt in (
        lambda: adapted(name=name),
        lambda: model.add_adapter(name, config()),
        lambda: model.add_weighted_adapter(["default"], [1.0], name),
    ):
        with pytest.raises(ValueError, match=r"adapter's name becomes a folder: it cannot be"):
            attempt()
    assert list(model.peft_config) == ["default"]


# ----------------------------------------------------------------------------- off and on


def test_an_adapter_chosen_while_disabled_is_active_afterwards():
    model = add(adapted(), "other")
    model.set_adapter("other")
    expected = out(model)
    model.set_adapter("default")
    with model.disable_adapter():
        model.set_adapter("other")
        assert_array_equal(out(model), expected)
    assert model.active_adapters == ["other"]
    assert_array_equal(out(model), expected)


@needs_timers
def test_an_interrupt_never_leaves_an_adapter_off():
    model = adapted(base=ld.MLP([4, 3]), target_modules="all-linear")
    with_adapter, without = out(model), out(model.get_base_model())

    def work():
        with model.disable_adapter():
            assert model.base_model is not model._active

    with mg.no_grad():
        for _ in interrupted_by_a_timer(work, 2000):
            assert model.base_model is model._active
    assert_array_equal(out(model), with_adapter)
    with model.disable_adapter():
        assert_array_equal(out(model), without)


def test_other_threads_meet_the_adapter_that_one_has_disabled():
    model = adapted(base=Net().eval())
    with_adapter, without = out(model), out(model.get_base_model())
    wrong, calls = [], range(200)

    def disabling():
        for _ in calls:
            with model.disable_adapter():
                wrong.append(not np.array_equal(out(model), without))

    def calling():
        wrong.extend(not np.array_equal(out(model), with_adapter) for _ in calls)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for work in (disabling, calling) * 2]:
            future.result()
    assert wrong == [False] * 800


def test_other_tasks_meet_the_adapter_that_one_has_disabled():
    model = adapted(base=Net().eval())
    with_adapter, without = out(model), out(model.get_base_model())

    async def disabling():
        with model.disable_adapter():
            for _ in range(3):
                await asyncio.sleep(0)
                assert_array_equal(out(model), without)

    async def calling():
        for _ in range(5):
            await asyncio.sleep(0)
            assert_array_equal(out(model), with_adapter)

    async def all_three():
        await asyncio.gather(disabling(), calling(), disabling())

    asyncio.run(all_three())
    assert_array_equal(out(model), with_adapter)


def test_a_disabled_adapter_is_so_while_an_op_runs_and_in_its_own_model_only():
    model, other = adapted(), adapted()
    seen = []
    op = mg.ops.Op(lambda a: seen.append(out(model)) or a * 1, (lambda g, y, a: g,))
    with model.disable_adapter(), model.disable_adapter():
        op(X)
        assert_array_equal(out(other), other._active(X).data)
    op(X)
    assert_array_equal(seen[0], out(Net()))
    assert_array_equal(seen[1], out(other))


def test_a_function_may_be_decorated_to_run_without_the_adapter():
    model = adapted()
    with_adapter = out(model)

    @model.disable_adapter()
    def without(depth):
        assert_array_equal(out(model), out(Net()))
        return depth == 0 or without(depth - 1)

    def later():
        yield

    assert without(2)
    assert_array_equal(out(model), with_adapter)
    with pytest.raises(TypeError, match="later runs later"):
        model.disable_adapter()(later)


def test_the_mode_of_a_module_is_its_own_without_the_adapter_too():
    base = ld.Sequential(ld.Linear(4, 4), ld.Dropout(0.5))
    model = adapted(base=base, target_modules=["0"])
    model.base_model[1].eval()
    with model.disable_adapter():
        assert_array_equal(out(model), out(model))


def test_a_copy_made_while_the_adapter_is_off_has_it_on():
    model = adapted()
    expected = out(model)
    with model.disable_adapter():
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert "disabled" in repr(model)
    for twin in copies:
        assert_array_equal(out(twin), expected)


def test_a_model_that_was_without_its_adapter_is_forgotten(no_gc):
    model = adapted()
    with model.disable_adapter():
        pass
    memory = weakref.ref(model)
    del model
    assert memory() is None


def test_choosing_an_adapter_while_it_is_off_concerns_ones_own_thread_only():
    model = adapted()
    expected = out(model)
    with model.disable_adapter(), ThreadPoolExecutor(1) as pool:
        pool.submit(model.set_adapter, "default").result()
        assert_array_equal(out(model), out(Net()))
        model.set_adapter("default")
        assert_array_equal(out(model), expected)


@pytest.mark.parametrize("change", ["set_adapter", "delete_adapter"])
def test_an_interrupted_change_of_the_active_adapter_is_made_whole_or_not_at_all(change):
    def prepare():
        model = adapted(base=ld.Sequential(ld.Linear(2, 2)), target_modules="all-linear")
        add(model, "other", target_modules="all-linear", trained=False)
        name = "other" if change == "set_adapter" else "default"
        return model, lambda: getattr(model, change)(name)

    def state(model):
        trainable = {n: [p.requires_grad for p in a.trained] for n, a in model._adapters.items()}
        acting = [a.model is model.base_model for a in model._adapters.values()]
        return trainable, acting, model.active_adapters

    assert_whole(prepare, state)


@needs_timers
@pytest.mark.parametrize("kind", ["base", "adapted"])
def test_an_interrupted_change_of_the_mode_reaches_all_modules_or_none(kind):
    model = ld.Sequential(*(ld.Linear(2, 2) for _ in range(10)))
    if kind == "adapted":
        model = add(adapted(base=model, target_modules=["0"]), "other", target_modules=["1"])
        views = [model, model._plain, *(a.model for a in model._adapters.values())]
    else:
        views = [model]
    modules = [m for view in views for _, m in view.named_modules()]
    for _ in interrupted_by_a_timer(lambda: model.train(not model.training), 1000):
        assert len({m.training for m in modules}) == 1


def two_with_gradients():
    """Return a model with two adapters, each of which has gradients."""
    model = adapted(base=ld.Sequential(ld.Linear(4, 4)), target_modules=["0"])
    add(model, "other", target_modules=["0"])
    for name in ("default", "other"):
        model.set_adapter(name)
        model(np.ones((1, 4), np.float32)).sum().backward()
    return model


def gradients_left(model):
    return [p.grad for adapter in model._adapters.values() for p in adapter.trained]


@pytest.mark.parametrize("acting", [["default"], ["other"], ["default", "other"], None], ids=str)
def test_zero_grad_forgets_the_gradients_of_every_adapter_whichever_acts(acting):
    model = two_with_gradients()
    assert all(g is not None for g in gradients_left(model))
    if acting:
        model.set_adapter(acting)
        model.zero_grad()
    else:
        with model.disable_adapter():
            model.zero_grad()
    assert gradients_left(model) == [None] * 4


def test_zero_grad_leaves_the_base_that_is_trained_beside_it():
    base = ld.Sequential(ld.Linear(4, 4))
    model = adapted(base=base, target_modules=["0"])
    base(np.ones((1, 4), np.float32)).sum().backward()
    model.zero_grad()
    assert all(p.grad is not None for p in base.parameters())


def test_an_interrupt_leaves_the_gradients_of_all_adapters_or_none():
    def prepare():
        model = two_with_gradients()
        return model, model.zero_grad

    assert_whole(prepare, lambda model: [g is None for g in gradients_left(model)])


@needs_timers
@keeps_finally
def test_an_interrupt_leaves_the_arrays_of_the_base_writable():
    base = ld.Sequential(*(ld.Linear(2, 2) for _ in range(20)))

    def work():
        with contextlib.suppress(ValueError):
            ld.get_peft_model(base, config(target_modules=["nothing"]))

    for _ in interrupted_by_a_timer(work, 300):
        assert all(p.data.flags.writeable for p in base.parameters())


# ----------------------------------------------------------------------------- several adapters


def test_only_the_active_adapter_is_trainable():
    model = add(adapted(), "other", r=1)
    count = {"default": 80, "other": 40}
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        assert model.get_nb_trainable_parameters()[0] == count[name]
        for other, adapter in model._adapters.items():
            assert {p.requires_grad for p in adapter.trained} == {other == name}
    model.set_adapter(["default", "other"])
    assert model.get_nb_trainable_parameters()[0] == 120


def test_training_one_adapter_leaves_the_other():
    model = add(adapted(), "other")
    expected = out(model)
    model.set_adapter("other")
    before = out(model)
    step(model)
    assert not np.array_equal(out(model), before)
    model.set_adapter("default")
    assert_array_equal(out(model), expected)


def test_an_adapter_made_for_inference_is_frozen_until_it_is_activated_to_be_trained():
    model = adapted(inference_mode=True, trained=False)
    assert model.trainable_parameters() == []
    model.set_adapter("default")
    assert len(model.trainable_parameters()) == 8
    model.set_adapter("default", inference_mode=True)
    assert model.trainable_parameters() == []


def test_an_adapter_that_is_activated_to_be_trained_trains(tmp_path):
    adapted().save_adapter(tmp_path / "a.npz")
    model = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz")
    model.load_adapter(tmp_path / "a.npz", "other")
    before = out(model)
    assert model.trainable_parameters() == []
    model.set_adapter("other")
    step(model)
    assert not np.array_equal(out(model), before)
    model.set_adapter("default", inference_mode=True)
    assert_array_equal(out(model), before)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_becomes_active_by_a_deletion_trains_if_what_was_deleted_did(frozen):
    model = add(add(adapted(), "b"), "c")
    model.set_adapter(["default", "b"], inference_mode=frozen)
    for name in ("default", "b"):
        with model.disable_adapter():
            model.delete_adapter(name)
        assert bool(model.trainable_parameters()) is not frozen


def test_two_active_loras_train_together():
    model = add(adapted(), "other")
    model.set_adapter(["default", "other"])
    before = bytes_of(model)
    step(model)
    changed = {name for name, data in bytes_of(model).items() if data != before[name]}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    together = out(model)
    model.set_adapter("default")
    model.set_adapter(["default", "other"])
    assert_array_equal(out(model), together)


NOT_A_SUM = {
    "DoRA": ({"use_dora": True}, "DoRA adapters do not add up"),
    "lora_bias": ({"lora_bias": True}, "biases or whole modules do not add up"),
    "pissa": ({"init_lora_weights": "pissa"}, "'pissa' adapters change W0"),
}


@pytest.mark.parametrize("kind", NOT_A_SUM)
def test_adapters_that_do_not_add_up_are_not_added_up(kind):
    options, message = NOT_A_SUM[kind]
    model = add(adapted(), "other", trained=False, **options)
    expected = out(model)
    for attempt in (model.set_adapter, lambda names: model.merge_and_unload(adapter_names=names)):
        with pytest.raises(ValueError, match=rf"^blocks\.0\.q: .*{message}"):
            attempt(["default", "other"])
    for names, weights in ((["default", "other"], [1, 1]), (["other"], [0.5])):
        with pytest.raises(ValueError, match=message):
            model.add_weighted_adapter(names, weights, "sum")
    assert model.active_adapters == ["default"]
    assert list(model.peft_config) == ["default", "other"]
    assert_array_equal(out(model), expected)


def test_adapters_that_train_whole_modules_are_not_added_up():
    model = add(adapted(), "other", modules_to_save=["head.0"])
    for names, weights in ((["default", "other"], [1, 1]), (["other"], [0.5])):
        with pytest.raises(ValueError, match="biases or whole modules do not add up"):
            model.add_weighted_adapter(names, weights, "sum")


#: What only one adapter can do to a layer.
ALONE = {
    "DoRA": {"use_dora": True},
    "DoRA by column": {"use_dora": True, "norm_axis": 0},
    "lora_bias": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
    "another formula": {},
    "a whole module": {},
}


def alone(kind, layer, beside):
    """Return the options of an adapter that does this to one layer, and its class."""
    options = {"target_modules": [layer], **ALONE[kind]}
    if kind == "a whole module":
        options = {"target_modules": [beside], "modules_to_save": [layer]}
    return options, GatedLinear if kind == "another formula" else None


@pytest.mark.parametrize("first", ALONE)
@pytest.mark.parametrize("second", ALONE)
def test_adapters_of_different_layers_act_together_whatever_they_are(first, second, tmp_path):
    one, other = alone(first, "1.q", "1.v"), alone(second, "head.2", "head.0")
    (one, other), kinds = zip(one, other)
    base = Net()
    model = randomized(ld.get_peft_model(base, config(**one), layer=kinds[0]))
    model.add_adapter("other", config(**other), layer=kinds[1])
    model.set_adapter("other")
    randomized(model)
    parts = [model.merge_and_unload(adapter_names=[n]) for n in ("default", "other")]
    expected = base.state_dict()  # of which each adapter has changed another part
    for merged in parts:
        for name, value in merged.state_dict().items():
            if not np.array_equal(value, base.state_dict()[name]):
                assert_array_equal(expected[name], base.state_dict()[name])
                expected[name] = value
    both = Net()
    both.load_state_dict(expected)

    model.set_adapter(["default", "other"])
    assert_allclose(out(model), out(both), rtol=1e-4, atol=1e-4)
    assert_allclose(out(model.merge_and_unload()), out(both), rtol=1e-4, atol=1e-4)
    trained = [p for a in model._adapters.values() for p in a.trained]
    assert {id(p) for p in trained} == {id(p) for p in model.trainable_parameters()}
    before = [p.data for p in trained]
    step(model)
    assert sum(not np.array_equal(p.data, b) for p, b in zip(trained, before)) > len(trained) / 2
    live = out(model)
    for name in ("default", "other"):
        model.save_adapter(tmp_path / f"{name}.npz", name)
    loaded = ld.PeftModel.from_pretrained(base, tmp_path / "default.npz", layer=kinds[0])
    loaded.load_adapter(tmp_path / "other.npz", "other", layer=kinds[1])
    loaded.set_adapter(["default", "other"])
    assert_array_equal(out(loaded), live)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.set_adapter("default")
        copied.set_adapter(["other", "default"])
        assert_array_equal(out(copied), live)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"modules_to_save": ["blocks.0"], "target_modules": ["1.q"]}, r"blocks\.0\.q"),
        ({"modules_to_save": ["head"]}, {"target_modules": ["head.2"]}, r"head\.2"),
        ({"modules_to_save": ["head"]}, {"modules_to_save": ["head"]}, "head"),
        ({"modules_to_save": ["head"]}, {"modules_to_save": ["head.2"]}, r"head\.2"),
        ({"target_modules": ["tied.q"]}, {"modules_to_save": ["blocks.0.q"]}, r"blocks\.0\.q"),
    ],
    ids=str,
)
def test_what_trains_whole_is_of_one_adapter_alone(one, other, message):
    model = adapted(**one)
    add(model, "other", **{"target_modules": ["blocks.1.v"]} | other)
    expected = out(model)
    for names in (["default", "other"], ["other", "default"]):
        with pytest.raises(ValueError, match=rf"{message}.*trains whole in one of them"):
            model.set_adapter(names)
    assert model.active_adapters == ["default"]
    assert_array_equal(out(model), expected)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda m: m.set_adapter("nobody"),
        lambda m: m.set_adapter(["default", "nobody"]),
        lambda m: m.delete_adapter("nobody"),
        lambda m: m.add_weighted_adapter(["nobody"], [1.0], "sum"),
        lambda m: m.save_adapter("a.npz", "nobody"),
    ],
    ids=["set one", "set several", "delete", "add up", "save"],
)
def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(attempt):
    model = add(adapted(), "other")
    with pytest.raises(ValueError, match="no adapter named 'nobody'; there are: default, other"):
        attempt(model)
    assert model.active_adapters == ["default"]


def test_no_name_at_all_is_refused():
    with pytest.raises(ValueError, match="name at least one adapter"):
        adapted().set_adapter([])


def test_adapters_are_activated_by_set_adapter_alone():
    model = add(adapted(), "b")
    for name, value in (("active_adapters", ["b"]), ("active_adapter", "b"), ("peft_config", {})):
        with pytest.raises(AttributeError, match=name):
            setattr(model, name, value)
    model.active_adapters.append("b")  # a copy, as in PEFT
    assert model.active_adapters == ["default"]
    assert "active: default, inactive: b" in repr(model)


def test_of_two_active_adapters_the_other_stays():
    model = add(adapted(), "b")
    model.set_adapter(["default", "b"])
    model.delete_adapter("default")
    assert model.active_adapters == ["b"]


# ----------------------------------------------------------------------------- weighted sums


def correction(model, name):
    """Return what an adapter adds to each weight of the merged model."""
    active = model.active_adapters
    model.set_adapter(name)
    base, merged = model.get_base_model().state_dict(), model.merge_and_unload().state_dict()
    model.set_adapter(active)
    return {n: merged[n].astype(np.float64) - base[n] for n in merged}


@pytest.mark.parametrize("weights", [[1, 1], [0.5, -2], [0, 1]], ids=str)
@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize(
    "other", [{}, {"use_rslora": True, "r": 1}, {"target_modules": ["head.0"]}], ids=str
)
def test_a_weighted_sum_is_the_sum_of_the_weighted_corrections(weights, kind, other):
    model = add(adapted(), "other", **other)
    options = {"svd_rank": 4} if kind == "svd" else {}
    model.add_weighted_adapter(["default", "other"], weights, "sum", kind, **options)
    parts = [correction(model, name) for name in ("default", "other")]
    for name, found in correction(model, "sum").items():
        expected = sum(w * c[name] for w, c in zip(weights, parts))
        assert_allclose(found, expected, atol=2e-6)
    assert model.active_adapters == ["default"]


def test_an_svd_of_lower_rank_is_the_best_approximation():
    model = add(adapted(), "other")
    model.add_weighted_adapter(["default", "other"], [1, 1], "sum")
    model.add_weighted_adapter(["default", "other"], [1, 1], "svd", "svd", svd_rank=1)
    exact, found = correction(model, "sum"), correction(model, "svd")
    for name in (n for n in exact if np.any(exact[n])):
        U, S, Vt = np.linalg.svd(exact[name])
        assert_allclose(found[name], S[0] * np.outer(U[:, 0], Vt[0]), atol=2e-6)


def test_an_svd_has_the_largest_of_the_ranks_by_default():
    model = add(adapted(r=1), "other", r=3)
    model.add_weighted_adapter(["default", "other"], [1, 1], "svd", "svd")
    assert model.peft_config["svd"].r == 3


def test_an_svd_has_the_same_rank_in_every_layer_that_can_hold_it():
    model = adapted(r=1, rank_pattern={"v": 3}, target_modules=["q", "v", "head.2"])
    add(model, "other", r=2, target_modules=["q"])
    model.add_weighted_adapter(["default", "other"], [1, 1], "svd", "svd")
    model.set_adapter("svd")
    found = {path: m.r for path, m in model.named_modules() if isinstance(m, LowRankLinear)}
    assert set(found.values()) == {3}
    model.add_weighted_adapter(["default", "other"], [1, 1], "most", "svd", svd_rank=9)
    model.set_adapter("most")
    found = {path: m.r for path, m in model.named_modules() if isinstance(m, LowRankLinear)}
    assert (found["base_model.tied.q"], found["base_model.head.2"]) == (4, 3)


@pytest.mark.parametrize("weights", [[1, 1], [0.5, -2], [-1, -3], [0, 1]], ids=str)
@pytest.mark.parametrize("alpha", [5, -5])
def test_a_linear_combination_mixes_the_factors(weights, alpha):
    """√|w s| of each, with the sign in A: cross terms and all."""
    model = add(adapted(), "other", lora_alpha=alpha, target_modules=["q", "head.0"])
    model.add_weighted_adapter(["default", "other"], weights, "mixed", "linear")
    parts = [model._adapters[name].layers() for name in ("default", "other", "mixed")]
    one, other, mixed = (layers["blocks.1.q"] for layers in parts)
    A, B = 0, 0
    for w, layer in zip(weights, (one, other)):
        root = np.sqrt(abs(w * layer.scaling))
        A, B = A + np.sign(w * layer.scaling) * root * layer.A.data, B + root * layer.B.data
    assert mixed.scaling == 1
    assert mixed.A.dtype == mixed.B.dtype == np.float32
    assert_allclose(mixed.A.data, A, atol=1e-6)
    assert_allclose(mixed.B.data, B, atol=1e-6)
    found = correction(model, "mixed")
    for path, name, w in (("blocks.1.v", "default", weights[0]), ("head.0", "other", weights[1])):
        alone = correction(model, name)[f"{path}.weight"]  # where one acts alone, it is exact
        assert_allclose(found[f"{path}.weight"], w * alone, atol=2e-6)


def test_a_linear_combination_needs_equal_ranks_where_adapters_meet():
    model = add(adapted(r=2), "other", r=3, target_modules=["q", "head.0"])
    add(model, "elsewhere", r=3, target_modules=["head.0"])
    message = r"'linear' needs equal ranks in blocks\.0\.q, not 2, 3"
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(["default", "other"], [1, 1], "mixed", "linear")
    assert list(model.peft_config) == ["default", "other", "elsewhere"]
    model.add_weighted_adapter(["default", "elsewhere"], [1, 1], "mixed", "linear")
    model.set_adapter(["default", "elsewhere"])
    expected = out(model)
    model.set_adapter("mixed")
    assert_allclose(out(model), expected, rtol=1e-4, atol=1e-5)


def test_a_sum_keeps_to_the_layers_of_its_parts():
    """A top-level "q" must not bring in "layer.q", which ends in the same part."""

    class Two(ld.Module):
        def __init__(self):
            self.q, self.layer = ld.Linear(4, 4), ld.Sequential()
            self.layer.q = ld.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.q(x))

    model = adapted(base=Two(), target_modules="q")
    model.add_weighted_adapter(["default"], [2.0], "double")
    single, double = correction(model, "default"), correction(model, "double")
    assert_allclose(double["q.weight"], 2 * single["q.weight"], atol=1e-6)
    assert not np.any(double["layer.q.weight"])


BAD_SUMS = [
    ((["default"], [1, 2], "sum"), {}, "expected one weight per adapter"),
    (([], [], "sum"), {}, "expected one weight per adapter"),
    ((["default"], [float("nan")], "sum"), {}, "the weight of 'default' must be finite"),
    ((["default"], [1], "sum", "ties"), {}, "must be 'cat', 'svd' or 'linear', not 'ties'"),
    ((["default"], [1], "sum", "linear"), {"svd_rank": 2}, "svd_rank=2 goes with combination_type"),
    ((["default"], [2], "sum", "svd"), {"svd_rank": 0}, "svd_rank must be at least 1, not 0"),
    ((["default"], [2], "sum", "svd"), {"svd_rank": -1}, "svd_rank must be at least 1, not -1"),
    ((["default"], [2], "sum", "cat"), {"svd_rank": 2}, "svd_rank=2 goes with combination_type"),
]


@pytest.mark.parametrize(("args", "options", "message"), BAD_SUMS, ids=lambda v: str(v)[:40])
def test_a_sum_that_makes_no_sense_is_refused(args, options, message):
    model = adapted()
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*args, **options)
    assert list(model.peft_config) == ["default"]


# ----------------------------------------------------------------------------- biases and whole modules


def test_a_module_to_save_may_be_a_tree():
    model = adapted(modules_to_save=["head"], trained=False)
    trained = {
        n.removeprefix("base_model.") for n, p in model.named_parameters() if p.requires_grad
    }
    assert {n for n in trained if n.startswith("head")} == {
        "head.0.weight",
        "head.0.bias",
        "head.2.weight",
        "head.2.bias",
    }


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_merge_looks_at_biases_whole_modules_and_the_result(value):
    for options, name in (
        ({"bias": "all"}, "head.0.bias"),
        ({"modules_to_save": ["head"]}, "head.2.weight"),
    ):
        model = adapted(**options)
        dict(model.named_parameters())[f"base_model.{name}"].data.flat[0] = value
        with pytest.raises(ValueError, match=f"NaN or infinity in .*{re.escape(name)}"):
            model.merge_and_unload()
        merged = model.merge_and_unload(safe_merge=False)
        assert not np.isfinite(merged.state_dict()[name]).all()
    model = adapted()
    for name, p in model.named_parameters():
        if name.endswith((".A", ".B")):
            p.data = np.full_like(p.data, 1e30)
    with pytest.raises(ValueError, match="cannot merge: weight holds NaN or infinity"):
        model.merge_and_unload()


def test_a_merge_does_not_look_at_what_it_leaves_alone():
    base = Net()
    base.scale.data[0] = -np.inf  # a mask, say
    base.head[2].bias.data[0] = np.nan
    model = adapted(base=base)
    merged = model.merge_and_unload()
    assert_array_equal(merged.scale.data, base.scale.data)
    add(model, "other", modules_to_save=["head"])
    model.set_adapter("default")
    model.merge_and_unload()
    with pytest.raises(ValueError, match=r"NaN or infinity in head\.2\.bias"):
        model.merge_and_unload(adapter_names=["other"])
    with pytest.raises(ValueError, match=r"NaN or infinity in head\.2\.bias"):
        model.merge_and_unload(adapter_names=["default", "other"])
    with model.disable_adapter():
        model.merge_and_unload()
    adapted_there = adapted(base=base, target_modules=["head.2"])
    with pytest.raises(ValueError, match=r"base_layer\.bias holds NaN or infinity"):
        adapted_there.merge_and_unload()


# ----------------------------------------------------------------------------- DoRA's norm

NORMS = [{"detach_norm": False}, {"norm_axis": 0}, {"detach_norm": False, "norm_axis": 0}]


def gradients(model):
    """Return the gradients of the trained tensors by their last names."""
    (model(X) * model(X)).sum().backward()
    return {n.rpartition(".")[2]: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_a_config_chooses_the_norm_of_dora(norm):
    base = ld.Sequential(ld.Linear(4, 6))
    model = adapted("DoRA", base, target_modules=["0"], **norm)
    layer = ld.DoRALinear(base[0], r=2, lora_alpha=3, **norm)
    for name in ("A", "B", "m"):
        getattr(layer, name).data = dict(model.named_parameters())[f"base_model.0.{name}"].data
    assert_array_equal(out(model), out(layer))
    found, expected = gradients(model), gradients(layer)
    for name in ("A", "B", "m"):
        assert_array_equal(found[name], expected[name])
    default = gradients(adapted("DoRA", base, target_modules=["0"]))
    assert not np.allclose(found["A"], default["A"])


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_the_norm_of_dora_survives_a_file(norm, tmp_path):
    base = Net()
    model = adapted("DoRA", base, **norm)
    model.save_adapter(tmp_path / "a.npz")
    loaded = ld.PeftModel.from_pretrained(base, tmp_path / "a.npz", is_trainable=True)
    assert repr(loaded.blocks[0].q) == repr(model.blocks[0].q)
    assert_array_equal(out(loaded), out(model))
    found, expected = gradients(loaded.train()), gradients(model)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    model.add_weighted_adapter(["default"], [1.0], "copy")
    model.set_adapter("copy")
    assert_array_equal(out(model), out(loaded))


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_norm_of_columns_is_not_written_for_peft(name, tmp_path):
    model = add(adapted(name="first"), name, use_dora=True, norm_axis=0)
    with pytest.raises(
        ValueError, match=rf"no norm_axis=0, .* '{name}'; save_adapter\(\) keeps it"
    ):
        model.save_pretrained(tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


# ----------------------------------------------------------------------------- any module


class Pair(NamedTuple):
    """Two layers in a named tuple."""

    one: ld.Linear
    two: ld.Linear


class Odd(ld.Module):
    """What users write: two inputs, a method as attribute, layers in a dict, a buffer, a way back."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.pair = Pair(ld.Linear(4, 4, rng=rng), ld.Linear(4, 4, rng=rng))
        self.byname = {"x": ld.Linear(4, 4, rng=rng), "y": ld.Linear(4, 4, rng=rng)}
        self.act = self.body
        self._owner = self
        self.calls = np.zeros(1)
        self.noise = np.random.default_rng(1)

    def body(self, x):
        return self.byname["x"](self.pair.one(x))

    def forward(self, x, mask=None, *, shift=0.0):
        self.calls += 1
        self.noise.random()
        x = self.act(x) + shift
        return self.byname["y"](self.pair.two(x if mask is None else x * mask))


def test_a_module_may_be_made_as_users_make_them():
    base = Odd()
    model = adapted(base=base, target_modules="all-linear", trained=False)
    x, mask = X, np.eye(4, dtype=np.float32)[:1]
    assert_array_equal(model(x, mask, shift=1.0).data, base(x, mask, shift=1.0).data)
    assert list(dict(model.peft_config)) == ["default"]
    assert len(model.trainable_parameters()) == 2 * 4
    randomized(model)
    live = model(x, mask, shift=1.0).data
    assert np.abs(live - base(x, mask, shift=1.0).data).max() > 1e-3
    assert_allclose(model.merge_and_unload()(x, mask, shift=1.0).data, live, atol=1e-5)
    assert model.base_model._owner is model.base_model
    assert model.base_model.act.__self__ is model.base_model


def test_what_a_module_changes_as_it_runs_is_its_own():
    base = Odd()
    model = adapted(base=base, target_modules="all-linear")
    state = base.noise.bit_generator.state
    model(X)
    assert base.calls == 0
    assert base.noise.bit_generator.state == state
    assert model.base_model.calls == 1


def test_attributes_of_the_base_can_be_reached():
    model = adapted()
    assert model.head is model.base_model.head
    assert isinstance(model.blocks[0].q, LowRankLinear)
    with pytest.raises(AttributeError):
        _ = model.nothing
    with pytest.raises(AttributeError):
        _ = model._nothing


# ----------------------------------------------------------------------------- nothing half done


def test_a_load_that_fails_leaves_every_array_as_it_was(tmp_path):
    adapted(base=ld.MLP([4, 3]), target_modules=["0"]).save_adapter(tmp_path / "a.npz")
    base = Net()
    with pytest.raises(ld.CheckpointError):
        ld.PeftModel.from_pretrained(base, tmp_path / "a.npz")
    assert all(p.data.flags.writeable for p in base.parameters())


def test_a_config_that_changes_later_changes_nothing(tmp_path):
    targets = ["q"]
    changing = config(target_modules=targets)
    model = ld.get_peft_model(Net(), changing)
    targets.append("v")
    changing.r, changing.lora_alpha = 7, 99
    model.save_adapter(tmp_path / "a.npz")
    loaded = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz")
    assert loaded.peft_config["default"].r == 2
    assert loaded.peft_config["default"].target_modules == ("q",)


EDITS = {
    "an option": lambda c: setattr(c, "lora_alpha", 64),
    "the rank": lambda c: setattr(c, "r", 3),
    "the kind": lambda c: setattr(c, "use_dora", True),
    "an option away": lambda c: delattr(c, "lora_alpha"),
    "a list": lambda c: c.target_modules.append("head.0"),
    "a dict": lambda c: c.rank_pattern.update({"q": 1}),
    "a set": lambda c: c.exclude_modules.add("v"),
    "a list in a dict": lambda c: c.auto_mapping["parents"].append("x"),
    "a dict in a dict": lambda c: c.auto_mapping["more"].update(x=1),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("copied", [False, True], ids=["the model", "a copy of it"])
def test_the_config_of_an_adapter_cannot_be_edited_in_vain(edit, copied):
    mapping = {"parents": ["a"], "more": {}}
    options = {"exclude_modules": {"head.2"}, "auto_mapping": mapping}
    model = adapted(base=Net(), **options, target_modules=["q", "v", "head.2"])
    model = copy.deepcopy(model) if copied else model
    before = model.peft_config["default"].to_dict()
    with pytest.raises((AttributeError, TypeError)):
        edit(model.peft_config["default"])
    assert model.peft_config["default"].to_dict() == before


def test_a_refused_edit_says_what_to_do_instead():
    model = adapted()
    with pytest.raises(AttributeError, match=r"lora_alpha of an .* add_adapter.*replace"):
        model.peft_config["default"].lora_alpha = 64
    changed = dataclasses.replace(model.peft_config["default"], lora_alpha=64)
    model.add_adapter("changed", changed)
    assert model.peft_config["changed"].lora_alpha == 64


@pytest.mark.parametrize(
    "made", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), dataclasses.replace]
)
def test_a_copy_of_the_config_of_an_adapter_is_the_users_own(made):
    own = made(adapted(rank_pattern={"q": 1}).peft_config["default"])
    own.lora_alpha, own.rank_pattern["v"] = 64, 3
    assert (own.lora_alpha, own.rank_pattern) == (64, {"q": 1, "v": 3})
    assert ld.get_peft_model(Net(), own).peft_config["default"].lora_alpha == 64


def test_configs_are_not_put_into_a_model_by_hand():
    model = adapted()
    with pytest.raises(TypeError, match="cannot be edited here: make another adapter"):
        model.peft_config["other"] = config()
    with pytest.raises(TypeError, match="cannot be edited here: make another adapter"):
        del model.peft_config["default"]
    for edit in ("clear", "popitem", "update"):
        with pytest.raises(TypeError, match="cannot be edited here"):
            getattr(model.peft_config, edit)()


def test_the_config_of_an_adapter_can_be_compared_and_copied():
    own = config(rank_pattern={"q": 1}, modules_to_save=["head"])
    model = ld.get_peft_model(Net(), own, rng=0)
    held = model.peft_config["default"]
    assert held == own
    assert held != dataclasses.replace(own, r=7)
    assert dataclasses.asdict(held)["rank_pattern"] == {"q": 1}
    for copied in (copy.deepcopy(model.peft_config), pickle.loads(pickle.dumps(model.peft_config))):
        assert copied == {"default": own}
        copied["default"].rank_pattern["v"] = 3
    assert model.peft_config["default"] == own


def test_a_class_of_configs_may_have_attributes_of_its_own():
    class Noted(ld.LoraConfig):
        def __init__(self, note, **options):
            super().__init__(**options)
            self.note = note

    assert Noted("mine", r=2).note == "mine"


def test_a_config_is_checked_again_when_it_is_used():
    changed = config()
    changed.bias = "banana"
    with pytest.raises(ValueError, match="bias must be one of"):
        ld.get_peft_model(Net(), changed)


def test_one_layer_under_two_names_is_not_both_adapted_and_trained_whole():
    for options in (
        {"target_modules": ["tied.q"], "modules_to_save": ["blocks.0.q"]},
        {"target_modules": ["blocks.0.q"], "modules_to_save": ["tied"]},
    ):
        with pytest.raises(ValueError, match="named by both"):
            adapted(**options)


# ----------------------------------------------------------------------------- as PEFT's users know it


class Classifier(ld.Module):
    """A net with a head by the name that PEFT looks for."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.q, self.classifier = ld.Linear(4, 4, rng=rng), ld.Linear(4, 3, rng=rng)

    def forward(self, x):
        return self.classifier(self.q(x))


class Head(ld.Module):
    """RoBERTa's, whose layers have the names of others."""

    def __init__(self, rng):
        self.dense, self.out_proj = ld.Linear(4, 4, rng=rng), ld.Linear(4, 3, rng=rng)

    def forward(self, x):
        return self.out_proj(mg.tanh(self.dense(x)))


class Encoder(ld.Module):
    """A layer with a "dense" of its own, and one that is called nearly as the head is."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.query, self.dense = ld.Linear(4, 4, rng=rng), ld.Linear(4, 4, rng=rng)
        self.pre_classifier, self.classifier = ld.Linear(4, 4, rng=rng), Head(rng)

    def forward(self, x):
        return self.classifier(self.pre_classifier(self.dense(self.query(x))))


def trained_in(model):
    names = (n for n, p in model.named_parameters() if p.requires_grad)
    return sorted({n.removeprefix("base_model.").rpartition(".")[0] for n in names})


def test_a_name_that_also_names_a_layer_of_the_head_adapts_the_others():
    for options in ({"task_type": "SEQ_CLS"}, {"modules_to_save": ["classifier"]}):
        model = adapted(base=Encoder(), target_modules=["query", "dense"], **options)
        whole = ["classifier.dense", "classifier.out_proj", "pre_classifier"]
        assert trained_in(model) == sorted([*whole, "dense", "query"])
        adapted_layers = [p for p, m in model.named_modules() if isinstance(m, LowRankLinear)]
        assert adapted_layers == ["base_model.query", "base_model.dense"]


def test_a_module_to_save_is_named_by_the_end_of_its_path_as_in_peft():
    model = adapted(base=Encoder(), target_modules="all-linear", modules_to_save=["classifier"])
    whole = ["classifier.dense", "classifier.out_proj", "pre_classifier"]
    assert trained_in(model) == sorted([*whole, "dense", "query"])
    keys = [key for key in model._adapters["default"].saved if "classifier" in key]
    assert sorted(keys) == sorted(f"{path}.{n}" for path in whole for n in ("weight", "bias"))


def test_an_excluded_layer_is_no_conflict():
    model = adapted(
        base=Encoder(),
        target_modules=["query", "classifier.dense"],
        exclude_modules=["classifier.dense"],
        modules_to_save=["classifier"],
    )
    layers = [p for p, m in model.named_modules() if isinstance(m, LowRankLinear)]
    assert layers == ["base_model.query"]


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_task_of_classification_trains_its_head(task):
    model = adapted(base=Classifier(), target_modules=["q"], task_type=task)
    assert model.peft_config["default"].modules_to_save == ("classifier", "score")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {f"base_model.classifier.{n}" for n in ("weight", "bias")} < trained
    headless = adapted(task_type=task)  # which is no error: the head is implied, not asked for
    assert len(headless.trainable_parameters()) == len(adapted().trainable_parameters())


def test_the_base_can_be_taken_out_again_without_the_adapter():
    base = Net()
    plain = adapted(base=base).unload()
    assert_array_equal(out(plain), out(base))
    assert all(p.requires_grad and p.data.flags.writeable for p in plain.parameters())


def test_others_than_the_active_adapters_can_be_merged():
    model = adapted()
    add(model, "other", seed=3)
    merged = model.merge_and_unload(adapter_names=["other"])
    both = model.merge_and_unload(adapter_names=["default", "other"])
    assert model.active_adapters == ["default"]
    model.set_adapter("other")
    assert_allclose(out(merged), out(model), atol=1e-5)
    model.set_adapter(["default", "other"])
    assert_allclose(out(both), out(model), atol=1e-5)


def test_an_adapter_named_twice_is_refused():
    with pytest.raises(ValueError, match="named twice: default, default"):
        adapted().set_adapter(["default", "default"])


def test_of_several_active_adapters_one_is_named_to_be_saved(tmp_path):
    model = adapted()
    add(model, "other", seed=3)
    model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="name one of the active adapters: default, other"):
        model.save_adapter(tmp_path / "a.npz")


def test_the_mode_set_while_disabled_reaches_adapters_that_act_together():
    base = ld.Sequential(ld.Linear(4, 4), ld.Dropout(0.5), ld.Linear(4, 4))
    model = adapted(base=base, target_modules=["0"])
    add(model, "other", target_modules=["0"])
    model.set_adapter(["default", "other"])
    for mode in (False, True):
        with model.disable_adapter():
            model.train(mode)
        assert {m.training for _, m in model.named_modules()} == {mode}


def test_deleting_another_adapter_changes_neither_what_is_active_nor_what_is_frozen():
    model = adapted()
    add(model, "other")
    model.requires_grad_(False)
    with model.disable_adapter():
        before = out(model)
        model.delete_adapter("other")
        assert_array_equal(out(model), before)
    assert not model.trainable_parameters()


def test_an_svd_of_float16_factors_is_computed_in_more_digits():
    base = ld.MLP([4, 4], dtype=np.float16)
    model = ld.get_peft_model(
        base, config(target_modules=["0"]), autocast_adapter_dtype=False, rng=0
    )
    model.add_weighted_adapter(["default"], [2.0], "twice", "svd")
    assert all(p.dtype == np.float16 for p in model.parameters())


def test_copies_of_several_adapters_go_on_sharing_one_base():
    model = adapted(base=ld.MLP([4, 4]), target_modules=["0"])
    add(model, "other", target_modules=["0"])
    twin = copy.deepcopy(model)
    views = [a.model for a in twin._adapters.values()]
    one, other = (dict(v.named_parameters())["layers.0.base_layer.weight"] for v in views)
    assert one.data is other.data
    assert not np.shares_memory(one.data, model.get_base_model().layers[0].weight.data)


def test_the_model_starts_in_the_mode_of_its_base():
    assert not adapted(base=Net().eval()).training
    assert adapted(base=Net()).training


def test_what_is_no_config_is_refused_and_named():
    with pytest.raises(TypeError, match=r"expected a loradora\.LoraConfig, not a dict"):
        ld.get_peft_model(Net(), {"r": 2})


def test_the_looks_tell_what_is_disabled_inactive_and_partly_frozen():
    model = adapted(bias="all", target_modules=["q"])
    assert "6 trainable (bias)" in repr(model)
    model = adapted("DoRA")
    add(model, "other")
    assert "active: default, inactive: other" in repr(model)
    with model.disable_adapter():
        assert "disabled" in repr(model)
    exact = ld.DoRALinear(ld.Linear(3, 2), r=1, lora_alpha=1, detach_norm=False, norm_axis=0)
    assert "3 -> 2, r=1, scaling=1, exact norm, norm of columns" in repr(exact)


def test_every_console_can_show_every_kind_of_module():
    def kinds(parent):
        inside = [kind for child in parent.__subclasses__() for kind in kinds(child)]
        return [kind for kind in [parent, *inside] if kind.__module__.startswith("loradora.")]

    two = add(adapted(), "other")
    two.set_adapter(["default", "other"])
    columns = ld.DoRALinear(ld.Linear(3, 2), r=1, lora_alpha=1, norm_axis=0)
    plain = ld.Sequential(
        ld.ReLU(), ld.Dropout(0.5), ld.Tanh(), ld.Sigmoid(), ld.GELU(), ld.Flatten()
    )
    others = [ld.MLP([3, 2]), plain, ld.DecoderLayer(4, 2), ld.Embedding(3, 2)]
    models = [adapted(), adapted("DoRA"), two, columns, *others]
    shown = {type(module) for model in models for _, module in model.named_modules()}
    assert shown >= set(kinds(ld.Module)) - {ld.Module, Adapted, LowRankLinear}
    for model in models:
        assert repr(model).isascii()


# ----------------------------------------------------------------------------- variants


class LoRAFALinear(ld.LoRALinear):
    """LoRA with A frozen as it was drawn."""

    def __init__(self, base, **options):
        super().__init__(base, **options)
        self.A.requires_grad = False


class GatedLinear(ld.LoRALinear):
    """A correction behind a gate of its own."""

    def __init__(self, base, **options):
        super().__init__(base, **options)
        self.gate = mg.Tensor(np.ones(1, np.float32), requires_grad=True)

    def forward(self, x):
        y = self.base_layer(self.as_input(x))
        return y + self.gate * (super().forward(x) - y)

    @property
    def weight(self):
        W0 = self.base_layer.weight.data
        return mg.Tensor(W0 + self.gate.data * (super().weight.data - W0))


class MixedLinear(ld.LowRankLinear):
    """s B M A, with a frozen random M, which lies in a layer of its own."""

    def __init__(self, base, **options):
        super().__init__(base, **options)
        self.mixer = ld.Linear(self.r, self.r, bias=False, rng=options["rng"])
        self.mixer.requires_grad_(False)

    def forward(self, x):
        h = self.mixer(mg.linear(self.lora_dropout(self.as_input(x)), self.A))
        return self.base_layer(x) + self.scaling * mg.linear(h, self.B)

    @property
    def weight(self):
        change = self.B.data @ self.mixer.weight.data @ self.A.data
        return mg.Tensor(self.base_layer.weight.data + self.scaling * change)


class NegatedLinear(ld.LoRALinear):
    """What a LoRA adds is taken away; the tensors are those of a LoRA."""

    def forward(self, x):
        return 2 * self.base_layer(self.as_input(x)) - super().forward(x)

    @property
    def weight(self):
        return mg.Tensor(2 * self.base_layer.weight.data - super().weight.data)


OTHER_FORMULAS = [GatedLinear, MixedLinear, NegatedLinear]
VARIANTS = [LoRAFALinear, *OTHER_FORMULAS]


def of(layer, base=None, **options):
    """Return a model with random adapters "default" and "other" of this class."""
    rng = np.random.default_rng(0)
    model = ld.get_peft_model(base or Net(), config(**options), layer=layer, rng=rng)
    randomized(model)
    model.add_adapter("other", config(**options), layer=layer, rng=rng)
    return model


@pytest.mark.parametrize("layer", VARIANTS)
def test_a_variant_goes_through_everything(layer, tmp_path):
    base = Net()
    before = bytes_of(base)
    model = of(layer, base)
    step(model)
    expected = out(model)
    assert not np.allclose(expected, out(base))
    assert_allclose(out(model.merge_and_unload()), expected, atol=1e-5)
    model.save_adapter(tmp_path / "a.npz")
    model.load_adapter(tmp_path / "a.npz", "again", layer=layer)
    model.add_weighted_adapter(["default"], [1.0], "copy")
    loaded = ld.PeftModel.from_pretrained(base, tmp_path / "a.npz", layer=layer)
    assert_array_equal(out(loaded), expected)
    for name in ("again", "copy"):
        model.set_adapter(name)
        assert_array_equal(out(model), expected)
    assert_array_equal(out(copy.deepcopy(model)), expected)
    assert_array_equal(out(pickle.loads(pickle.dumps(model))), expected)
    for name in ("default", "again", "copy"):
        model.delete_adapter(name)
    assert_array_equal(out(model), out(base))  # "other" is new
    assert model.active_adapter == "other"
    with model.disable_adapter():
        assert_array_equal(out(model), out(base))
    assert bytes_of(base) == before


@pytest.mark.parametrize("layer", VARIANTS)
@pytest.mark.parametrize("options", [{"bias": "all"}, {"modules_to_save": ["head"]}], ids=str)
def test_a_variant_goes_with_what_else_trains(layer, options, tmp_path):
    model = randomized(ld.get_peft_model(Net(), config(**options), layer=layer))
    assert_allclose(out(model.merge_and_unload()), out(model), atol=1e-5)
    model.save_adapter(tmp_path / "a.npz")
    loaded = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz", layer=layer)
    assert_array_equal(out(loaded), out(model))


def test_a_variant_trains_what_it_leaves_free():
    model = of(LoRAFALinear)
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        trained = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {"B"}


def test_a_variant_with_the_tensors_and_the_formula_of_a_lora_is_one(tmp_path):
    model = of(LoRAFALinear)
    expected = out(model)
    model.save_adapter(tmp_path / "a.npz")
    loaded = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz")
    assert_array_equal(out(loaded), expected)
    model.set_adapter(["default", "other"])
    assert_array_equal(out(model), expected)  # "other" is new
    model.add_weighted_adapter(["default", "other"], [1, 1], "sum")
    model.set_adapter("sum")
    assert_allclose(out(model), expected, atol=1e-5)


def test_a_variant_that_is_a_lora_is_written_for_peft(tmp_path):
    pytest.importorskip("safetensors", reason="PEFT's file format needs safetensors")
    model = of(LoRAFALinear)
    model.save_pretrained(tmp_path)
    assert_array_equal(out(ld.PeftModel.from_pretrained(Net(), tmp_path)), out(model))


@pytest.mark.parametrize("layer", OTHER_FORMULAS)
def test_variants_that_compute_something_else_are_not_loaded_as_loras(layer, tmp_path):
    model = of(layer)
    model.save_adapter(tmp_path / "a.npz")
    adapted().save_adapter(tmp_path / "lora.npz")
    for file, kind, name in (
        ("a.npz", None, "A"),
        ("a.npz", LoRAFALinear, "A"),
        ("lora.npz", layer, "lora_A"),
    ):
        with pytest.raises(ld.CheckpointError, match=rf"unexpected blocks\.0\.q\.{name}"):
            ld.PeftModel.from_pretrained(Net(), tmp_path / file, layer=kind)


@pytest.mark.parametrize("layer", OTHER_FORMULAS)
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_variants_that_compute_something_else_are_not_added_up(layer, kind):
    model = of(layer)
    expected = out(model)
    for attempt in (
        lambda: model.set_adapter(["default", "other"]),
        lambda: model.merge_and_unload(adapter_names=["default", "other"]),
        lambda: model.add_weighted_adapter(["default"], [2.0], "twice", kind),
        lambda: model.add_weighted_adapter(["default", "other"], [1, 1], "sum", kind),
    ):
        with pytest.raises(ValueError, match=rf"{layer.__name__} has '.*' of its own"):
            attempt()
    assert list(model.peft_config) == ["default", "other"]
    assert_array_equal(out(model), expected)


@pytest.mark.parametrize("layer", OTHER_FORMULAS)
def test_variants_that_compute_something_else_are_not_written_for_peft(layer, tmp_path):
    with pytest.raises(ValueError, match=rf"PEFT has no {layer.__name__}.*save_adapter"):
        of(layer).save_pretrained(tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"use_dora": True}, LoRAFALinear),
        ({"use_dora": True}, MixedLinear),
        ({"use_dora": False}, ld.DoRALinear),
        ({"lora_bias": True}, MixedLinear),
    ],
    ids=str,
)
def test_a_class_that_has_not_what_the_config_asks_for_is_refused(options, layer):
    base = Net()
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value} does not go with {layer.__name__}"):
        ld.get_peft_model(base, config(**options), layer=layer)
    assert all(p.data.flags.writeable for p in base.parameters())


@pytest.mark.parametrize("layer", [ld.Linear, ld.LoRALinear(ld.Linear(2, 2), r=1, lora_alpha=1), 3])
def test_what_is_no_class_of_adapted_layers_is_refused(layer):
    with pytest.raises(TypeError, match="layer must be a subclass of LowRankLinear, not "):
        ld.get_peft_model(Net(), config(), layer=layer)


@pytest.mark.parametrize("by_name", [False, True], ids=["by the config", "by its class"])
def test_a_norm_of_columns_has_one_format_however_it_was_asked_for(by_name, tmp_path):
    columns = ColumnDoRALinear if by_name else None
    base, made = Net(), config("DoRA", norm_axis=0)
    model = randomized(ld.get_peft_model(base, made, layer=columns))
    model.save_adapter(tmp_path / "a.npz")
    for layer in (None, ColumnDoRALinear):
        loaded = ld.PeftModel.from_pretrained(base, tmp_path / "a.npz", layer=layer)
        assert_array_equal(out(loaded), out(model))


@pytest.mark.parametrize("norm_axis", [0, 1])
def test_a_class_of_another_norm_axis_than_the_configs_is_refused(norm_axis):
    layer = (ColumnDoRALinear, ld.DoRALinear)[norm_axis]
    with pytest.raises(
        ValueError, match=f"norm_axis={1 - norm_axis} does not go with {layer.__name__}"
    ):
        ld.get_peft_model(Net(), config("DoRA", norm_axis=1 - norm_axis), layer=layer)


def test_what_is_loaded_keeps_its_config_and_can_be_trained(tmp_path):
    adapted(init_lora_weights="gaussian").save_adapter(tmp_path / "a.npz")
    loaded = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz", is_trainable=True)
    assert loaded.peft_config["default"].init_lora_weights == "gaussian"
    assert all(p.data.flags.writeable for p in loaded.trainable_parameters())


# ----------------------------------------------------------------------------- what is trainable


class Standardised(ld.Module):
    """A head with a constant: the mean that is taken off its input."""

    def __init__(self, rng):
        self.mean = mg.Tensor(rng.normal(size=4).astype(np.float32))
        self.linear = ld.Linear(4, 3, rng=rng)

    def forward(self, x):
        return self.linear(x - self.mean)


class WithConstants(ld.Module):
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.offset = mg.Tensor(np.float32(0.5))
        self.q, self.head = ld.Linear(4, 4, rng=rng), Standardised(rng)
        self.q.bias.requires_grad = False

    def forward(self, x):
        return self.head(mg.tanh(self.q(x)) + self.offset)


FREE = {"q.weight", "head.linear.weight", "head.linear.bias"}


def names_of_trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@every_method
def test_merged_and_unloaded_tensors_keep_their_flags(method):
    base = WithConstants()
    for options in ({}, {"modules_to_save": ["head"]}, {"bias": "all"}):
        model = adapted(method, base, target_modules=["q"], **options)
        assert names_of_trainable(model.merge_and_unload()) == FREE
        assert names_of_trainable(model.unload()) == FREE
    assert names_of_trainable(base) == FREE
    base.requires_grad_(False)
    assert names_of_trainable(adapted(method, base, target_modules=["q"]).unload()) == set()


def test_a_constant_in_a_module_that_trains_whole_stays_constant_and_is_saved(tmp_path):
    base = WithConstants()
    model = adapted(base=base, target_modules=["q"], modules_to_save=["head"])
    assert {n for n in names_of_trainable(model) if "head" in n} == {
        "base_model.head.linear.weight",
        "base_model.head.linear.bias",
    }
    labels = np.zeros(len(X), int)
    optimizer = ld.AdamW(model.parameters(), lr=0.1)
    for _ in ld.fit(model, X, labels, optimizer=optimizer, steps=5, rng=0):
        pass
    assert_array_equal(model.head.mean.data, base.head.mean.data)
    assert not np.array_equal(model.head.linear.weight.data, base.head.linear.weight.data)
    model.save_adapter(tmp_path / "a.npz")
    for like in (WithConstants(), WithConstants().requires_grad_(False)):
        like.head.mean.data = (
            like.head.mean.data + 1
        )  # the file's counts, as PEFT has it for buffers
        loaded = ld.PeftModel.from_pretrained(like, tmp_path / "a.npz")
        assert_array_equal(loaded(X).data, model.eval()(X).data)


@pytest.mark.parametrize("options", [{"modules_to_save": ["head"]}, {"task_type": "SEQ_CLS"}])
def test_a_module_that_was_frozen_as_a_whole_trains_whole(options):
    base = WithConstants()
    base.score = ld.Dropout(0.1)  # without anything to train
    base.classifier = base.head
    base.requires_grad_(False)
    model = adapted(base=base, target_modules=["q"], **options)
    found = {n.rpartition("head.")[2] for n in names_of_trainable(model) if "head" in n}
    assert found == {"mean", "linear.weight", "linear.bias"}
    assert names_of_trainable(model.merge_and_unload()) == set()


def test_tied_weights_count_once_in_a_view():
    base = ld.Sequential(ld.Linear(4, 4, bias=False, rng=0), ld.Linear(4, 4, bias=False, rng=1))
    base[1].weight = base[0].weight
    for targets in (["0"], ["0", "1"]):
        model = adapted(base=base, target_modules=targets)
        trainable, total = model.get_nb_trainable_parameters()
        assert total == 16 + trainable == 16 + 16 * len(targets)


def test_several_adapters_count_the_base_once():
    model = adapted(target_modules=["q"])
    for name in ("second", "third"):
        add(model, name, target_modules=["q"])
    of_base = sum(p.size for p in Net().parameters())
    model.set_adapter(["default", "second", "third"])
    trainable, total = model.get_nb_trainable_parameters()
    assert total == of_base + trainable == of_base + 3 * 2 * (2 * 4 + 2 * 6)
    for name in ("default", "second", "third"):  # none has been touched by acting together
        model.add_weighted_adapter([name], [1.0], f"copy of {name}")


def test_adapters_of_a_base_that_one_has_changed_are_not_added_up_or_combined():
    model = adapted(target_modules=["q"])
    add(model, "b", target_modules=["q"])
    model.requires_grad_(True)
    layer = model.blocks[0].q.base_layer
    layer.weight.data = layer.weight.data + 1
    for do in (
        lambda: model.set_adapter(["b", "default"]),
        lambda: model.set_adapter(["default", "b"]),
        lambda: model.add_weighted_adapter(["default"], [1.0], "s", "svd"),
        lambda: model.add_weighted_adapter(["default", "b"], [1.0, 1.0], "c"),
    ):
        with pytest.raises(ValueError, match="do not share one base any more: blocks"):
            do()


def test_tied_biases_stay_tied():
    base = ld.Sequential(ld.Linear(4, 4, rng=0), ld.Linear(4, 4, rng=1))
    base[1].bias = base[0].bias
    for bias in ("all", "lora_only"):
        model = adapted(base=base, target_modules=["0", "1"], bias=bias).base_model
        assert model[0].base_layer.bias is model[1].base_layer.bias
        assert model[0].base_layer.bias.requires_grad


def test_a_sum_keeps_the_dropout_of_the_first():
    model = adapted(lora_dropout=0.25)
    add(model, "other")
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    assert model.peft_config["sum"].lora_dropout == 0.25


def test_classes_inside_functions_and_slots_are_looked_into():
    net = Net()

    class Called:
        def __call__(self, x):
            return net.head(x)

    class OneSlot:
        __slots__ = "layer"

    class PrivateSlot:
        __slots__ = ("__layer",)

        def __init__(self, layer):
            self.__layer = layer

    one = OneSlot()
    one.layer = net.head
    for part in (Called(), one, PrivateSlot(net.head)):
        net._run = part
        with pytest.raises(TypeError, match=r"Net\._run is a \w+ that knows a layer"):
            adapted(base=net)


def test_a_method_that_the_replacement_has_not_is_named():
    class Twice(ld.Linear):
        def twice(self, x):
            return 2 * self(x)

    base = ld.Sequential(Twice(4, 4))
    base.run = base[0].twice
    with pytest.raises(
        TypeError, match="the method 'twice' of a Twice is used, but a LoRALinear does not have it"
    ):
        adapted(base=base, target_modules=["0"])


@pytest.mark.parametrize("wrong", [[["default"]], [None], [1]])
def test_adapters_are_named_by_strings(wrong):
    with pytest.raises(TypeError, match="adapters are named by strings"):
        adapted().set_adapter(wrong)
    with pytest.raises(ValueError, match="name at least one adapter"):
        adapted().set_adapter(None)


def test_a_subclass_may_set_attributes_before_it_begins():
    class Logged(ld.PeftModel):
        def __init__(self, *args, **options):
            self.log = []
            super().__init__(*args, **options)

    model = Logged(Net(), config())
    model.log.append(1)
    assert model.log == [1]
    name = "nothing"
    with pytest.raises(AttributeError, match=name):
        getattr(ld.PeftModel.__new__(ld.PeftModel), name)


@every_method
def test_a_merge_that_fails_says_where(method):
    model = adapted(method)
    layer = model.blocks[1].v
    big = np.full(layer.B.shape, 3e38, np.float32)
    layer.B.data, layer.A.data = big, np.ones_like(layer.A.data)
    with pytest.raises(ValueError, match=r"blocks\.1\.v: cannot merge: weight holds NaN or inf"):
        model.merge_and_unload()


def test_one_name_will_do_where_several_are_taken(tmp_path):
    model = adapted()
    add(model, "other")
    model.merge_and_unload(adapter_names="other")
    for wrong in ([Net()], None, "net"):
        with pytest.raises(TypeError, match=r"expected a model, a loradora\.Module, not a "):
            ld.get_peft_model(wrong, config())


def test_a_base_that_was_frozen_and_is_freed_again_does_not_free_the_model():
    base = WithConstants().requires_grad_(False)
    models = [adapted(base=base, target_modules=["q"]) for _ in range(2)]
    base.requires_grad_(True)
    base.q.weight.data = np.zeros_like(base.q.weight.data)
    for model in models:
        assert names_of_trainable(model) == {"base_model.q.A", "base_model.q.B"}
        assert model.q.base_layer.weight.data.any()


@every_method
def test_the_state_of_another_base_is_refused(method):
    model = adapted(method)
    add(model, "other")
    state = model.state_dict()
    twin = adapted(method, seed=5)
    add(twin, "other", seed=6)
    twin.load_state_dict(state)
    assert_array_equal(out(twin), out(model))
    before = twin.state_dict()
    with pytest.raises(ValueError, match="the state is that of another base"):
        twin.load_state_dict(state | {"base_model.scale": np.ones(4)})
    with pytest.raises(ValueError, match="the state is that of another base"):
        twin.load_state_dict(adapted(method, Net(seed=9)).state_dict())
    for name, value in twin.state_dict().items():
        assert_array_equal(value, before[name])


LOADS = {
    "load_state_dict": (
        lambda model: model.state_dict(),
        lambda model, state: model.load_state_dict(state),
    ),
    "set_peft_model_state_dict": (ld.get_peft_model_state_dict, ld.set_peft_model_state_dict),
}


@pytest.mark.parametrize("name", LOADS)
def test_an_interrupt_leaves_an_adapter_loaded_or_not_loaded(name):
    of, load = LOADS[name]
    base = ld.MLP([3, 2], rng=0)
    state = of(adapted("DoRA", base, seed=1, target_modules=["0"]))

    def prepare():
        model = adapted("DoRA", base, seed=2, target_modules=["0"])
        return model, lambda: load(model, state)

    assert_whole(prepare, lambda model: [p.data.tobytes() for p in model.parameters()])


@pytest.mark.parametrize("name", LOADS)
def test_a_loaded_adapter_has_arrays_of_its_own(name):
    of, load = LOADS[name]
    model = adapted("DoRA")
    state = of(model)
    load(model, state)
    for p in model.trainable_parameters():
        assert p.data.flags.writeable
        assert not any(np.shares_memory(p.data, array) for array in state.values())


class Runner:
    """No Module, but it knows something."""

    def __init__(self, known):
        self.known = known


class Slotted:
    __slots__ = ("known",)

    def __init__(self, known):
        self.known = known


def by_default(module):
    def run(x, *, head=module):
        return head(x)

    return run


def wrapped(function):
    @functools.wraps(function)
    def run(x):
        return function(x)

    return run


GLOBAL = Net()


@pytest.mark.parametrize(
    "reach",
    [
        lambda net: lambda x: net.head(x),
        lambda net: (lambda f: lambda x: f(x))(lambda x: net.head(x)),
        lambda net: wrapped(net.forward),
        lambda net: wrapped(net.head.forward),
        lambda net: functools.lru_cache(lambda x: net.head(x)),
        lambda net: (lambda layers: lambda x: layers[0](x))([net.head]),
        lambda net: lambda x: GLOBAL.head(x),
        lambda net: partial(net.head),
        lambda net: partial(net.head.forward),
        lambda net: partial(mg.linear, w=net.scale),
        lambda net: partial(sum, [net.head]),
        lambda net: Runner(net.head),
        lambda net: Runner([{"head": net.head}]),
        lambda net: Runner(Slotted(net.head)),
        lambda net: Runner(net).__init__,
        lambda net: weakref.ref(net.head),
        lambda net: deque([net.head]),
        lambda net: {"a": frozenset([net.head])},
        lambda net: by_default(net.head),
    ],
)
def test_what_would_go_on_to_use_the_layers_of_the_base_is_refused(reach):
    base = GLOBAL
    base._run = reach(base)
    try:
        with pytest.raises(
            TypeError, match=r"Net\._run is a .* and would go on to use the old one"
        ):
            adapted(base=base)
        assert base.scale.data.flags.writeable
    finally:
        del base._run


def test_functions_and_objects_of_something_else_are_let_through():
    base, limit, teacher = Net(), mg.Tensor(3.0), Net()
    base.run = [lambda x: mg.minimum(x, limit), partial(mg.clip, min=0), mg.relu, np.tanh, mg.gelu]
    base.note, base.rng, base.kind = Runner(None), np.random.default_rng(0), Runner
    base.teacher, base._seen = [lambda x: teacher(x), Runner(teacher)], weakref.WeakSet([teacher])
    base._history = deque([mg.Tensor(1.0)])
    base.logger, base.lock = logging.getLogger("net"), None
    assert adapted(base=base).run is not base.run


def test_methods_that_are_attributes_are_those_of_the_view():
    base = WithConstants()
    base.forward = MethodType(lambda self, x: self.head(self.project(x)), base)
    base.project = base.q.forward
    model = adapted(base=base, target_modules=["q"], lora_dropout=0.5)
    assert isinstance(model.q, ld.LoRALinear)
    assert model.project == model.q.forward
    assert not np.array_equal(out(model.eval()), base(X).data)


# ----------------------------------------------------------------------------- modes and attributes


class WithDropout(ld.Module):
    def __init__(self):
        self.q, self.drop, self.temperature = ld.Linear(4, 4, rng=0), ld.Dropout(0.5, rng=0), 1.0

    def forward(self, x):
        return self.drop(self.q(x)) / self.temperature


def modes(model):
    return {path: module.training for path, module in model.named_modules()}


@every_method
def test_each_module_keeps_its_mode_however_adapters_change(method):
    base = WithDropout()
    base.drop.eval()
    model = adapted(method, base, target_modules=["q"], lora_dropout=0.5)
    model.add_adapter("other", config(target_modules=["q"], lora_dropout=0.5))

    def check(drop, rest):
        found = modes(model)
        assert found.pop("base_model.drop") is drop
        assert set(found.values()) == {rest}

    check(drop=False, rest=True)
    for names in ("other", "default"):
        model.set_adapter(names)
        check(drop=False, rest=True)
    model.eval()
    model.base_model.drop.train()
    model.set_adapter("other")
    check(drop=True, rest=False)
    with model.disable_adapter():
        check(drop=True, rest=False)
    model.delete_adapter("default")
    model.delete_adapter("other")
    check(drop=True, rest=False)


def test_several_adapters_at_once_keep_the_mode_of_each_module():
    model = adapted(base=WithDropout(), target_modules=["q"])
    add(model, "other", target_modules=["q"])
    model.eval()
    model.set_adapter(["default", "other"])
    assert set(modes(model).values()) == {False}
    model.train()
    assert set(modes(model).values()) == {True}


@every_method
def test_an_attribute_of_the_model_inside_is_not_set_in_vain(method):
    model = adapted(method, WithDropout(), target_modules=["q"])
    for name, value in {"temperature": 10.0, "drop": None}.items():
        with pytest.raises(AttributeError, match=f"'{name}' is an attribute of the model inside"):
            setattr(model, name, value)
    for name, value in {"q": ld.Linear(4, 4), "head": ld.ReLU(), "t": mg.Tensor(1.0)}.items():
        with pytest.raises(AttributeError, match=f"'{name}' would be no part of this model"):
            setattr(model, name, value)
    model.note = "mine"
    assert model.note == "mine"


def test_active_adapters_are_chosen_by_set_adapter_alone():
    model = adapted()
    add(model, "other")
    with pytest.raises(AttributeError, match="active_adapters"):
        model.active_adapters = ["other"]
    model.active_adapters.append("other")
    assert model.active_adapters == ["default"]


def test_a_tied_module_that_trains_whole_acts_beside_another_adapter():
    model = adapted(base=Net(), target_modules=["v"], modules_to_save=["blocks.0.q", "tied.q"])
    add(model, "other", target_modules=["blocks.1.q"])
    model.set_adapter(["default", "other"])
    assert type(model.blocks[0].q) is ld.Linear
    assert model.blocks[0].q is model.tied.q
    assert_allclose(model.merge_and_unload()(X).data, out(model.eval()), rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------- half precision


@every_method
def test_adapters_over_a_float16_base_train_in_float32(method):
    base = ld.MLP([4, 8, 3], rng=0, dtype=np.float16)
    model = ld.get_peft_model(base, config(method, target_modules="all-linear"), rng=0)
    x = X.astype(np.float16)
    assert_array_equal(model(x).data, base(x).data)
    assert model(x).dtype == np.float16
    optimizer = ld.AdamW(model.parameters(), lr=0.01)
    labels = np.arange(len(X)) % 3
    losses = [s.loss for s in ld.fit(model, x, labels, optimizer=optimizer, steps=60, rng=0)]
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.trainable_parameters()} == {np.dtype(np.float32)}
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {np.dtype(np.float16)}
    assert_allclose(merged(x).data, model(x).data, atol=2e-2)


@pytest.mark.parametrize("cast", [True, False])
def test_the_dtype_of_a_float16_adapter_goes_through_files_and_copies(cast, tmp_path):
    dtype = np.float32 if cast else np.float16
    base = ld.MLP([4, 3], rng=0, dtype=np.float16)
    option = {"autocast_adapter_dtype": cast}
    model = ld.get_peft_model(base, config(target_modules="all-linear"), rng=0, **option)
    randomized(model)
    model.add_adapter("second", config(target_modules="all-linear"), rng=1, **option)
    model.add_weighted_adapter(["default"], [1], "copy")
    model.add_weighted_adapter(["default", "second"], [1, 1], "sum")
    model.save_adapter(tmp_path / "a.npz")
    model.load_adapter(tmp_path / "a.npz", "loaded", **option)
    for name in model.peft_config:
        model.set_adapter(name)
        layer = model.layers[0]
        assert (layer.A.dtype, layer.B.dtype) == (dtype, dtype)
        assert model(X).dtype == np.float16
    loaded = ld.PeftModel.from_pretrained(base, tmp_path / "a.npz", **option)
    assert loaded.layers[0].A.dtype == dtype
