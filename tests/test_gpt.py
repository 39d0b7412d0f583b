"""A small GPT is adapted where LoRA's authors adapt theirs, and can be restored bit for bit."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg

EXAMPLES = Path(__file__).parent.parent / "examples"

CHARACTERS, CONTEXT = 7, 6
Q_AND_V = ["q_proj", "v_proj"]
LINEAR = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "fc1",
    "fc2",
]

both_methods = pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
both_targets = pytest.mark.parametrize(
    "target_modules", [Q_AND_V, "all-linear"], ids=["q and v", "all linear"]
)


@pytest.fixture(scope="module")
def gpt():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("gpt")


@pytest.fixture
def base(gpt):
    return small(gpt)


def small(gpt, **options):
    """Return a GPT of two blocks, the tables as large as a trained one's."""
    sizes = {"characters": CHARACTERS, "context": CONTEXT, "width": 4, "layers": 2, "heads": 2}
    model = gpt.GPT(rng=0, **sizes | {"dtype": np.float64} | options)
    for table in model.model["decoder"].embed_tokens, model.model["decoder"].embed_positions:
        table.weight.data = (table.weight.data * 25).astype(table.weight.dtype)
    return model


def adapted(base, seed=1, **options):
    """Return the GPT with an adapter with random numbers, not only at its start."""
    config = ld.LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": Q_AND_V, **options})
    model = ld.get_peft_model(base, config, rng=seed)
    rng = np.random.default_rng(seed)
    for p in model.trainable_parameters():
        p.data = (p.data + rng.normal(size=p.shape) / 3).astype(p.dtype)
    return model


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(CHARACTERS, size=shape)


def paths(model):
    """Return the paths of the adapted layers."""
    return [p for p, m in model.named_modules() if isinstance(m, ld.LowRankLinear)]


def block(i, name):
    return f"base_model.model.decoder.layers.{i}.{name}"


# ----------------------------------------------------------------------------- the model


def test_parameters_have_the_names_of_opt(base):
    names = base.state_dict().keys()
    assert {name.partition(".layers.")[0] for name in names} == {
        *(f"model.decoder.embed_{x}.weight" for x in ("tokens", "positions")),
        *(f"model.decoder.final_layer_norm.{x}" for x in ("weight", "bias")),
        "model.decoder",
    }
    assert "model.decoder.layers.1.self_attn.q_proj.weight" in names
    assert "lm_head.weight" not in names  # it is the table of characters
    assert base.lm_head.weight is base.model["decoder"].embed_tokens.weight


def test_a_later_character_changes_no_earlier_guess(base):
    one = ids(2, CONTEXT)
    other = one.copy()
    other[:, 3] = (one[:, 3] + 1) % CHARACTERS
    y, changed = base(one).data, base(other).data
    assert_array_equal(changed[:, :3], y[:, :3])
    assert not np.array_equal(changed[:, 3], y[:, 3])


@pytest.mark.parametrize("shape", [(CONTEXT,), (1,), (2, 3), (2, 2, 3), (0, 3)], ids=str)
def test_texts_come_in_any_number_of_axes(base, shape):
    y = base(ids(*shape))
    assert y.shape == (*shape, CHARACTERS)
    assert_allclose(base(ids(*shape).tolist()).data, y.data) if shape[0] else None
    for i in np.ndindex(shape[:-1]):
        assert_allclose(y.data[i], base(ids(*shape)[i]).data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [[], [[], []], 3, np.zeros((2, 0), int)], ids=repr)
def test_an_empty_text_is_refused(base, given):
    with pytest.raises(ValueError, match=r"no character to continue from: .* \(\.\.\., T\)"):
        base(given)


def test_a_text_longer_than_the_context_is_refused(base):
    with pytest.raises(ValueError, match="7 characters are too many for a context of 6"):
        base(ids(2, CONTEXT + 1))


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"layers": -1}, "layers must be at least 1, not -1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"context": -1}, "context must be at least 1, not -1"),
        ({"characters": 0}, "characters must be at least 1"),
        ({"width": 0}, "dim must be at least 1"),
        ({"heads": 0}, "num_heads must be at least 1"),
        ({"heads": 3}, "3 heads cannot share"),
    ],
    ids=str,
)
def test_sizes_that_make_no_sense_are_refused(gpt, option, error):
    with pytest.raises(ValueError, match=error):
        small(gpt, **option)


