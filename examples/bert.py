"""BERT's encoder: a transformer that reads a text as a whole and gives each of its tokens a vector.

It differs from the decoder of ``gpt.py`` in four ways:

- A token also looks at the tokens that come after it.
- A norm stands after each sublayer, not before it (Vaswani et al., arXiv:1706.03762, sec. 3.1).
- The net between ``intermediate`` and ``output`` has a GELU.
- Texts of different lengths share a batch.  The shorter ones are padded, and nobody looks at the padding.

The parameters have the names of ``transformers.BertModel``.  So the files of any BERT fit whose
``config.json`` says ``bert``, such as all-MiniLM-L6-v2, which has six layers.

Sources: Devlin et al., "BERT", arXiv:1810.04805; Wang et al., "MiniLM", arXiv:2002.10957; Reimers &
Gurevych, "Sentence-BERT", arXiv:1908.10084.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import loradora as ld
import minigrad as mg
from loradora import files, model_files
from loradora.attention import Embedding, LayerNorm, attention_weights, join_heads, split_heads
from loradora.nn import Rng, check_finite, check_integer, check_positive, generator, short

Array: TypeAlias = npt.NDArray[Any]

# ----------------------------------------------------------------------------- what a BERT looks like


class Config(NamedTuple):
    """The sizes of a BERT, by their names in its ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0


#: How to make each activation that a ``config.json`` may name.
ACTIVATIONS: dict[str, Callable[[], ld.Module]] = {
    "gelu": ld.GELU,
    "gelu_new": partial(ld.GELU, "tanh"),
    "gelu_pytorch_tanh": partial(ld.GELU, "tanh"),
    "relu": ld.ReLU,
}

#: The sizes of all-MiniLM-L6-v2.
MINILM = Config(30522, 384, 6, 12, 1536, 512)

#: Options that change what is computed, and the one value of each that is computed here.
ONLY = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
    "auto_map": None,  # would name the model's own code
}


def read_config(folder: Path) -> Config:
    """Return what the ``config.json`` in a folder says.

    Raises
    ------
    CheckpointError
        If there is none, if it describes another architecture (the message names it), or if it describes
        a BERT that is not computed here.
    """
    name = "config.json"
    given = files.parsed(folder, name, files.read(folder / name, files.MOST_BYTES))
    with files.reported(f"{name} in {folder}"):
        kind = given.get("model_type")
        if kind != "bert":
            found = f"is {short(kind)}" if kind else "is missing"
            raise ValueError(f"its model_type {found}, and only 'bert' is known")
        for option, value in ONLY.items():
            if given.get(option, value) != value:
                raise ValueError(f"{option} is {short(given[option])}, and only {value!r} is known")
        missing = [n for n in Config._fields if n not in {*given, *Config._field_defaults}]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        config = Config(**{n: given[n] for n in Config._fields if n in given})
        check(config)
    return config


def check(config: Config) -> None:
    """Raise TypeError or ValueError unless a BERT can have these sizes."""
    sizes = config._asdict()
    check_positive(**{n: sizes[n] for n in (*Config._fields[:6], "type_vocab_size")})
    check_integer(pad_token_id=config.pad_token_id)
    check_finite(layer_norm_eps=config.layer_norm_eps)
    if config.layer_norm_eps < 0:
        raise ValueError(f"layer_norm_eps must not be negative, not {config.layer_norm_eps}")
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"hidden_act is {short(config.hidden_act)}, and only {known} are known")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"{config.num_attention_heads} heads cannot share a width of {config.hidden_size} evenly"
        )
    if not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"pad_token_id is {config.pad_token_id}, and the ids end at {config.vocab_size - 1}"
        )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        check_finite(**{name: sizes[name]})
        if not 0 <= sizes[name] < 1:
            raise ValueError(f"{name} must lie in [0, 1), not {sizes[name]}")


def size_of(config: Config) -> int:
    """Return how many numbers the matrices of a BERT have.  The vectors add few to that."""
    tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    in_layer = 4 * config.hidden_size + 2 * config.intermediate_size
    return config.hidden_size * (tables + config.num_hidden_layers * in_layer)


# ----------------------------------------------------------------------------- the encoder


class Embeddings(ld.Module):
    """The vectors that tokens start with, (…, T, width): the sum of three, for token, place and sentence.

    BERT was trained on pairs of sentences.  A table of two rows tells the two apart.  A single text
    counts as the first sentence.
    """

    def __init__(self, config: Config, rng: np.random.Generator, dtype: npt.DTypeLike) -> None:
        def table(rows: int) -> Embedding:
            return Embedding(rows, config.hidden_size, rng=rng, dtype=dtype)

        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=dtype)
        self.dropout = ld.Dropout(config.hidden_dropout_prob, rng=rng)

    def forward(self, ids: Array) -> mg.Tensor:
        """Return the vectors for ids (…, T); ValueError for more tokens than there are places."""
        length = ids.shape[-1]
        places = len(self.position_embeddings.weight)
        if length > places:
            raise ValueError(f"{length} tokens are too many for {places} places: cut the text")
        here = self.position_embeddings(np.arange(length)) + self.token_type_embeddings([0])
        return self.dropout(self.LayerNorm(self.word_embeddings(ids) + here))


