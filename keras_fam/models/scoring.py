"""The methods of a language model that score: given ids at once, and texts of any length in fixed memory."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_fam.checks import (
    check_choice,
    check_function,
    check_integer,
    check_padding_mask,
    check_shape_of_ids,
    check_token_ids,
)
from keras_fam.memory.state import StreamState
from keras_fam.models.inputs import checked
from keras_fam.models.reading import block_losses, losses_in_blocks, open_texts
from keras_fam.types import MixedIn, Tensor


class Perplexity(NamedTuple):
    """What `FAMCausalLM.perplexity` returns.

    Attributes:
        nats: float, mean loss of all scored tokens.
        tokens: int, how many were scored: all but the first of each text.
        pages: list of float arrays, one for each text: the mean loss on each of its pages.
    """

    nats: float
    tokens: int
    pages: list[np.ndarray]

    @property
    def perplexity(self) -> float:
        """e to the power of `nats`."""
        return float(np.exp(self.nats))


class Scores(MixedIn):
    """The scoring methods of `FAMCausalLM`."""

    def score(
        self,
        token_ids: Tensor,
        padding_mask: Tensor | None = None,
        scoring_mode: str = "logits",
        layer_intercept_fn: Callable[[Tensor, int], Tensor] | None = None,
        target_ids: Tensor | None = None,
    ) -> Tensor:
        """Scores given token ids, as `keras_hub.models.GPT2CausalLM.score` does.

        Args:
            token_ids: int `[batch, length]`.
            padding_mask: `[batch, length]`, or None for no padding.
            scoring_mode: `"logits"` or `"loss"`.
            layer_intercept_fn: callable `(x, index) -> x` on the embeddings (index -1) and each layer's output, or
                None.
            target_ids: int `[batch, length]`, the tokens to score with `"loss"`.

        Returns:
            `[batch, length, vocabulary_size]` logits, or `[batch, length]` losses in nats.

        Raises:
            TypeError, ValueError: an unknown mode, a loss without targets, wrong token ids or mask.
        """
        check_choice("scoring_mode", scoring_mode, ("logits", "loss"))
        check_function("layer_intercept_fn", layer_intercept_fn)
        if scoring_mode == "loss" and target_ids is None:
            raise ValueError("`target_ids` must be given with scoring_mode='loss'. Received: target_ids=None.")
        token_ids = check_token_ids(token_ids, self.backbone.vocabulary_size)
        padding_mask = ops.ones(token_ids.shape, "bool") if padding_mask is None else padding_mask
        padding_mask = ops.cast(check_padding_mask(padding_mask, token_ids), "bool")
        if target_ids is not None:
            target_ids = check_token_ids(target_ids, self.backbone.vocabulary_size, "target_ids")
            target_ids = check_shape_of_ids(target_ids, token_ids, "target_ids")
        token_ids = ops.convert_to_tensor(token_ids, "int32")
        with checked():
            hidden = self.backbone.hidden_states(token_ids, padding_mask, layer_intercept_fn=layer_intercept_fn)
        logits = self.backbone.logits(hidden)
        if scoring_mode == "logits":
            return logits
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        return loss(target_ids, logits)

    def perplexity(
        self,
        texts: str | os.PathLike | Sequence[Any],
        page: int = 1024,
        batch_size: int = 1,
        verbose: int = 1,
    ) -> Perplexity:
        """Reads texts and files of any length, each as a stream of its own, in fixed memory and shapes.

        Args:
            texts: str, a text; `pathlib.Path` or another path-like, a file in UTF-8; token ids of one text, int
                `[length]`; or a list of these. Texts and files begin with the tokenizer's start token, if it has one.
            page: int, tokens of a page: a loss is given for each.
            batch_size: int, how many texts are read at once.
            verbose: 1 for a progress bar, 0 for none.

        Returns:
            `Perplexity`: nats a token over all, how many tokens, and the nats of each page of each text.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name; texts for a model without a
                preprocessor; a text without a token to score; a str that names a file.
            FileNotFoundError: a path without a file.

        Example:

        ```python
        result = lm.perplexity([1, 2, 3, 4, 5, 6, 7], page=4, verbose=0)
        print(f"{result.nats:.3f} nats a token, perplexity {result.perplexity:.1f}, pages {result.pages[0]}")
        ```
        """
        check_integer("page", page, 1)
        check_integer("batch_size", batch_size, 1)
        verbose = check_integer("verbose", verbose, 0, 1)
        documents = open_texts(self, texts)
        progress = keras.utils.Progbar(None, verbose=verbose, unit_name="token")
        pages, tokens = [], 0
        for first in range(0, len(documents), batch_size):
            group = documents[first : first + batch_size]
            sums: list[list] = [[] for _ in group]
            for start, losses, scored in losses_in_blocks(self, group, batch_size):
                for row, totals in enumerate(sums):
                    _add(totals, start, losses[row], scored[row], page)
                if scored.any():
                    tokens += int(scored.sum())
                    progress.update(tokens, values=[("nats", losses[scored].mean())])
            pages += sums
        progress.update(tokens, finalize=True)
        if not tokens:
            raise ValueError("`texts` must hold texts of at least two tokens. Received: none that does.")
        total = sum(loss for totals in pages for loss, _ in totals)
        means = [np.array([loss / count for loss, count in totals], "float32") for totals in pages]
        return Perplexity(total / tokens, tokens, means)

    def losses_of_block(
        self, token_ids: Tensor, padding_mask: Tensor, targets: Tensor, state: StreamState
    ) -> tuple[Tensor, StreamState]:
        """The losses of one whole block, inside a compiled function.

        Args:
            token_ids: int `[batch, B]`.
            padding_mask: bool `[batch, B]`; padding only behind a text's end.
            targets: int `[batch, B]`, the tokens behind each of them.
            state: `keras_fam.StreamState` in front of the block.

        Returns:
            `(losses, state)`: nats, float32 `[batch, B]`, and the state behind the block.
        """
        hidden, state = self.backbone.piece(token_ids, padding_mask, state, last=True)
        return block_losses(self, hidden, targets), state


def _add(totals, start, losses, scored, page):
    """Adds a block's losses, from place `start` on, to `[loss, count]` of each page."""
    places = start + np.flatnonzero(scored)
    for number in np.unique(places // page):
        if number == len(totals):
            totals.append([0.0, 0])
        inside = losses[places[places // page == number] - start]
        totals[number][0] += float(inside.sum(dtype="float64"))
        totals[number][1] += len(inside)