def test_a_context_may_be_a_small_integer_of_numpy(gpt):
    table = small(gpt, context=np.uint8(255)).model["decoder"].embed_positions
    assert len(table.weight) == 257


@pytest.mark.parametrize(("given", "error"), [([0, 7], IndexError), ([0.5], TypeError)])
def test_ids_that_are_in_no_table_are_refused(base, given, error):
    with pytest.raises(error, match=r"id 7 is out of range for 7 embeddings|ids are integers"):
        base(given)


def test_a_gpt_of_float16_computes_in_it(gpt):
    half, exact = small(gpt, dtype=np.float16), small(gpt)
    exact.load_state_dict(half.state_dict())
    y = half(ids(2, CONTEXT))
    assert y.dtype == np.float16
    assert_allclose(y.data, exact(ids(2, CONTEXT)).data, rtol=0.02, atol=0.05)


def test_the_table_gets_its_gradient_from_both_of_its_uses(base):
    """As vectors that go in, and as the last layer, at once."""
    table = base.model["decoder"].embed_tokens.weight
    labels = ids(2, CONTEXT, seed=1)
    mg.gradcheck(
        lambda table: mg.cross_entropy(base(ids(2, CONTEXT)), labels),
        table,
    )


# ----------------------------------------------------------------------------- its adapters


@pytest.mark.parametrize(
    ("options", "trainable"),
    [
        ({"target_modules": Q_AND_V}, 16_384),
        ({"target_modules": "all-linear"}, 73_728),
        ({"target_modules": Q_AND_V, "use_dora": True}, 17_408),
        ({"target_modules": "all-linear", "use_dora": True}, 78_336),
    ],
    ids=str,
)
def test_so_much_is_trained_of_the_net_that_the_lesson_adapts(gpt, capsys, options, trainable):
    model = ld.get_peft_model(gpt.GPT(rng=0), ld.LoraConfig(r=8, **options))
    total = 810_112 + trainable
    assert model.get_nb_trainable_parameters() == (trainable, total)  # the tied table once
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(
        f"trainable params: {trainable:,} || all params: {total:,} ||"
    )


@both_methods
def test_all_linear_is_every_linear_of_every_block_and_never_a_table(base, use_dora):
    model = adapted(base, target_modules="all-linear", use_dora=use_dora)
    assert paths(model) == [block(i, name) for i in range(2) for name in LINEAR]


@both_methods
def test_the_head_is_adapted_if_it_is_named_and_merging_unties_it(base, use_dora):
    x, model = ids(2, CONTEXT), adapted(base, target_modules=["lm_head"], use_dora=use_dora)
    assert paths(model) == ["base_model.lm_head"]
    merged = model.merge_and_unload()
    assert_allclose(merged(x).data, model(x).data, rtol=1e-12, atol=1e-12)
    table = merged.model["decoder"].embed_tokens.weight
    assert_array_equal(table.data, base.lm_head.weight.data)
    assert not np.array_equal(merged.lm_head.weight.data, table.data)
    with pytest.raises(ValueError, match=r"lm_head\.weight and .*embed_tokens\.weight differ"):
        base.load_state_dict(merged.state_dict())


@both_methods
def test_a_head_is_not_adapted_if_it_is_to_stay_tied(base, use_dora):
    with pytest.raises(
        ValueError,
        match=r"^ensure_weight_tying: lm_head shares its weight with model\.decoder\.embed_",
    ):
        adapted(
            base, target_modules=["q_proj", "lm_head"], ensure_weight_tying=True, use_dora=use_dora
        )


def test_a_layer_is_not_adapted_if_it_is_to_stay_tied_to_another_that_is():
    twins = ld.Sequential(ld.Linear(3, 3), ld.Linear(3, 3))
    twins[1].weight = twins[0].weight
    assert paths(adapted(twins, target_modules=["0", "1"])) == ["base_model.0", "base_model.1"]
    for targets in ["0", "1"], ["1"]:
        with pytest.raises(ValueError, match=r"ensure_weight_tying: . shares its weight with ., "):
            adapted(twins, target_modules=targets, ensure_weight_tying=True)
    twins[1].weight = mg.Tensor(twins[0].weight.data)
    twins[1].bias = twins[0].bias  # which no adapter changes
    adapted(twins, target_modules=["0", "1"], ensure_weight_tying=True)


