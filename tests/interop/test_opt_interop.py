"""A GPT of ours is an OPT of ``transformers``, and its adapters are PEFT's.

Weights and names are the same, so a checkpoint or an adapter of one side fits the other.  The
promise is 1e-5 in float32 and 1e-12 in float64, for logits of about 1 to 10, and 1e-6 for the losses of
a training.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)
safetensors = pytest.importorskip("safetensors.torch", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"characters": 11, "context": 8, "width": 12, "layers": 3, "heads": 2}
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

KINDS: dict[str, dict[str, Any]] = {
    f"{method} of {name}": {"target_modules": targets, "use_dora": method == "DoRA"}
    for method in ("LoRA", "DoRA")
    for name, targets in {"q and v": ["q_proj", "v_proj"], "all linear": "all-linear"}.items()
}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(scope="module", autouse=True)
def examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield


def gpt(dtype: str = "float32") -> Any:
    return importlib.import_module("gpt").GPT(**SIZES, rng=0, dtype=dtype)


def opt(dtype: str = "float32", tied: bool = True) -> Any:
    """Return an OPT of the form of our GPT, with random weights."""
    config = transformers.OPTConfig(
        vocab_size=SIZES["characters"],
        max_position_embeddings=SIZES["context"],
        hidden_size=SIZES["width"],
        word_embed_proj_dim=SIZES["width"],
        ffn_dim=4 * SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        activation_function="relu",
        do_layer_norm_before=True,
        enable_bias=True,
        tie_word_embeddings=tied,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    torch.manual_seed(0)
    net = transformers.OPTForCausalLM(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) / 5)
    return net


def twin(theirs: Any) -> Any:
    """Return the GPT with the weights of ``theirs``."""
    ours = gpt(str(theirs.dtype).removeprefix("torch."))
    if not theirs.config.tie_word_embeddings:
        ours.lm_head.weight = mg.Tensor(ours.lm_head.weight.data, requires_grad=True)
    ours.load_state_dict(twins.state(theirs))
    return ours


def texts(seed: int = 1) -> tuple[Any, Any]:
    """Return a batch of texts, and the character after each of theirs."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(SIZES["characters"], size=(4, SIZES["context"] + 1))
    return ids[:, :-1], ids[:, 1:]


def logits(model: Any) -> Any:
    ids, _ = texts()
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(torch.tensor(ids)).logits.numpy()
    return model(ids).data


def loss(model: Any, seed: int) -> Any:
    ids, following = texts(seed)
    if isinstance(model, torch.nn.Module):
        y = model(torch.tensor(ids)).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(y, torch.tensor(following.ravel()))
    return mg.cross_entropy(model(ids), following)


def adapt(model: Any, **options: Any) -> Any:
    return twins.adapt(model, **{"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"} | options)


def training(model: Any, steps: int) -> list[float]:
    """Train the adapter with AdamW on four batches in turn, gradients clipped; return the losses."""
    library = torch.optim if isinstance(model, torch.nn.Module) else ld
    clip = torch.nn.utils.clip_grad_norm_ if library is torch.optim else ld.clip_grad_norm_
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = library.AdamW(trainable, lr=0.02)
    model.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, seed=step % 4)
        value.backward()
        clip(trainable, 1.0)
        optimizer.step()
        losses.append(value.item())
    model.eval()
    return losses


def agree(ours: Any, theirs: Any) -> None:
    twins.agree(ours, theirs, tolerance=TOLERANCE[ours.dtype.name])


# -------------------------------------------------------------------------------------- the base


@both_dtypes
def test_a_checkpoint_of_opt_is_one_of_ours(dtype: str) -> None:
    net = opt(dtype)
    assert np.abs(logits(net)).max() > 1
    agree(logits(twin(net)), logits(net))


@both_dtypes
def test_a_checkpoint_of_ours_is_one_of_opt(dtype: str) -> None:
    ours, net = gpt(dtype), opt(dtype)
    state = {name: torch.tensor(value) for name, value in ours.state_dict().items()}
    found = net.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}  # tied
    agree(logits(ours), logits(net))
    assert np.abs(logits(net)).max() > 0.01


