"""Generation that is watched: one token after another, and the state at any time."""

from typing import Any

import numpy as np
from keras import ops

from keras_fam.checks import check_token_ids
from keras_fam.models.prompts import are_ids, check_prompt, ends_of, prepare_ids
from keras_fam.models.texts import Decoder, are_texts, text_chunk


class GeneratedPieces:
    """The iterator of `FAMCausalLM.generate_stream`.

    Attributes:
        state: `StreamState` that has read the prompt and all that was generated so far. Before the first piece is asked
            for it is the state given, or None.
        stopped_by: int, the stop token that ended the text; None if none did.
    """

    stopped_by = None

    def __init__(self, lm: Any, prompt: Any, state: Any, max_new_tokens: int | None, stop_token_ids: tuple[int, ...]):
        self._lm, self.state, self._decoder = lm, state, None
        self._max_new_tokens, self._stop_token_ids = max_new_tokens, stop_token_ids
        if are_texts(prompt):
            prompt = text_chunk(lm.preprocessor, prompt, state, "prompt")
            tokenizer = lm.preprocessor.tokenizer
            silent = (*(getattr(tokenizer, "special_token_ids", None) or ()), *stop_token_ids)
            self._decoder = Decoder(tokenizer, prompt["token_ids"][0].tolist(), silent)
        self._prompt = self._checked(prompt)
        if state is not None:
            self.state = lm.backbone.own_state(state, 1)
        self._pieces = self._generate()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._pieces)

    def _checked(self, prompt):
        """Token ids and mask up to the prompt's last real token."""
        size = self._lm.backbone.vocabulary_size
        if not are_ids(prompt):
            prompt = check_token_ids(prompt, size, "prompt")
            prompt = {"token_ids": prompt, "padding_mask": np.ones(tuple(prompt.shape), "bool")}
        prompt = prepare_ids(prompt, size)
        if len(prompt["token_ids"]) != 1:
            raise ValueError(
                f"`prompt` must be one text. Received: {len(prompt['token_ids'])}; `generate` takes several at once."
            )
        check_prompt(prompt, self._lm.sampler, size)
        return {name: x[:, : int(ends_of(prompt["padding_mask"])[0])] for name, x in prompt.items()}

    def _generate(self):
        lm, count = self._lm, 0
        if self.state is None:
            self.state = lm.initial_state(1)
        first, last = ({name: x[:, part] for name, x in self._prompt.items()} for part in (slice(-1), slice(-1, None)))
        if first["token_ids"].size:
            self.state = lm.backbone.read_into(self.state, first)
        logits, self.state = lm.stream(last, self.state)
        while count != self._max_new_tokens:
            token, count = self._drawn(logits), count + 1
            logits, self.state = lm.stream([[token]], self.state)
            if token in self._stop_token_ids:
                self.stopped_by = token
                break
            piece = token if self._decoder is None else self._decoder.piece(token)
            if piece != "":
                yield piece
        if self._decoder is not None and (piece := self._decoder.rest()):
            yield piece

    def _drawn(self, logits):
        sampler = self._lm.sampler
        token = sampler.get_next_token(sampler.compute_probabilities(logits[:, -1]))
        return int(ops.convert_to_numpy(token)[0])