def test_a_layer_that_is_drawn_in_by_its_tie_is_no_target(base):
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    words = "lm_head: a target, and tied to a module of modules_to_save (ensure_weight_tying)"
    model = adapted(base, target_modules=".*(q_proj|lm_head)", **options)
    assert paths(model) == [block(i, "self_attn.q_proj") for i in range(2)]
    for targets in ["q_proj", "lm_head"], ["lm_head"], "lm_head":
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            adapted(base, target_modules=targets, **options)
    both = r"^lm_head: named by both target_modules and modules_to_save$"
    with pytest.raises(ValueError, match=both):
        adapted(base, target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])


def test_all_linear_leaves_out_a_layer_that_is_drawn_in_by_its_tie():
    model = ld.Sequential(*(ld.Linear(3, 3, bias=False) for _ in range(3)))
    model[2].weight = model[0].weight
    model = adapted(
        model, target_modules="all-linear", modules_to_save=["0"], ensure_weight_tying=True
    )
    assert paths(model) == ["base_model.1"]
    inside = model.base_model
    assert inside[0].weight is inside[2].weight
    assert inside[0].weight.requires_grad


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_a_file_names_the_layers_that_all_linear_has_found(gpt, form, tmp_path):
    """PEFT would leave out the output layer of a transformers model, tied or not."""
    base = small(gpt)
    base.lm_head.weight = mg.Tensor(base.lm_head.weight.data + 1, requires_grad=True)
    model = adapted(base, target_modules="all-linear")
    assert paths(model)[-1] == "base_model.lm_head"
    if form == "npz":
        model.save_adapter(tmp_path / "adapter.npz")
    else:
        pytest.importorskip("safetensors")
        model.save_pretrained(tmp_path / "adapter.npz")
    again = ld.PeftModel.from_pretrained(base, tmp_path / "adapter.npz")
    assert_array_equal(again(ids(2, 3)).data, model(ids(2, 3)).data)
    named = again.peft_config["default"].target_modules
    for path in paths(model):
        assert re.fullmatch(named, path.removeprefix("base_model."))
    assert model.peft_config["default"].target_modules == "all-linear"


@both_targets
@both_methods
def test_an_adapter_starts_as_the_base_and_leaves_it_as_it_was(base, use_dora, target_modules):
    x, before = ids(2, CONTEXT), base.state_dict()
    y = base(x).data
    options = {"r": 2, "target_modules": target_modules, "use_dora": use_dora}
    model = ld.get_peft_model(base, ld.LoraConfig(**options), rng=0)
    assert_array_equal(model(x).data, y)
    model = adapted(base, target_modules=target_modules, use_dora=use_dora)
    assert np.abs(model(x).data - y).max() > 0.1
    with model.disable_adapter():
        assert_array_equal(model(x).data, y)
    assert_array_equal(base(x).data, y)
    for name, value in before.items():
        assert_array_equal(base.state_dict()[name], value)


@both_targets
@both_methods
def test_a_merged_gpt_computes_what_the_adapted_one_does(base, use_dora, target_modules):
    x, model = ids(2, CONTEXT), adapted(base, target_modules=target_modules, use_dora=use_dora)
    merged = model.merge_and_unload()
    assert list(merged.state_dict()) == list(base.state_dict())
    assert_allclose(merged(x).data, model(x).data, rtol=1e-12, atol=1e-12)
    assert not paths(merged)


@both_targets
@both_methods
def test_adapters_in_attention_are_differentiated(base, use_dora, target_modules):
    exact = {"detach_norm": False} if use_dora else {}  # what finite differences see
    model = adapted(base, target_modules=target_modules, use_dora=use_dora, **exact)
    x, labels = ids(2, 3), ids(2, 3, seed=1)
    mg.gradcheck(
        lambda *_: mg.cross_entropy(model(x), labels),
        *model.trainable_parameters(),
    )