def test_a_folder_of_transformers_is_read(tmp_path: Path) -> None:
    net, ours = opt(), gpt()
    net.save_pretrained(tmp_path)
    ld.load_model(tmp_path / "model.safetensors", ours)
    agree(logits(ours), logits(net))


def test_a_folder_of_transformers_with_shards_is_read(tmp_path: Path) -> None:
    net, ours = opt(), gpt()
    net.save_pretrained(tmp_path, max_shard_size=5_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    ld.load_model(tmp_path / "model.safetensors.index.json", ours)
    agree(logits(ours), logits(net))


def test_a_file_with_the_table_under_the_name_of_the_head_is_read(tmp_path: Path) -> None:
    net, ours, file = opt(), gpt(), tmp_path / "model.safetensors"
    safetensors.save_model(net, str(file))
    assert "model.decoder.embed_tokens.weight" not in safetensors.load_file(file)
    ld.load_model(file, ours)
    agree(logits(ours), logits(net))


def test_gradients_of_all_parameters_agree() -> None:
    net = opt("float64")
    ours = twin(net)
    for model in (net, ours):
        loss(model, seed=2).backward()
    theirs = {name: p.grad.numpy() for name, p in net.named_parameters()}
    twins.agree({name: p.grad for name, p in ours.named_parameters()}, theirs)


# -------------------------------------------------------------------------------------- adapters


@both_dtypes
@every_kind
def test_an_adapter_trained_here_works_in_peft(kind: str, dtype: str, tmp_path: Path) -> None:
    net = opt(dtype)
    ours = adapt(twin(net), **KINDS[kind])
    training(ours, 5)
    ours.save_pretrained(tmp_path)
    theirs = twins.load(net, tmp_path)
    assert type(theirs).__name__ == "PeftModelForCausalLM"
    assert np.abs(logits(theirs) - logits(net)).max() > 0.1, "it learned nothing"
    agree(logits(ours), logits(theirs))


@both_dtypes
@every_kind
def test_an_adapter_trained_in_peft_works_here(kind: str, dtype: str, tmp_path: Path) -> None:
    net = opt(dtype)
    theirs = adapt(net, **KINDS[kind])
    training(theirs, 5)
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twin(net), tmp_path)
    assert np.abs(logits(theirs) - logits(net)).max() > 0.1, "it learned nothing"
    agree(logits(ours), logits(theirs))
    with ours.disable_adapter(), theirs.disable_adapter():
        agree(logits(ours), logits(theirs))


