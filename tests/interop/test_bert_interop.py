"""A BERT of ours is one of ``transformers``, and its adapters are PEFT's.

Most of it is shown on a tiny BERT with random weights.  The promise is 1e-6 in float32 and 1e-12 in
float64, relative to the largest number, or to 1.  At the end comes all-MiniLM-L6-v2 itself, if it is
installed.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import bert
import finetune_minilm
import minilm
import wordpiece

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)
safetensors = pytest.importorskip("safetensors.torch", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)
torch_minilm = pytest.importorskip("torch_minilm", reason=NEEDED)


SIZES = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
}
CLASSES = 3

METHODS = {"LoRA": False, "DoRA": True}
each_method = pytest.mark.parametrize("use_dora", METHODS.values(), ids=METHODS)
both_dtypes = pytest.mark.parametrize("dtype", twins.TOLERANCE)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """No bars of progress."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def network(kind: str = "BertModel", dtype: str = "float32", **options: Any) -> Any:
    """Return a BERT of transformers, without dropout unless asked, with random weights."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**SIZES | rates | options)
    torch.manual_seed(0)
    pooler = {"add_pooling_layer": False} if kind == "BertModel" else {}
    net = getattr(transformers, kind)(config, **pooler).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) / 4)
    return net


def config_of(net: Any) -> Any:
    return bert.Config(**{name: getattr(net.config, name) for name in bert.Config._fields})


def twin(net: Any) -> Any:
    """Return the BERT with the weights of one of transformers."""
    ours = bert.Bert(config_of(net), rng=0, dtype=str(net.dtype).removeprefix("torch."))
    ours.load_state_dict(twins.state(net))
    return ours


def classifiers(net: Any) -> tuple[Any, Any]:
    """Return both sides' classifiers on a BERT, with the same random numbers."""
    torch.manual_seed(1)
    theirs = torch_minilm.Classifier(net, CLASSES)
    ours = bert.Classifier(twin(net), CLASSES)
    ours.classifier.load_state_dict(twins.state(theirs.classifier))
    return ours, theirs


def texts(seed: int = 1, longest: int = 9) -> tuple[Any, Any]:
    """Return ids (5, longest), texts of 1 to ``longest`` tokens with padding, and their labels."""
    rng = np.random.default_rng(seed)
    lengths = [longest, *rng.integers(1, longest, 4, endpoint=True)]
    ids = bert.padded([rng.integers(1, SIZES["vocab_size"], n) for n in lengths], 0)
    return ids, rng.integers(CLASSES, size=5)


def vectors(model: Any, ids: Any) -> Any:
    """Return the vectors of the tokens that are there, as a Tensor of either side."""
    there = ids != 0
    if isinstance(model, torch.nn.Module):
        return model(torch.tensor(ids), torch.tensor(there).long()).last_hidden_state[there]
    return model(ids, there)[there]


def logits(model: Any, ids: Any) -> Any:
    """Return the logits of a classifier, as a Tensor of either side."""
    if isinstance(model, torch.nn.Module):
        return model(torch.tensor(ids), torch.tensor(ids != 0).long())
    return model(ids)


def loss(model: Any, seed: int) -> Any:
    """Return the mean cross-entropy for a batch of texts, of which the longest are of several lengths."""
    ids, labels = texts(seed, longest=3 + 4 * (seed % 4))
    y = logits(model, ids)
    if isinstance(model, torch.nn.Module):
        return torch.nn.functional.cross_entropy(y, torch.tensor(labels))
    return mg.cross_entropy(y, labels)


def training(model: Any, steps: int, losses_of: Any = loss, lr: float = 0.05) -> list[float]:
    """Train the adapter with AdamW; return the losses."""
    library = torch.optim if isinstance(model, torch.nn.Module) else ld
    optimizer = library.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = losses_of(model, step % 4)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    model.eval()
    return losses