class SelfAttention(ld.Module):
    """What each token learns from all others: see :mod:`loradora.attention`.

    LoRA goes to ``query`` and ``value``.
    """

    def __init__(self, config: Config, rng: np.random.Generator, dtype: npt.DTypeLike) -> None:
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = ld.Linear(width, width, rng=rng, dtype=dtype)
        self.key = ld.Linear(width, width, rng=rng, dtype=dtype)
        self.value = ld.Linear(width, width, rng=rng, dtype=dtype)
        self.dropout = ld.Dropout(config.attention_probs_dropout_prob, rng=rng)

    def forward(self, x: mg.Tensor, mask: Array) -> mg.Tensor:
        """Return softmax(Q Kᵀ/√d) V, the heads side by side: (…, T, width), as x."""
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.query, self.key, self.value))
        return join_heads(self.dropout(attention_weights(q, k, mask)) @ v)


class AddAndNorm(ld.Module):
    """The end of each sublayer: LayerNorm(x + dense(h)), where the sublayer has computed h from x."""

    def __init__(
        self, in_features: int, config: Config, rng: np.random.Generator, dtype: npt.DTypeLike
    ) -> None:
        self.dense = ld.Linear(in_features, config.hidden_size, rng=rng, dtype=dtype)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=dtype)
        self.dropout = ld.Dropout(config.hidden_dropout_prob, rng=rng)

    def forward(self, h: mg.Tensor, x: mg.Tensor) -> mg.Tensor:
        """Return the norm, of the shape of x."""
        return self.LayerNorm(x + self.dropout(self.dense(h)))


class Attention(ld.Module):
    """The first sublayer: each token looks at the others."""

    def __init__(self, config: Config, rng: np.random.Generator, dtype: npt.DTypeLike) -> None:
        self.self = SelfAttention(config, rng, dtype)
        self.output = AddAndNorm(config.hidden_size, config, rng, dtype)

    def forward(self, x: mg.Tensor, mask: Array) -> mg.Tensor:
        """Return its result, of the shape of x."""
        return self.output(self.self(x, mask), x)


class Intermediate(ld.Module):
    """The wide half of the second sublayer: act(dense(x))."""

    def __init__(self, config: Config, rng: np.random.Generator, dtype: npt.DTypeLike) -> None:
        width, wide = config.hidden_size, config.intermediate_size
        self.dense = ld.Linear(width, wide, rng=rng, dtype=dtype)
        self.activation = ACTIVATIONS[config.hidden_act]()

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        """Return it, (…, T, intermediate_size)."""
        return self.activation(self.dense(x))