@every_kind
def test_the_same_layers_are_adapted_and_saved(kind: str, tmp_path: Path) -> None:
    net = opt()
    models = {"ours": adapt(twin(net), **KINDS[kind]), "theirs": adapt(net, **KINDS[kind])}
    ours, theirs = models.values()
    assert twins.adapted(ours) == twins.adapted(theirs)
    assert len(twins.adapted(ours)) == SIZES["layers"] * (6 if "all" in kind else 2)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    for side, model in models.items():
        model.save_pretrained(str(tmp_path / side))
    ours, theirs = (twins.on_disk(tmp_path / side) for side in models)
    assert {k: a.shape for k, a in ours.items()} == {k: a.shape for k, a in theirs.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@every_kind
def test_a_training_takes_the_same_course(kind: str, dtype: str, tolerance, tmp_path: Path) -> None:
    net = opt(dtype)
    theirs = adapt(net, **KINDS[kind])
    theirs.save_pretrained(str(tmp_path))  # so that both start alike
    ours = twins.load(twin(net), tmp_path, is_trainable=True)
    one, other = training(ours, 20), training(theirs, 20)
    assert np.mean(one[-4:]) < np.mean(one[:4]) - 0.1, "it learned nothing"
    np.testing.assert_allclose(one, other, rtol=tolerance)


@every_kind
def test_a_merged_gpt_is_a_checkpoint_for_opt(kind: str, tmp_path: Path) -> None:
    net = opt()
    ours = adapt(twin(net), **KINDS[kind])
    training(ours, 5)
    ld.save_model(tmp_path / "merged.safetensors", ours.merge_and_unload())
    plain = opt()
    state = importlib.import_module("safetensors.torch").load_file(tmp_path / "merged.safetensors")
    plain.load_state_dict(state, strict=False)
    agree(logits(ours), logits(plain))


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_what_peft_notes_of_a_base_of_transformers_is_kept(task_type, tmp_path: Path) -> None:
    """Without a task, PEFT notes the class of the base."""
    opt().save_pretrained(tmp_path / "base")
    net = transformers.OPTForCausalLM.from_pretrained(tmp_path / "base")
    theirs = adapt(net, target_modules=["q_proj"], task_type=task_type)
    theirs.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    assert (written["auto_mapping"] is None) is (task_type is not None)
    ours = twins.load(twin(net), tmp_path)
    assert ours.peft_config["default"].to_dict() == written
    ours.save_pretrained(tmp_path / "ours")
    assert type(twins.load(net, tmp_path / "ours")) is type(theirs)


# -------------------------------------------------------------------------------------- other options

OPTIONS: dict[str, dict[str, Any]] = {
    "biases of all": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "a norm that trains whole": {"modules_to_save": ["decoder.final_layer_norm"]},
    "all norms": {"modules_to_save": ["layer_norm"]},
    "positions that train whole": {"modules_to_save": ["embed_positions"]},
    "two blocks": {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "one block": {"layers_to_transform": 2},
    "ranks": {"rank_pattern": {"v_proj": 3, r"layers\.1\.self_attn\.q_proj": 1}},
    "alphas": {"alpha_pattern": {"^model.decoder.layers.0.self_attn.q_proj": 5}},
    "all but some": {"target_modules": "all-linear", "exclude_modules": ["fc1", "out_proj"]},
    "all but a block": {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\..*"},
    "an expression": {"target_modules": r".*\.1\..*(q|v)_proj"},
    "rsLoRA": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_mean_the_same(name: str, use_dora: bool, tmp_path: Path) -> None:
    net = opt()
    options = {"target_modules": ["q_proj", "v_proj"], "use_dora": use_dora} | OPTIONS[name]
    models = {"ours": adapt(twin(net), **options), "theirs": adapt(net, **options)}
    ours, theirs = models.values()
    assert twins.adapted(ours) == twins.adapted(theirs)
    assert ours.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]
    for side, model in models.items():
        training(model, 3)
        model.save_pretrained(str(tmp_path / side))
    there, here = twins.load(net, tmp_path / "ours"), twins.load(twin(net), tmp_path / "theirs")
    agree(logits(ours), logits(there))
    agree(logits(here), logits(theirs))
    assert twins.on_disk(tmp_path / "ours").keys() == twins.on_disk(tmp_path / "theirs").keys()


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
def test_all_linear_of_a_net_that_is_not_tied_travels_to_peft(
    use_dora: bool, tmp_path: Path
) -> None:
    """It has the output layer here, and not in PEFT, which reads the names of the layers in the file."""
    net = opt(tied=False)
    options = {"target_modules": "all-linear", "use_dora": use_dora}
    ours = adapt(twin(net), **options)
    training(ours, 3)
    ours.save_pretrained(str(tmp_path))
    there = twins.load(net, tmp_path)
    agree(logits(ours), logits(there))
    named = {name for name, _ in there.named_parameters() if "lm_head.lora" in name}
    assert len(named) == 2 + use_dora
    theirs = adapt(opt(tied=False), **options)
    assert not any("lm_head.lora" in name for name, _ in theirs.named_parameters())


# -------------------------------------------------------------------------------------- the tied table

#: What PEFT says whenever one of two tied modules trains, and we when it is made.
UNTIED = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* shares a tensor with a module that trains:UserWarning"),
]
each_table = pytest.mark.parametrize("table", ["embed_tokens", "lm_head"])
tied_or_not = pytest.mark.parametrize(
    "tying", [pytest.param(False, marks=UNTIED, id="untied"), pytest.param(True, id="tied")]
)


def with_table(base: Any, table: str, tying: bool) -> Any:
    return adapt(
        base, target_modules="all-linear", modules_to_save=[table], ensure_weight_tying=tying
    )


@each_table
@tied_or_not
def test_a_table_that_trains_whole_travels_both_ways(table, tying, tmp_path: Path) -> None:
    """PEFT leaves the other module that uses it as it was, unless it is asked to keep them tied."""
    net = opt()
    ours, theirs = (with_table(base, table, tying) for base in (twin(net), net))
    trainable, total = ours.get_nb_trainable_parameters()
    # PEFT also counts the table that nobody uses any more
    unused = SIZES["characters"] * SIZES["width"] if tying else 0
    assert theirs.get_nb_trainable_parameters() == (trainable, total + unused)
    for side, model in (("ours", ours), ("theirs", theirs)):
        training(model, 3)
        model.save_pretrained(str(tmp_path / side))
    assert twins.on_disk(tmp_path / "ours").keys() == twins.on_disk(tmp_path / "theirs").keys()
    there, here = twins.load(net, tmp_path / "ours"), twins.load(twin(net), tmp_path / "theirs")
    agree(logits(ours), logits(there))
    agree(logits(here), logits(theirs))
    agree(logits(here.merge_and_unload()), logits(theirs))


@each_table
@tied_or_not
def test_a_table_that_trains_whole_takes_the_same_course(table, tying, tmp_path: Path) -> None:
    net = opt("float64")
    theirs = with_table(net, table, tying)
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twin(net), tmp_path, is_trainable=True)
    one, other = training(ours, 20), training(theirs, 20)
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True` and:UserWarning")
@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_head_that_is_adapted_travels_both_ways(use_dora: bool, tmp_path: Path) -> None:
    """The table stays as it is.  (PEFT merges into the head and the table at once: ours does not.)"""
    net = opt()
    options = {"target_modules": ["lm_head", "q_proj"], "use_dora": use_dora}
    models = {"ours": adapt(twin(net), **options), "theirs": adapt(net, **options)}
    for side, model in models.items():
        training(model, 3)
        model.save_pretrained(str(tmp_path / side))
    ours, theirs = models.values()
    there, here = twins.load(net, tmp_path / "ours"), twins.load(twin(net), tmp_path / "theirs")
    agree(logits(ours), logits(there))
    agree(logits(here), logits(theirs))
    agree(logits(here.merge_and_unload()), logits(theirs))


class TheirTies(torch.nn.Module):
    """A net with a tied table that is no model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.q = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.q(self.emb(ids)))


class OurTies(ld.Module):
    def __init__(self) -> None:
        self.emb, self.q = ld.Embedding(5, 4), ld.Linear(4, 4)
        self.head = ld.Linear(4, 5, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Any) -> mg.Tensor:
        return self.head(self.q(self.emb(ids)))


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`, but no:UserWarning")
def test_peft_unties_a_table_in_what_is_no_model_of_transformers(tmp_path: Path) -> None:
    """So a file for a tied table that has only one of its names is refused, with the option to set."""
    net, ours = TheirTies(), OurTies()
    ours.load_state_dict(twins.state(net))
    options = {"r": 2, "target_modules": ["q"], "modules_to_save": ["emb"]}
    theirs = twins.adapt(net, **options, ensure_weight_tying=True)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) if p.requires_grad else 0)
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(ld.CheckpointError, match=r"head\.weight is tied to emb\.weight here"):
        ld.PeftModel.from_pretrained(ours, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ensure_weight_tying": False}))
    ids, here = texts()[0] % 5, twins.load(ours, tmp_path)
    with torch.no_grad():
        agree(here(ids).data, theirs(torch.tensor(ids)).numpy())