def adapt(model: Any, use_dora: bool, **options: Any) -> Any:
    wanted = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}
    return twins.adapt(
        model, **wanted, modules_to_save=["classifier"], use_dora=use_dora, **options
    )


def numbers(tensor: Any) -> Any:
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor.data


def agree(ours: Any, theirs: Any, tolerance: float | None = None) -> None:
    """Assert that arrays are equal, measured by the largest number, or by 1."""
    largest = max(1, np.abs(numbers(theirs)).max())
    twins.agree(numbers(ours) / largest, numbers(theirs) / largest, tolerance)


# -------------------------------------------------------------------------------------- the encoder


@both_dtypes
@pytest.mark.parametrize("hidden_act", bert.ACTIVATIONS)
def test_each_token_has_the_same_vector(hidden_act: str, dtype: str) -> None:
    net = network(dtype=dtype, hidden_act=hidden_act)
    ours = twin(net)
    for seed in range(4):
        ids, _ = texts(seed, longest=(5, 24, 1, 12)[seed])
        assert np.std(numbers(vectors(net, ids))) > 0.5
        agree(vectors(ours, ids), vectors(net, ids))


def test_padding_may_be_anywhere() -> None:
    net = network(dtype="float64")
    ids = np.random.default_rng(0).integers(SIZES["vocab_size"], size=(6, 9)) * (
        np.arange(9) % 3 > 0
    )
    ids[:, 4] = 7
    agree(vectors(twin(net), ids), vectors(net, ids))


@pytest.mark.parametrize(
    "options",
    [
        {"type_vocab_size": 1},
        {"layer_norm_eps": 0.1},
        {"num_attention_heads": 1},
        {"pad_token_id": 3},
    ],
    ids=str,
)
def test_a_bert_of_other_sizes_is_computed(options: dict[str, Any]) -> None:
    net = network(dtype="float64", **options)
    agree(vectors(twin(net), texts()[0]), vectors(net, texts()[0]))


@both_dtypes
@pytest.mark.parametrize("hidden_act", bert.ACTIVATIONS)
def test_gradients_of_all_parameters_agree(hidden_act: str, dtype: str) -> None:
    net = network(dtype=dtype, hidden_act=hidden_act)
    ours, theirs = classifiers(net)
    for model in (ours, theirs):
        loss(model, seed=2).backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert (
        min(np.abs(grad).max() for name, grad in expected.items() if "key.bias" not in name) > 1e-4
    )
    twins.agree({name: p.grad for name, p in ours.named_parameters()}, expected)