@both_targets
@both_methods
@pytest.mark.parametrize("form", ["npz", "folder"])
def test_an_adapter_is_saved_and_loaded(base, use_dora, target_modules, form, tmp_path):
    x, model = ids(2, CONTEXT), adapted(base, target_modules=target_modules, use_dora=use_dora)
    if form == "npz":
        model.save_adapter(tmp_path / "adapter.npz")
        again = ld.PeftModel.from_pretrained(base, tmp_path / "adapter.npz")
    else:
        pytest.importorskip("safetensors")
        model.save_pretrained(tmp_path)
        again = ld.PeftModel.from_pretrained(base, tmp_path)
    assert_array_equal(again(x).data, model(x).data)
    assert paths(again) == paths(model)


def test_a_view_shares_what_it_does_not_adapt_in_lists_and_dicts_too(base):
    model = adapted(base)
    own, shared = dict(base.named_parameters()), dict(model.base_model.named_parameters())
    for name, p in own.items():
        path = re.sub(r"([qv]_proj)\.", r"\1.base_layer.", name)
        assert np.shares_memory(shared[path].data, p.data), name
    assert model.base_model.model is not base.model
    decoder = model.base_model.model["decoder"]
    assert decoder.layers is not base.model["decoder"].layers
    assert decoder.embed_tokens.weight.data is base.model["decoder"].embed_tokens.weight.data


@both_methods
def test_only_what_is_adapted_learns(base, use_dora):
    model = adapted(base, use_dora=use_dora)
    before, x, labels = model.state_dict(), ids(4, CONTEXT), ids(4, CONTEXT, seed=1)
    optimizer = ld.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = mg.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    ends = (".A", ".B", ".m")
    for name, value in model.state_dict().items():
        assert np.array_equal(value, before[name]) is not name.endswith(ends), name


# ----------------------------------------------------------------------------- modules that train whole

KEEPS = pytest.mark.filterwarnings("ignore:.* shares a tensor with a module:UserWarning")
TABLES = ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]


def whole(base, names, tying=True):
    return adapted(base, modules_to_save=names, ensure_weight_tying=tying)


@pytest.mark.parametrize("names", TABLES, ids=str)
def test_a_tied_table_trains_as_one_if_that_is_asked_for(base, names):
    model = whole(base, names)
    inside = model.base_model
    table = inside.model["decoder"].embed_tokens.weight
    assert table is inside.lm_head.weight
    assert table.requires_grad
    assert not np.array_equal(table.data, base.lm_head.weight.data)
    trained = 2 * 2 * 2 * (2 * 4) + table.size
    assert model.get_nb_trainable_parameters()[0] == trained
    labels = ids(2, 3, seed=1)
    mg.gradcheck(lambda *_: mg.cross_entropy(model(ids(2, 3)), labels), table)
    with model.disable_adapter():
        assert_array_equal(model(ids(2, 3)).data, base(ids(2, 3)).data)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model["decoder"].embed_tokens.weight
    assert_allclose(merged(ids(2, 3)).data, model(ids(2, 3)).data, rtol=1e-12, atol=1e-12)


def test_a_table_that_is_not_to_stay_tied_leaves_the_head_as_it_is_and_says_so(base):
    words = r"^lm_head shares a tensor .* ensure_weight_tying=True"
    with pytest.warns(UserWarning, match=words) as found:
        model = whole(base, ["embed_tokens"], tying=False)
    assert [w.filename for w in found] == [__file__]
    inside = model.base_model
    assert_array_equal(inside.lm_head.weight.data, base.lm_head.weight.data)
    assert inside.model["decoder"].embed_tokens.weight is not inside.lm_head.weight
    with pytest.warns(UserWarning, match=r"^model\.decoder\.embed_tokens shares a tensor"):
        whole(base, ["lm_head"], tying=False)


@KEEPS
@pytest.mark.parametrize("tying", [False, True])
@pytest.mark.parametrize("names", TABLES[:2], ids=str)
def test_a_table_that_trains_whole_is_saved_and_loaded(base, names, tying, tmp_path):
    x, model = ids(2, CONTEXT), whole(base, names, tying)
    model.save_adapter(tmp_path / "adapter.npz")
    again = ld.PeftModel.from_pretrained(base, tmp_path / "adapter.npz")
    assert_array_equal(again(x).data, model(x).data)
    state = ld.get_peft_model_state_dict(model)
    tables = {key for key in state if key.endswith(("lm_head.weight", "embed_tokens.weight"))}
    assert len(tables) == 1 + tying  # PEFT writes a tied one under each of its names
    ld.set_peft_model_state_dict(again, state)


