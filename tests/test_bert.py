"""``examples/bert.py`` computes what transformers and PEFT do, ignores padding, and refuses what it must.

The file ``data/bert_cases.json`` describes a small BERT, its inputs and the tolerance; the arrays lie in
``data/bert_cases.npz``.  ``golden_cases.py`` computes them again.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_cases import load
from hypothesis import given
from hypothesis import strategies as st

import loradora as ld
import minigrad as mg

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import bert

_, _, CASES, ARRAYS = load("bert_cases")
ENCODERS = [case for case in CASES if case["kind"] == "encoder"]
TRAININGS = [case for case in CASES if case["kind"] == "training"]


def of(case):
    """Return the BERT of a case."""
    model = bert.Bert(bert.Config(**case["config"]), rng=0, dtype=np.float64)
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict({name: ARRAYS[f"{case['weights']}.{name}"] for name in names})
    return model


def assert_agrees(actual, key, case):
    expected = ARRAYS[key]
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=case["rtol"], atol=case["atol"], err_msg=key)


# ----------------------------------------------------------------------------- golden values


@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case["id"])
def test_vectors_and_gradients_are_those_of_transformers(case):
    model, ids = of(case), ARRAYS[case["ids"]]
    there = ids != model.config.pad_token_id
    y = model(ids, there)[there]
    assert_agrees(y.data, case["y"], case)
    y.backward(ARRAYS[case["g"]])
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, key in case["grads"].items():
        assert_agrees(gradients[name], key, case)


@pytest.mark.parametrize("case", TRAININGS, ids=lambda case: case["id"])
def test_an_adapter_and_its_head_are_trained_as_in_peft(case):
    base = bert.Classifier(of(case), case["classes"])
    model = ld.get_peft_model(base, ld.LoraConfig(**case["adapter"]), rng=0)
    for path, layer in model.named_modules():
        if isinstance(layer, (ld.LoRALinear, ld.DoRALinear)):
            layer.A.data = ARRAYS[f"{case['A']}.{path.removeprefix('base_model.')}"]
    ids, labels = ARRAYS[case["ids"]], ARRAYS[case["labels"]]
    optimizer = ld.AdamW(model.trainable_parameters(), lr=case["lr"])
    losses = []
    for rows in ARRAYS[case["batches"]]:
        optimizer.zero_grad()
        loss = mg.cross_entropy(model(ids[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(case["classes"]), rel=1e-12)
    # the last five batches are the first five again
    assert np.mean(losses[5:]) < np.mean(losses[:5]) - 0.05, "it learned nothing"
    assert_agrees(np.array(losses), case["losses"], case)
    assert_agrees(model(ids).data, case["logits"], case)


# ----------------------------------------------------------------------------- padding

#: A BERT without dropout, and a classifier on it with random weights.
BERT = of(ENCODERS[0])
CONFIG = BERT.config
CLASSIFIER = bert.Classifier(BERT, 3)
CLASSIFIER.classifier.weight.data = np.random.default_rng(0).normal(size=(3, CONFIG.hidden_size))

tokens = st.integers(1, CONFIG.vocab_size - 1)
texts = st.lists(tokens, min_size=1, max_size=CONFIG.max_position_embeddings)
batches = st.lists(texts, min_size=1, max_size=4)


def logits(batch):
    return CLASSIFIER(bert.padded(batch, CONFIG.pad_token_id)).data


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@given(st.lists(st.lists(st.integers(0, 5), max_size=6)), st.integers(6, 9))
def test_texts_are_filled_up_at_their_ends(batch, pad):
    ids = bert.padded(batch, pad)
    assert ids.dtype.kind == "i"
    assert ids.shape == (len(batch), max(map(len, batch), default=0))
    assert [[i for i in row if i != pad] for row in ids.tolist()] == batch
    assert bert.lengths_of(ids, pad).tolist() == [len(text) for text in batch]


def test_what_stands_before_a_token_is_no_padding():
    ids = np.array([[3, 0, 2, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 4]])
    assert bert.lengths_of(ids, 0).tolist() == [3, 0, 4, 4]


@given(batches, st.integers(0, 30))
def test_padding_of_any_amount_changes_nothing(batch, more):
    ids = bert.padded(batch, 0)
    wider = np.pad(ids, ((0, 0), (0, more)))
    np.testing.assert_array_equal(CLASSIFIER(wider).data, CLASSIFIER(ids).data)


@given(batches)
def test_a_text_is_judged_alike_by_itself_and_in_a_batch(batch):
    close(np.concatenate([logits([text]) for text in batch]), logits(batch))


@given(batches, st.randoms(use_true_random=False))
def test_the_order_of_the_texts_is_that_of_the_logits(batch, random):
    order = random.sample(range(len(batch)), len(batch))
    close(logits([batch[i] for i in order]), logits(batch)[order])


@given(st.data())
def test_what_is_not_there_is_not_looked_at(data):
    ids = np.array(data.draw(st.lists(tokens, min_size=2, max_size=10)))[None]
    hidden = data.draw(st.integers(0, ids.size - 1))
    there = np.arange(ids.size)[None] != hidden
    others = ids.copy()
    others[0, hidden] = data.draw(tokens)
    np.testing.assert_array_equal(BERT(ids, there).data[there], BERT(others, there).data[there])


@given(batches)
def test_logits_are_the_head_on_the_mean_of_what_is_there(batch):
    means = np.concatenate([BERT([text]).data.mean(axis=1) for text in batch])
    close(CLASSIFIER.features(bert.padded(batch, 0)).data, means)
    close(logits(batch), means @ CLASSIFIER.classifier.weight.data.T)


@given(batches)
def test_a_classifier_starts_with_all_classes_equally_likely(batch):
    fresh = bert.Classifier(BERT, 4)
    ids = bert.padded(batch, 0)
    np.testing.assert_array_equal(fresh(ids).data, np.zeros((len(batch), 4)))
    assert np.ptp(fresh.features(ids).data) > 0.1


def test_a_token_sees_those_behind_it_and_their_places():
    first = [BERT([text]).data[0, 0] for text in ([1, 2, 3], [1, 2, 4], [1, 3, 2])]
    assert min(np.abs(a - b).max() for a, b in zip(first, (first[1], first[2], first[0]))) > 1e-3


def test_all_tokens_are_there_unless_it_is_said():
    ids = ARRAYS["ids"]
    np.testing.assert_array_equal(BERT(ids).data, BERT(ids, np.ones(ids.shape, bool)).data)
    np.testing.assert_array_equal(BERT(ids[0]).data, BERT(ids[:1]).data[0])


def test_texts_may_be_none_or_have_no_tokens():
    assert BERT(np.zeros((0, 4), int)).shape == (0, 4, 6)
    assert BERT(np.zeros((2, 0), int)).shape == (2, 0, 6)
    assert CLASSIFIER(np.zeros((0, 4), int)).shape == (0, 3)
    nobody = BERT([[1, 2]], [[False, False]]).data
    assert np.isfinite(nobody).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_dtype_is_that_of_the_parameters(dtype):
    model = bert.Classifier(bert.Bert(CONFIG, rng=0, dtype=dtype), 2)
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}
    y = model([[1, 2, 0], [3, 0, 0]])
    y.sum().backward()
    assert y.dtype == dtype
    assert model.bert.embeddings.word_embeddings.weight.grad.dtype == dtype


# ----------------------------------------------------------------------------- dropout


def rates(model):
    return {name: m.p for name, m in model.named_modules() if isinstance(m, ld.Dropout)}


def test_each_place_has_its_rate_of_dropout():
    config = CONFIG._replace(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    found = rates(bert.Classifier(bert.Bert(config, rng=0), 2))
    in_a_layer = {"attention.self": 0.3, "attention.output": 0.2, "output": 0.2}
    layers = range(config.num_hidden_layers)
    assert found == {"dropout": 0.2, "bert.embeddings.dropout": 0.2} | {
        f"bert.encoder.layer.{i}.{name}.dropout": rate
        for i in layers
        for name, rate in in_a_layer.items()
    }


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_for_training_and_drawn_from_the_seed(name):
    def trained(seed):
        model = bert.Classifier(bert.Bert(CONFIG._replace(**{name: 0.5}), rng=seed), 2)
        one, again = (model.features(ARRAYS["ids"]).data for _ in range(2))
        return one, again, model.eval().features(ARRAYS["ids"]).data

    one, again, still = trained(seed=1)
    assert np.abs(one - again).max() > 1e-3
    assert np.abs(one - still).max() > 1e-3
    for a, b in zip((one, again, still), trained(seed=1)):
        np.testing.assert_array_equal(a, b)


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("ids", "there", "error", "message"),
    [
        ([[1.0, 2.0]], None, TypeError, "ids are integers"),
        ([["good", "film"]], None, TypeError, "ids are integers"),
        ([[True]], None, TypeError, "ids are integers"),
        ([[20]], None, IndexError, "id 20 is out of range for 20 embeddings"),
        ([[-1]], None, IndexError, "id -1 is out of range"),
        ([[1] * 11], None, ValueError, "11 tokens are too many for 10 places: cut the text"),
        ([[1, 2]], [[1, 1]], TypeError, "bools, True where a token may look"),
        (
            [[1, 2], [3, 4]],
            [[True], [False]],
            ValueError,
            r"there .*\(2, 1\), and ids have \(2, 2\)",
        ),
        ([[1, 2], [3, 4]], [True, False], ValueError, r"there .*\(2,\), and ids have \(2, 2\)"),
        ([[1, 2]], [[True] * 3], ValueError, r"there .*\(1, 3\), and ids have \(1, 2\)"),
    ],
)
def test_ids_and_masks_that_cannot_be_are_refused(ids, there, error, message):
    with pytest.raises(error, match=message):
        BERT(ids, there)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2], ValueError, r"expected ids of shape \(N, T\), got \(2,\)"),
        ([[[1, 2]]], ValueError, r"expected ids of shape \(N, T\), got \(1, 1, 2\)"),
        ([[1, 2], [0, 0]], ValueError, "there is a text without a token"),
        (np.zeros((2, 0), int), ValueError, "there is a text without a token"),
        ([[1.0, 2.0]], TypeError, "ids are integers"),
        ([[1] * 11], ValueError, "11 tokens are too many for 10 places"),
    ],
)
def test_texts_that_cannot_be_judged_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        CLASSIFIER(ids)


@pytest.mark.parametrize(
    ("classes", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("two", TypeError)]
)
def test_a_number_of_classes_that_cannot_be_is_refused(classes, error):
    with pytest.raises(error, match="classes must be"):
        bert.Classifier(BERT, classes)


#: What a config.json may say, beside what is right, and what is said of it.
WRONG = [
    ({"vocab_size": 0}, "vocab_size must be at least 1, not 0"),
    ({"hidden_size": "6"}, "hidden_size must be an integer, not '6'"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers must be an integer, not 2.5"),
    ({"num_attention_heads": None}, "num_attention_heads must be an integer, not None"),
    ({"num_attention_heads": 4}, "4 heads cannot share a width of 6 evenly"),
    ({"intermediate_size": True}, "intermediate_size must be an integer, not True"),
    ({"max_position_embeddings": -1}, "max_position_embeddings must be at least 1, not -1"),
    ({"type_vocab_size": 0}, "type_vocab_size must be at least 1, not 0"),
    ({"pad_token_id": 20}, "pad_token_id is 20, and the ids end at 19"),
    ({"pad_token_id": -1}, "pad_token_id is -1, and the ids end at 19"),
    ({"pad_token_id": None}, "pad_token_id must be an integer, not None"),
    ({"layer_norm_eps": -1e-12}, "layer_norm_eps must not be negative, not -1e-12"),
    ({"layer_norm_eps": float("inf")}, "layer_norm_eps must be"),
    ({"layer_norm_eps": "small"}, "layer_norm_eps must be a number"),
    ({"hidden_act": "silu"}, "hidden_act is 'silu', and only gelu, gelu_new, "),
    ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\], and only gelu, "),
    ({"hidden_act": None}, "hidden_act is None, and only gelu, "),
    ({"hidden_dropout_prob": 1}, r"hidden_dropout_prob must lie in \[0, 1\), not 1"),
    ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob must be"),
    ({"attention_probs_dropout_prob": -0.1}, r"attention_probs_dropout_prob must lie in \[0, 1\)"),
    ({"attention_probs_dropout_prob": "x"}, "attention_probs_dropout_prob must be a number"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_a_bert_that_cannot_be_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        bert.Bert(CONFIG._replace(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *WRONG,
        ({"model_type": "roberta"}, "its model_type is 'roberta', and only 'bert' is known"),
        ({"model_type": None}, "its model_type is missing, and only 'bert' is known"),
        ({"model_type": 3}, "its model_type is 3, and only 'bert'"),
        ({"is_decoder": True}, "is_decoder is True, and only False is known"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads is \{'0': \[1\]\}, and only \{\} is known"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config is {'bits': 4}, and only None is",
        ),
        (
            {"auto_map": {"AutoModel": "x.Y"}},
            "auto_map is {'AutoModel': 'x.Y'}, and only None is known",
        ),
        ({"add_cross_attention": True}, "add_cross_attention is True, and only False is known"),
        ({"position_embedding_type": "relative_key"}, "is 'relative_key', and only 'absolute' is"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [bert.read_config, bert.load])
def test_a_folder_of_what_is_not_computed_is_refused(function, options, message, tmp_path):
    written = CONFIG._asdict() | {"model_type": "bert"} | options
    (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(ld.CheckpointError, match=f"config.json in .*: .*{message}"):
        function(tmp_path)


def test_a_folder_says_what_its_config_lacks(tmp_path):
    with pytest.raises(ld.CheckpointError, match=r"config\.json"):
        bert.read_config(tmp_path)
    file = tmp_path / "config.json"
    for text, message in (
        ("{", "config.json in"),
        ("[]", "expected an object, got list"),
        ("{}", "its model_type is missing"),
        (
            '{"model_type": "bert", "hidden_size": 6}',
            "it lacks vocab_size, num_hidden_layers, .*, max",
        ),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ld.CheckpointError, match=message):
            bert.read_config(tmp_path)


def test_a_config_is_read_and_what_it_may_leave_out_has_the_usual_value(tmp_path):
    needed = {name: CONFIG._asdict()[name] for name in CONFIG._fields[:6]}
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(needed | {"model_type": "bert", "use_cache": True}), encoding="utf-8"
    )
    usual = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    assert bert.read_config(tmp_path) == CONFIG._replace(**usual)
    written = CONFIG._replace(
        hidden_act="relu", layer_norm_eps=1e-5, pad_token_id=3, type_vocab_size=1
    )
    file.write_text(json.dumps(written._asdict() | {"model_type": "bert"}), encoding="utf-8")
    assert bert.read_config(tmp_path) == written
    bert.check(bert.MINILM)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], r"has no model\.safetensors: save_pretrained"),
        (["vocab.txt", "tf_model.h5"], r"has no model\.safetensors: save_pretrained"),
        (["pytorch_model.bin"], r"has no model\.safetensors, but pytorch_model\.bin, a pickle"),
    ],
)
def test_a_folder_without_weights_is_refused(others, message, tmp_path):
    written = json.dumps(CONFIG._asdict() | {"model_type": "bert"})
    (tmp_path / "config.json").write_text(written, encoding="utf-8")
    for name in others:
        (tmp_path / name).touch()
    with pytest.raises(ld.CheckpointError, match=message):
        bert.load(tmp_path)


def test_a_config_that_claims_more_than_the_file_can_hold_is_refused_before_anything_is_made(
    tmp_path,
):
    written = json.dumps(CONFIG._replace(vocab_size=10**9)._asdict() | {"model_type": "bert"})
    (tmp_path / "config.json").write_text(written, encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    with pytest.raises(ld.CheckpointError, match=r"has 1,000 bytes of weights, too few for the 6,"):
        bert.load(tmp_path)


def test_the_size_of_a_bert_is_that_of_its_matrices():
    model = bert.Bert(CONFIG, rng=0)
    assert bert.size_of(CONFIG) == sum(p.size for p in model.parameters() if p.ndim == 2)


# ----------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
        ("bert.encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("encoder.layer.1.output.LayerNorm.beta", "encoder.layer.1.output.LayerNorm.bias"),
        ("embeddings.position_ids", None),
        ("bert.embeddings.position_ids", None),
        ("embeddings.token_type_ids", None),
        ("pooler.dense.weight", None),
        ("bert.pooler.dense.bias", None),
        ("cls.predictions.decoder.weight", None),
        ("cls.predictions.transform.LayerNorm.gamma", None),
        ("classifier.weight", None),
        ("qa_outputs.bias", None),
        ("encoder.layer.0.adapter.weight", "encoder.layer.0.adapter.weight"),
        ("roberta.pooler.dense.bias", "roberta.pooler.dense.bias"),
    ],
)
def test_the_name_of_a_tensor_is_found_or_it_is_not_wanted(there, here):
    assert bert.name_here(there) == here


def test_parameters_have_the_names_of_transformers():
    names = {name for name, _ in BERT.named_parameters()}
    expected = {key.removeprefix("w.") for key in ARRAYS if key.startswith("w.")}
    assert names == expected
    assert len(names) == 5 + 16 * CONFIG.num_hidden_layers