@pytest.mark.parametrize("alone", ["hidden_dropout_prob", "attention_probs_dropout_prob", None])
def test_dropout_is_where_bert_has_it(alone: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side draws what it zeroes from a generator with the same seed, place by place."""
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}
    rates = {name: rate for name, rate in rates.items() if alone in (name, None)}
    ours, theirs = classifiers(network(dtype="float64", attn_implementation="eager", **rates))
    rng = np.random.default_rng(5)

    def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0:
            return x
        return x * torch.tensor(rng.random(tuple(x.shape)) >= p) / (1 - p)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    places = [m for _, m in ours.named_modules() if isinstance(m, ld.Dropout)]
    assert len(places) == 2 + 3 * SIZES["num_hidden_layers"]
    assert len({id(place.rng) for place in places}) == 1
    places[0].rng.bit_generator.state = rng.bit_generator.state
    ids, _ = texts()
    still = logits(ours.eval(), ids).data
    for model in (ours, theirs):
        model.train()
    one, other = logits(ours, ids), logits(theirs, ids)
    assert np.abs(numbers(other) - still).max() > 0.01
    agree(one, other)
    one.sum().backward()
    other.sum().backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    twins.agree({name: p.grad for name, p in ours.named_parameters()}, expected)
    assert places[0].rng.bit_generator.state == rng.bit_generator.state


# -------------------------------------------------------------------------------------- adapters


@both_dtypes
@each_method
def test_an_adapter_trained_here_works_in_peft(use_dora: bool, dtype: str, tmp_path: Path) -> None:
    ours, theirs = classifiers(network(dtype=dtype))
    before = numbers(logits(theirs, texts()[0]))
    ours = adapt(ours, use_dora)
    training(ours, 5)
    ours.save_pretrained(tmp_path)
    there = twins.load(theirs, tmp_path)
    assert np.abs(numbers(logits(there, texts()[0])) - before).max() > 0.1, "it learned nothing"
    agree(logits(ours, texts()[0]), logits(there, texts()[0]))


@both_dtypes
@each_method
def test_an_adapter_trained_in_peft_works_here(use_dora: bool, dtype: str, tmp_path: Path) -> None:
    ours, theirs = classifiers(network(dtype=dtype))
    there = adapt(theirs, use_dora)
    training(there, 5)
    there.save_pretrained(str(tmp_path))
    here = twins.load(ours, tmp_path, is_trainable=True)
    assert twins.adapted(here) == twins.adapted(there)
    trainable, total = here.get_nb_trainable_parameters()
    # PEFT also counts the classifier as it was
    assert there.get_nb_trainable_parameters() == (trainable, total + 13 * CLASSES)
    agree(logits(here, texts()[0]), logits(there, texts()[0]))
    agree(logits(here.merge_and_unload(), texts()[0]), logits(there, texts()[0]))
    with here.disable_adapter(), there.disable_adapter():
        agree(logits(here, texts()[0]), logits(there, texts()[0]))


@both_dtypes
@each_method
def test_a_training_takes_the_same_course(use_dora: bool, dtype: str, tmp_path: Path) -> None:
    ours, theirs = classifiers(network(dtype=dtype))
    there = adapt(theirs, use_dora)
    there.save_pretrained(str(tmp_path))  # so that both start alike
    here = twins.load(ours, tmp_path, is_trainable=True)
    one, other = training(here, 10), training(there, 10)
    assert one[8] < one[0] - 0.05, "it learned nothing"  # of the same batch
    np.testing.assert_allclose(one, other, rtol=twins.TOLERANCE[dtype])
    found, expected = twins.trained(here), twins.trained(there)
    assert len(found) == 2 + 2 * SIZES["num_hidden_layers"] * (3 if use_dora else 2)
    twins.agree(found, expected, {"float32": 1e-5, "float64": 1e-12}[dtype])


# -------------------------------------------------------------------------------------- folders


def held(folder: Path) -> dict[str, Any]:
    return safetensors.load_file(folder / "model.safetensors")


def renamed(folder: Path, function: Any) -> None:
    """Write a folder's weights anew, under other names."""
    tensors = {function(name): tensor for name, tensor in held(folder).items()}
    safetensors.save_file(tensors, folder / "model.safetensors")


def check_loads(folder: Path, net: Any) -> None:
    """Assert that a folder is read as the encoder of ``net``."""
    encoder = getattr(net, "bert", net).float()
    ids, _ = texts()
    agree(vectors(bert.load(folder), ids), vectors(encoder, ids))


HEADS = {
    "BertForSequenceClassification": "classifier.weight",
    "BertForTokenClassification": "classifier.weight",
    "BertForMultipleChoice": "classifier.weight",
    "BertForPreTraining": "cls.seq_relationship.weight",
    "BertForMaskedLM": "cls.predictions.bias",
    "BertForNextSentencePrediction": "cls.seq_relationship.weight",
    "BertForQuestionAnswering": "qa_outputs.weight",
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_bert_with_a_head_is_read_without_it(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    net.save_pretrained(tmp_path)
    assert HEADS[kind] in held(tmp_path)
    assert "bert.embeddings.word_embeddings.weight" in held(tmp_path)
    check_loads(tmp_path, net)


@pytest.mark.parametrize("pooler", [False, True])
def test_a_bert_is_read_with_a_pooler_or_without(pooler: bool, tmp_path: Path) -> None:
    net = transformers.BertModel(network().config, add_pooling_layer=pooler).eval()
    net.save_pretrained(tmp_path)
    assert ("pooler.dense.weight" in held(tmp_path)) is pooler
    check_loads(tmp_path, net)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_bert_of_another_dtype_is_read_as_float32(dtype: str, tmp_path: Path) -> None:
    net = network("BertForMaskedLM", dtype)
    net.save_pretrained(tmp_path)
    assert held(tmp_path)["bert.embeddings.LayerNorm.bias"].dtype == getattr(torch, dtype)
    assert {p.dtype for p in bert.load(tmp_path).parameters()} == {np.dtype("float32")}
    check_loads(tmp_path, net)


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_a_bert_in_shards_is_read(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    net.save_pretrained(tmp_path, max_shard_size=3_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    check_loads(tmp_path, net)


def test_a_bert_with_the_names_of_tensorflow_is_read(tmp_path: Path) -> None:
    net = network("BertForPreTraining")
    net.save_pretrained(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def name_there(name: str) -> str:
        for new, given in old.items():
            name = name.replace(new, given)
        return name

    renamed(tmp_path, name_there)
    assert "bert.encoder.layer.2.output.LayerNorm.gamma" in held(tmp_path)
    check_loads(tmp_path, net)


def test_constants_of_older_files_are_left_out(tmp_path: Path) -> None:
    net = network()
    net.save_pretrained(tmp_path)
    constants = {
        "embeddings.position_ids": torch.arange(24)[None],
        "embeddings.token_type_ids": torch.zeros(1, 24, dtype=torch.int64),
    }
    safetensors.save_file(held(tmp_path) | constants, tmp_path / "model.safetensors")
    check_loads(tmp_path, net)


def test_the_rates_of_dropout_are_those_of_the_folder_or_the_given_one(tmp_path: Path) -> None:
    network(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3).save_pretrained(tmp_path)

    def rates(model: Any) -> set[float]:
        return {m.p for _, m in model.named_modules() if isinstance(m, ld.Dropout)}

    ours = bert.Classifier(bert.load(tmp_path), 2)
    assert (ours.bert.embeddings.dropout.p, ours.dropout.p) == (0.2, 0.2)
    assert ours.bert.encoder["layer"][0].attention.self.dropout.p == 0.3
    assert rates(ours) == {0.2, 0.3}
    for rate in (0.5, 0):
        assert rates(bert.Classifier(bert.load(tmp_path, rate), 2)) == {rate}


# -------------------------------------------------------------------------------------- what is refused


def small(kind: str) -> dict[str, int]:
    """Return the sizes of a tiny net of another architecture, by its names for them."""
    match kind:
        case "T5":
            return {"d_model": 12, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 3}
        case "DistilBert":
            return {"dim": 12, "hidden_dim": 8, "n_layers": 1, "n_heads": 3}
    return SIZES | {"num_hidden_layers": 1}


@pytest.mark.parametrize("kind", ["Roberta", "T5", "DistilBert", "Albert"])
def test_another_architecture_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**small(kind) | {"vocab_size": 50})
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(ld.CheckpointError, match=f"its model_type is '{kind.lower()}', and only"):
        bert.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_decoder": True}, "is_decoder is True, and only False is known"),
        ({"add_cross_attention": True, "is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu', and only gelu, gelu_new, .* are known"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key', and only 'absolute' is known",
        ),
    ],
    ids=str,
)
def test_a_bert_that_is_not_computed_here_is_refused(options, message, tmp_path: Path) -> None:
    network("BertModel", **options).save_pretrained(tmp_path)
    with pytest.raises(ld.CheckpointError, match=f"config.json in .*: {message}"):
        bert.load(tmp_path)


def test_a_folder_that_has_only_a_pickle_is_refused(tmp_path: Path) -> None:
    net = network()
    net.config.save_pretrained(tmp_path)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ld.CheckpointError, match=r"but pytorch_model\.bin, a pickle, which"):
        bert.load(tmp_path)


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    network("BertForMaskedLM").save_pretrained(tmp_path)
    tensors = held(tmp_path)
    del tensors["bert.encoder.layer.1.attention.self.key.bias"]
    tensors = {k: v for k, v in tensors.items() if not k.startswith("bert.encoder.layer.2.")}
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(23, 12)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] = torch.zeros(20, 13)
    tensors["bert.encoder.layer.0.adapter.weight"] = torch.zeros(2)
    tensors["bert.encoder.layer.0.output.dense.bias"][3] = np.nan
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ld.CheckpointError) as caught:
        bert.load(tmp_path)
    said = str(caught.value)
    for wrong in (
        "encoder.layer.1.attention.self.key.bias",
        "encoder.layer.2.attention.self.query.weight",
        "encoder.layer.2.output.LayerNorm.bias",
        "embeddings.position_embeddings.weight",
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.adapter.weight",
        "encoder.layer.0.output.dense.bias",
    ):
        assert wrong in said
    assert "cls." not in said
    assert "(23, 12)" in said
    assert "(20, 13)" in said


# -------------------------------------------------------------------------------------- the script

VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "##ly", "cafe", "charm", "film"),
    *(
        "good",
        "is",
        "it",
        "not",
        "the",
        "to",
        "un",
        "##for",
        "##get",
        "##table",
        "without",
        "!",
        ".",
    ),
]