def test_two_values_for_a_tied_table_are_refused(base):
    model = whole(base, ["embed_tokens"])
    state = ld.get_peft_model_state_dict(model)
    state["base_model.model.lm_head.weight"] += 1
    before = model.state_dict()
    with pytest.raises(
        ld.CheckpointError, match=r"embed_tokens\.weight and lm_head\.weight differ"
    ):
        ld.set_peft_model_state_dict(model, state)
    for name, value in before.items():
        assert_array_equal(model.state_dict()[name], value)


def test_a_tied_table_that_is_missing_under_one_name_is_not_guessed(base):
    """If it comes from PEFT, for a model not of transformers, the table is no longer tied."""
    model = whole(base, ["embed_tokens"])
    state = ld.get_peft_model_state_dict(model)
    state.pop("base_model.model.lm_head.weight")
    words = (
        r"missing lm_head\.weight \(7, 4\); lm_head\.weight is tied to .*embed_tokens\.weight here"
    )
    with pytest.raises(ld.CheckpointError, match=words):
        ld.set_peft_model_state_dict(model, state)


def test_a_tied_table_may_hold_nan(base):
    model = whole(base, ["embed_tokens"])
    state = ld.get_peft_model_state_dict(model)
    state = {name: np.full_like(a, np.nan) for name, a in state.items()}
    ld.set_peft_model_state_dict(model, state, allow_nan=True)
    assert np.isnan(model.base_model.lm_head.weight.data).all()


def test_a_tied_table_does_not_fit_a_base_in_which_it_is_not_tied(base, gpt, tmp_path):
    whole(base, ["embed_tokens"]).save_adapter(tmp_path / "adapter.npz")
    untied = small(gpt)
    untied.lm_head.weight = mg.Tensor(base.lm_head.weight.data, requires_grad=True)
    with pytest.raises(
        ld.CheckpointError, match=r"lm_head\.weight differs .* to a module that trains whole"
    ):
        ld.PeftModel.from_pretrained(untied, tmp_path / "adapter.npz")


def test_a_tied_table_acts_beside_another_adapter(base):
    model = whole(base, ["embed_tokens"])
    y = model(ids(2, 3)).data
    model.add_adapter("other", ld.LoraConfig(r=1, target_modules=["fc1"]))
    model.set_adapter(["default", "other"])
    assert_allclose(model(ids(2, 3)).data, y, rtol=1e-12)
    assert model.base_model.lm_head.weight is model.base_model.model["decoder"].embed_tokens.weight


def test_a_tie_with_a_module_that_holds_others_is_refused(base):
    base.spare = base.lm_head.weight
    with pytest.raises(ValueError, match="ensure_weight_tying: the model shares a tensor"):
        whole(base, ["embed_tokens"])


def test_so_is_a_tie_with_a_module_inside_that_holds_others(base):
    base.spare = ld.Sequential(ld.Linear(2, 2))
    base.spare.table = base.lm_head.weight
    with pytest.raises(
        ValueError, match=r"ensure_weight_tying: spare shares a tensor .* holds other"
    ):
        whole(base, ["embed_tokens"])


@pytest.mark.parametrize(
    "names", [["layer_norm"], ["embed_positions"], ["final_layer_norm"]], ids=str
)
def test_norms_and_positions_train_whole(base, names, tmp_path):
    model = adapted(base, modules_to_save=names)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if names[0] in name} == {
        f"base_model.{name}" for name in base.state_dict() if names[0] in name
    }
    model.save_adapter(tmp_path / "adapter.npz")
    again = ld.PeftModel.from_pretrained(base, tmp_path / "adapter.npz")
    assert_array_equal(again(ids(2, 3)).data, model(ids(2, 3)).data)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_norms_train_with_all_biases(base, bias):
    model = adapted(base, bias=bias)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = [name for name in base.state_dict() if name.endswith("layer_norm.bias")]
    assert len(norms) == 5
    assert all((f"base_model.{name}" in trained) == (bias == "all") for name in norms)


@pytest.mark.parametrize("name", ["embed_tokens", "final_layer_norm", "self_attn"])
def test_only_linear_layers_are_adapted(base, name):
    with pytest.raises(ValueError, match=rf"only Linear layers can be adapted, not .*{name} \("):
        adapted(base, target_modules=["q_proj", name])
