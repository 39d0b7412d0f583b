"""A small GPT: a decoder that guesses the next character of a text.

It is built like OPT (Zhang et al., arXiv:2205.01068), and its parameters have OPT's names.  So its
checkpoints fit ``transformers.OPTForCausalLM``, and an adapter that is trained here works there, and vice
versa.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from text import ALPHABET, decode, encode

import loradora as ld
import minigrad as mg
from loradora.attention import DecoderLayer, Embedding, LayerNorm, causal_mask
from loradora.nn import check_positive

Array: TypeAlias = npt.NDArray[Any]

#: How many characters the net sees at once.
CONTEXT = 64

CHECKPOINT = Path(__file__).parent / "data" / "austen_gpt.npz"

#: OPT keeps the first two rows of its table of positions for other uses.
FIRST_POSITION = 2


class Decoder(ld.Module):
    """From ids (N, T) to a vector for each place, (N, T, width), that knows what stands before it.

    The vector of each character is added to that of its place, because attention does not know the
    order of what it looks at.  A last norm follows the layers.
    """

    def __init__(
        self,
        *,
        characters: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        rng: np.random.Generator,
        dtype: npt.DTypeLike,
    ) -> None:
        self.embed_tokens = Embedding(characters, width, rng=rng, dtype=dtype)
        self.embed_positions = Embedding(FIRST_POSITION + context, width, rng=rng, dtype=dtype)
        self.layers = [DecoderLayer(width, heads, rng=rng, dtype=dtype) for _ in range(layers)]
        self.final_layer_norm = LayerNorm(width, dtype=dtype)
        for table in self.embed_tokens, self.embed_positions:
            table.weight.data = table.weight.data * 0.02

    def forward(self, ids: npt.ArrayLike) -> mg.Tensor:
        """Return the vectors; ValueError if there are no ids, or more than the context holds."""
        *_, length = np.shape(ids) or [0]
        context = len(self.embed_positions.weight) - FIRST_POSITION
        if not length:
            raise ValueError(
                "there is no character to continue from: expected ids of shape (..., T)"
            )
        if length > context:
            raise ValueError(
                f"{length} characters are too many for a context of {context}: give it the last {context}"
            )
        places = np.arange(FIRST_POSITION, FIRST_POSITION + length)
        x = self.embed_tokens(ids) + self.embed_positions(places)
        mask = causal_mask(length)
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_layer_norm(x)


class GPT(ld.Module):
    """From ids (N, T) to logits (N, T, characters): at each place, what may come next.

    The table of characters is also the weight of the last layer ("tied"): a character is likely where
    its vector fits the one that the decoder has computed.

    TypeError or ValueError for sizes that are not integers of at least 1.
    """

    def __init__(
        self,
        *,
        characters: int = len(ALPHABET),
        context: int = CONTEXT,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        rng: ld.nn.Rng = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        check_positive(characters=characters, context=context, layers=layers)
        decoder = Decoder(
            characters=characters,
            context=int(context),
            width=width,
            layers=layers,
            heads=heads,
            rng=np.random.default_rng(rng),
            dtype=dtype,
        )
        self.model = {"decoder": decoder}  # "model.decoder.layers.0...", as in OPT
        # its weight is replaced in the next line; rng=0, so that it draws nothing from the decoder's rng
        self.lm_head = ld.Linear(width, characters, bias=False, rng=0, dtype=dtype)
        self.lm_head.weight = decoder.embed_tokens.weight

    def forward(self, ids: npt.ArrayLike) -> mg.Tensor:
        """Return the logits."""
        return self.lm_head(self.model["decoder"](ids))


def pretrained() -> GPT:
    """Return the GPT that ``pretrain_gpt.py`` has taught to write like Jane Austen, in float32."""
    model = GPT()
    ld.load_model(CHECKPOINT, model)
    return model


def loss_on(model: ld.Module, text: Array, most: int = 256) -> float:
    """Return the mean loss in nats per character over windows that are spread evenly over a text."""
    x, y = ld.windows(text, CONTEXT)
    chosen = np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)
    return ld.evaluate(model, x[chosen], y[chosen], batch_size=32).loss


def check_prompt(prompt: str) -> list[int]:
    """Return the ids of a prompt; ValueError if it is empty or has unknown characters."""
    if not prompt:
        raise ValueError("the prompt is empty: there is nothing to continue from")
    return encode(prompt, "the prompt").tolist()


@mg.no_grad()
def sample(
    model: ld.Module,
    prompt: str,
    length: int,
    *,
    temperature: float,
    rng: ld.nn.Rng,
) -> str:
    """Return ``length`` characters that continue the prompt.

    The next character is drawn with probability softmax(z/T), for its logits z and the temperature T.
    The index of the largest entry of z + T·g is such a draw if the entries of g have Gumbel's
    distribution (Maddison et al., arXiv:1411.0030, sec. 2.2).  For T = 0 it is the likeliest character.

    Raises
    ------
    ValueError
        For an empty prompt, or one with characters that are not in the alphabet, and for a temperature
        that is negative or not finite.
    """
    if not 0 <= temperature < np.inf:
        raise ValueError(f"the temperature must be finite and not negative, not {temperature}")
    ids, rng = check_prompt(prompt), ld.nn.generator(rng)
    for _ in range(length):
        z = model(np.array(ids[-CONTEXT:])).data[-1]
        ids.append(int((z + temperature * rng.gumbel(size=z.shape)).argmax()))
    return decode(ids[len(prompt) :])