@each_method
def test_the_script_judges_in_pytorch_as_we_do(use_dora: bool, tmp_path: Path) -> None:
    model_folder = tmp_path / "model"
    network(hidden_dropout_prob=0.1).save_pretrained(model_folder)
    (model_folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    base = bert.load(model_folder)
    ours = adapt(bert.Classifier(base, CLASSES), use_dora)
    rng = np.random.default_rng(6)
    for p in ours.trainable_parameters():
        p.data = (p.data + rng.normal(size=p.shape)).astype(p.dtype)
    names = ["bad", "good", "so-so"]
    method = "dora" if use_dora else "lora"
    judge = finetune_minilm.Judge(ours, names, longest=8)
    finetune_minilm.save(method, judge, base, tmp_path)
    sentences = [
        "The caf\u00e9 is unforgettable!",
        "Not good.",
        "It is not without charm, the film.",
    ]
    python = sys.executable, "-X", "utf8"
    adapter = tmp_path / method
    done = subprocess.run(
        [*python, torch_minilm.__file__, adapter, *sentences, "--model", model_folder],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    tokenizer = wordpiece.WordPiece.from_folder(model_folder)
    ids = bert.padded([tokenizer.encode(text, 8) for text in sentences], tokenizer.pad_id)
    expected = mg.softmax(ours.eval()(ids)).data
    lines = done.stdout.splitlines()
    assert lines[:: CLASSES + 1] == sentences
    printed = [line.split() for line in lines if line.startswith("   ")]
    assert [name for name, *_ in printed] == names * len(sentences)
    percents = [float(percent) for _, percent, _ in printed]
    np.testing.assert_allclose(percents, 100 * expected.ravel(), rtol=0, atol=0.0501)
    found = torch_minilm.judge(model_folder, adapter, sentences)
    for likely, p in zip(found, expected):
        np.testing.assert_allclose([likely[name] for name in names], p, rtol=0, atol=1e-6)
    assert np.ptp(expected[:, 0]) > 0.01


def test_of_a_single_file_and_shards_the_file_is_read_as_transformers_does(tmp_path: Path) -> None:
    net = network()
    net.save_pretrained(tmp_path, max_shard_size="2KB")
    index = tmp_path / "model.safetensors.index.json"
    text, shards = (
        index.read_text(encoding="utf-8"),
        {f: f.read_bytes() for f in tmp_path.glob("*-of-*")},
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    net.save_pretrained(tmp_path)
    index.write_text(text, encoding="utf-8")
    for file, content in shards.items():
        file.write_bytes(content)
    theirs = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    found = bert.load(tmp_path).state_dict()
    for name, p in theirs.named_parameters():
        np.testing.assert_array_equal(found[name], p.detach().numpy())


# -------------------------------------------------------------------------------------- the real one

SENTENCES = [
    "Splendid.",
    "Dull!",
    "I laughed twice.",
    "It is not without charm.",
    "Two hours that I will never get back.",
    "The caf\u00e9 scene alone is worth the ticket.",
    "A film for people who like the look of rain.",
    "I expected little, and left the cinema smiling.",
    "Nobody in it behaves like anybody I have ever met.",
    "The plot is borrowed; the music, at least, was paid for.",
    "It begins as a comedy, ends as a sermon, and is neither.",
    "Unforgettable, in the way that a toothache is unforgettable.",
    "Whoever cut this knows when to wait, and when not to wait.",
    "She does more with an eyebrow than the rest of them with 90 minutes.",
    "Children will love the dog, and everyone else will envy its few lines.",
    "An honest picture about work, money and shame, told without raising its voice.",
    "There is a good short story somewhere in these three hours, and it lasts four minutes.",
    "The director trusts faces, silence and weather, and for once that is quite enough to hold us.",
    "I have seen worse acting, but only at school, and there the scenery was better and tea was free.",
    "What looks at first like a thriller about a stolen painting turns out, slowly, and with a good many "
    "detours through kitchens, stations and other people's quarrels, to be a love story for the old.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = minilm.folder()
    if found is None:
        pytest.skip(f"needs all-MiniLM-L6-v2: {minilm.COMMAND}")
    return found


@pytest.fixture(scope="module")
def real(folder: Path) -> tuple[Any, Any]:
    """Return both sides' classifiers on all-MiniLM-L6-v2, without dropout."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    net = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, **rates).eval()
    theirs = torch_minilm.Classifier(net, 2)
    torch.nn.init.zeros_(theirs.classifier.weight)
    torch.nn.init.zeros_(theirs.classifier.bias)
    return bert.Classifier(bert.load(folder, 0), 2), theirs


@pytest.fixture(scope="module")
def ids(folder: Path) -> Any:
    tokenizer = wordpiece.WordPiece.from_folder(folder)
    return bert.padded([tokenizer.encode(text, 128) for text in SENTENCES], tokenizer.pad_id)


def test_the_real_weights_are_those_that_were_published(folder: Path) -> None:
    minilm.check_weights(folder / "model.safetensors")
    assert bert.read_config(folder) == bert.MINILM


def test_the_real_minilm_gives_each_token_the_same_vector(real, ids) -> None:
    ours, theirs = real
    with torch.no_grad(), mg.no_grad():
        agree(vectors(ours.bert, ids), vectors(theirs.bert, ids), 1e-5)


@each_method
def test_the_real_minilm_is_trained_alike(use_dora: bool, real, ids, tmp_path: Path) -> None:
    ours, theirs = real
    labels = np.arange(len(ids)) % 2

    def loss_of(model: Any, step: int) -> Any:
        batch = slice(6 * step, 6 * step + 8)
        y = logits(model, ids[batch])
        if isinstance(model, torch.nn.Module):
            return torch.nn.functional.cross_entropy(y, torch.tensor(labels[batch]))
        return mg.cross_entropy(y, labels[batch])

    there = adapt(theirs, use_dora)
    there.save_pretrained(str(tmp_path))  # so that both start alike
    here = twins.load(ours, tmp_path, is_trainable=True)
    one, other = (training(model, 3, loss_of, lr=0.01) for model in (here, there))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    expected = twins.trained(there, "grad")
    largest = max(np.abs(grad).max() for grad in expected.values())
    for name, grad in twins.trained(here, "grad").items():
        np.testing.assert_allclose(
            grad / largest, expected[name] / largest, rtol=1e-4, atol=1e-5, err_msg=name
        )