class Layer(ld.Module):
    """A block: attention, then a net for each token by itself.  Each adds its input to its output."""

    def __init__(self, config: Config, rng: np.random.Generator, dtype: npt.DTypeLike) -> None:
        self.attention = Attention(config, rng, dtype)
        self.intermediate = Intermediate(config, rng, dtype)
        self.output = AddAndNorm(config.intermediate_size, config, rng, dtype)

    def forward(self, x: mg.Tensor, mask: Array) -> mg.Tensor:
        """Return its result, of the shape of x."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Bert(ld.Module):
    """From ids (N, T) to a vector for each token, (N, T, width), which depends on the whole text.

    TypeError or ValueError for impossible sizes.
    """

    def __init__(
        self, config: Config, *, rng: Rng = None, dtype: npt.DTypeLike = np.float32
    ) -> None:
        check(config)
        rng = generator(rng)
        self.config = config
        self.embeddings = Embeddings(config, rng, dtype)
        layers = [Layer(config, rng, dtype) for _ in range(config.num_hidden_layers)]
        self.encoder = {"layer": layers}  # "encoder.layer.0...", as in transformers

    def forward(self, ids: npt.ArrayLike, there: npt.ArrayLike | None = None) -> mg.Tensor:
        """Return the vectors.

        Parameters
        ----------
        ids
            The tokens of each text.
        there
            Bools (N, T), False at padding; by default all True.

        Raises
        ------
        TypeError, ValueError, IndexError
            For ids that are not integers or not in the vocabulary, for more tokens than there are places,
            and for a ``there`` that is not made of bools or has another shape.
        """
        ids = np.atleast_1d(ids)
        there = np.ones(ids.shape, bool) if there is None else np.asarray(there)
        if there.shape != ids.shape:
            raise ValueError(f"there has the shape {there.shape}, and ids have {ids.shape}")
        mask = there[..., None, None, :]  # the same for each head and for each token that looks
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x


# ----------------------------------------------------------------------------- its files


def load(folder: Path, dropout: float | None = None, *, rng: Rng = None) -> Bert:
    """Return the BERT in a folder, in float32.

    Its dropout rates are those of ``config.json``, unless ``dropout`` gives one for all places.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, is not a BERT, or does not fit.  All that does not fit is listed.
    """
    config = read_config(folder)
    file = weights_of(config, folder)
    if dropout is not None:
        config = config._replace(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = Bert(config, rng=rng)
    ld.load_model(file, model, names=name_here)
    return model


def weights_of(config: Config, folder: Path) -> Path:
    """Return the file with the weights of a model, or the index of its shards.

    CheckpointError if there is none, or if it is too small for all that the config describes.
    """
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    for name in (model_files.MODEL, model_files.INDEX):
        if (folder / name).exists():
            if size_of(config) > held:  # a number takes at least two bytes
                raise ld.CheckpointError(
                    f"{folder} has {held:,} bytes of weights, too few for the {size_of(config):,} "
                    "numbers that its config.json describes"
                )
            return folder / name
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in files.PICKLES)
    instead = f", but {pickles[0]}, {files.PICKLE}" if pickles else ""
    raise ld.CheckpointError(
        f"{folder} has no {model_files.MODEL}{instead}: save_pretrained() of transformers writes it"
    )


#: What a checkpoint may have besides the encoder: heads for several tasks, and constants.
NOT_WANTED = "pooler.", "cls.", "classifier.", "qa_outputs."
CONSTANTS = "embeddings.position_ids", "embeddings.token_type_ids"


def name_here(name: str) -> str | None:
    """Return what a tensor of a checkpoint is called here; None if it is not part of the encoder.

    A BERT that was saved with a head has ``bert.`` in front of all its names.  One that came from
    TensorFlow calls the weight and the bias of a norm gamma and beta.
    """
    name = name.removeprefix("bert.")
    if name in CONSTANTS or name.startswith(NOT_WANTED):
        return None
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


# ----------------------------------------------------------------------------- a text as a whole


def padded(texts: Sequence[Sequence[int]], pad_token_id: int) -> Array:
    """Return ids of different lengths as one array, (N, longest), padded at their ends."""
    ids = np.full((len(texts), max(map(len, texts), default=0)), pad_token_id)
    for row, text in zip(ids, texts):
        row[: len(text)] = text
    return ids


def lengths_of(ids: Array, pad_token_id: int) -> Array:
    """Return how many ids each text has before its padding, (N,)."""
    ends = np.where(ids == pad_token_id, 0, np.arange(1, ids.shape[1] + 1))
    lengths: Array = ends.max(axis=1, initial=0)
    return lengths


class Classifier(ld.Module):
    """From ids (N, T) to logits (N, classes): a linear layer on the mean of a text's vectors.

    all-MiniLM-L6-v2 was trained to describe a text by that mean.  The linear layer starts at 0, with
    all classes equally likely.

    TypeError or ValueError unless the number of classes is an integer of at least 1.
    """

    def __init__(self, bert: Bert, classes: int) -> None:
        check_positive(classes=classes)
        self.bert = bert
        self.dropout = ld.Dropout(bert.config.hidden_dropout_prob, rng=bert.embeddings.dropout.rng)
        dtype = bert.embeddings.word_embeddings.weight.dtype
        self.classifier = ld.Linear(bert.config.hidden_size, classes, rng=0, dtype=dtype)
        for p in self.classifier.parameters():
            p.data = np.zeros(p.shape, dtype)

    def features(self, ids: Array) -> mg.Tensor:
        """Return the mean of each text's vectors, (N, width).

        ValueError for ids that are not (N, T), and for a text without a token.
        """
        if ids.ndim != 2:
            raise ValueError(f"expected ids of shape (N, T), got {ids.shape}")
        lengths = lengths_of(ids, self.bert.config.pad_token_id)[:, None]
        if not np.all(lengths):
            raise ValueError("there is a text without a token")
        ids = ids[:, : np.max(lengths, initial=0)]  # no more than the longest of these texts needs
        there = np.arange(ids.shape[1]) < lengths
        x = self.bert(ids, there)
        weights = (there / lengths).astype(x.dtype)
        # for each text, a row of weights times the matrix of its vectors
        means: mg.Tensor = mg.matmul(weights[:, None], x)[:, 0]
        return means

    def forward(self, ids: npt.ArrayLike) -> mg.Tensor:
        """Return the logits."""
        return self.classifier(self.dropout(self.features(np.asarray(ids))))
