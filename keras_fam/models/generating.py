"""The methods of a language model that generate: whole texts, from a state on, and piece by piece."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from keras_fam.backend.compiled import as_written
from keras_fam.checks import check_flag
from keras_fam.memory.state import StreamState
from keras_fam.models.generation import generate_tokens
from keras_fam.models.pieces import GeneratedPieces
from keras_fam.models.prompts import (
    are_ids,
    as_texts,
    check_lengths,
    check_prompt,
    check_sampler,
    check_stop_tokens,
    ends_of,
    longest_text,
    prepare_ids,
    without_prompts,
)
from keras_fam.models.texts import are_texts, text_chunk
from keras_fam.types import MixedIn, Tensor


class Generates(MixedIn):
    """The generating methods of `FAMCausalLM`."""

    preprocessor: Any

    def generate_step(
        self, inputs: dict[str, Tensor], stop_token_ids: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Generates for one batch, in a state of fixed size. Used by `generate`, compiled where the backend compiles.

        Args:
            inputs: dict of `"token_ids"`, int `[batch, max_length]`, and `"padding_mask"`, 1 for the prompt's tokens;
                also of `"state"`, a `StreamState` that has read all but the last of the tokens that every row has, and
                then, for a contrastive sampler, of `"hidden_states"`, `[batch, max_length, d]`, of those tokens.
            stop_token_ids: tuple of int, tokens that end a text, or None to go on to `max_length`.

        Returns:
            dict of the same shapes: the finished texts, and 1 up to their ends.
        """
        return as_written(generate_tokens)(self, inputs, stop_token_ids)

    def make_generate_function(self) -> Callable:
        """See `keras_hub.models.CausalLM`; what it is given is checked before anything is compiled."""
        self._check_compiled()
        self.drop_stale_functions()
        return functools.partial(self._generate_checked, super().make_generate_function())

    def _check_compiled(self):
        if not hasattr(self, "generate_function"):
            raise ValueError("`compile` must be called before `generate`. Received: a model that was never compiled.")

    def _generate_checked(self, generate, inputs, stop_token_ids=None):
        check_prompt(inputs, self.sampler, self.backbone.vocabulary_size)
        return generate(inputs, stop_token_ids=stop_token_ids)

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
        max_new_tokens: int | None = None,
        state: StreamState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Goes on with texts, or with token ids. Memory is of fixed size, and no length is too long.

        Args:
            inputs: str, list of str or `tf.data.Dataset` of them, for a model with a preprocessor; or token ids: a dict
                of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, 1 for real tokens, or a `tf.data.Dataset`
                of such dicts. Padding before or inside a prompt is not read. Every row needs a real token.
            max_length: int or None. Length of the whole texts, prompts included. None is the preprocessor's
                `sequence_length`, or the length of `token_ids`; else those are padded or cut to it.
            stop_token_ids: int, collection of int, `"auto"` or None. Tokens that end a text; `"auto"` is the
                preprocessor's end token. With None, or nothing in it, every text goes on to its length.
            strip_prompt: bool. Whether to return what was generated alone.
            max_new_tokens: int or None, in place of `max_length`: so many tokens behind the longest prompt.
            state: `keras_fam.StreamState`, or None for new texts: what was read before the prompts, as by `stream` or
                by an earlier call. It is not changed. A text that goes on gets no start token; a row that has read
                nothing yet does. A contrastive sampler looks back at this call's prompt, not beyond.
            return_state: bool. Whether to return the state behind the texts too. It has read prompt and what was
                generated, the stop token too, as if by `stream`. All rows stand at the end of the longest: what is
                behind the end of a row that ended earlier is padding, which nothing attends to.

        Returns:
            str or list of str for texts; for token ids a dict of `"token_ids"` and `"padding_mask"`, arrays
            `[batch, max_length]`, the mask 1 for what was read or written up to a text's end. With `return_state` the
            tuple of that and a `StreamState`.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name; a state as in `stream`.

        Example:

        ```python
        state = lm.initial_state(batch_size=1)
        prompt = {"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 1]]}
        for turn in range(2):
            answer, state = lm.generate(
                prompt, stop_token_ids=None, max_new_tokens=4, state=state, return_state=True
            )
        ```
        """
        check_lengths(max_length, max_new_tokens)
        check_flag("strip_prompt", strip_prompt)
        stop_token_ids = check_stop_tokens(stop_token_ids, self.backbone.vocabulary_size)
        check_sampler(getattr(self, "sampler", None))
        texts = not are_ids(getattr(inputs, "element_spec", inputs))
        if texts and self.preprocessor is None:
            raise ValueError(
                "`inputs` must be a dict of 'token_ids' and 'padding_mask' for a model without a preprocessor. "
                f"Received: inputs of type {type(inputs).__name__}."
            )
        if check_flag("return_state", return_state) or state is not None:
            given = self._prompts(inputs, state, max_length, max_new_tokens)
            outputs, behind = self._go_on(given, state, self._stop_tokens(stop_token_ids), return_state)
            outputs = without_prompts(outputs, given["padding_mask"]) if strip_prompt else outputs
            if texts:
                outputs = self.preprocessor.generate_postprocess(outputs)
                outputs = self._normalize_generate_outputs([outputs], isinstance(inputs, str))
            return (outputs, behind) if return_state else outputs
        if texts:
            if max_new_tokens is not None:
                max_length = longest_text(self.preprocessor, inputs) + max_new_tokens
            return super().generate(inputs, max_length, stop_token_ids, strip_prompt)
        batches = inputs.as_numpy_iterator() if hasattr(inputs, "as_numpy_iterator") else [inputs]
        batches = (prepare_ids(x, self.backbone.vocabulary_size, max_length, max_new_tokens) for x in batches)
        if self.preprocessor is not None:
            stop_token_ids = self._stop_tokens(stop_token_ids)
        return self._generate_ids(super().generate, batches, stop_token_ids, strip_prompt)

    def _normalize_generate_inputs(self, inputs):
        batches, is_scalar = super()._normalize_generate_inputs(inputs)
        # A `tf.data.Dataset` hands out arrays of bytes; tokenizers take str.
        return (as_texts(batch) for batch in batches), is_scalar

    def _generate_ids(self, generate, batches, stop_token_ids, strip_prompt):
        """`generate`, KerasHub's own, of batches of token ids."""
        preprocessor = self.preprocessor
        try:
            self.preprocessor = None  # Ids in, ids out.
            outputs = [generate(batch, None, stop_token_ids, strip_prompt) for batch in batches]
        finally:
            self.preprocessor = preprocessor
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def generate_stream(
        self,
        prompt: Any,
        state: StreamState | None = None,
        max_new_tokens: int | None = None,
        stop_token_ids: Any = "auto",
    ) -> GeneratedPieces:
        """Goes on with one text and yields what is generated as it comes.

        The sampler is that of `compile`, if it draws one token after another: not a beam or contrastive search.

        Args:
            prompt: str, for a model with a preprocessor; or token ids, int `[1, length]`, or a dict of them and
                `"padding_mask"`.
            state: `keras_fam.StreamState` of one row, or None for a new text; see `generate`.
            max_new_tokens: int or None. None goes on until a stop token: without stop tokens, for ever.
            stop_token_ids: see `generate`. The token that ends the text is read into the state and not yielded.

        Returns:
            An iterator: of str for a text, each ending with a whole code point; of int for token ids. Its `state` is a
            `StreamState` that has read the prompt and all that was generated so far, at any time. Nothing is computed
            before the first piece is asked for.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name; another sampler; a state as
                in `stream`.

        Example:

        ```python
        pieces = lm.generate_stream([[1, 2, 3]], max_new_tokens=4, stop_token_ids=None)
        for piece in pieces:
            print(piece, end=" ", flush=True)
        state = pieces.state
        ```
        """
        self._check_compiled()
        check_lengths(None, max_new_tokens)
        stop_token_ids = self._stop_tokens(check_stop_tokens(stop_token_ids, self.backbone.vocabulary_size))
        if type(self.sampler).__call__ is not keras_hub.samplers.Sampler.__call__:
            raise ValueError(
                "`sampler` must draw one token after another: expected a greedy, random, top-k or top-p sampler in "
                f"`compile`. Received: {type(self.sampler).__name__}."
            )
        return GeneratedPieces(self, prompt, state, max_new_tokens, stop_token_ids or ())

    def _stop_tokens(self, stop_token_ids):
        """Tuple of int, or None; `"auto"` is the tokenizer's end tokens."""
        if stop_token_ids != "auto":
            return stop_token_ids
        if self.preprocessor is None:
            raise ValueError(
                "`stop_token_ids` must be given, or None, for a model without a preprocessor. Received: "
                "stop_token_ids='auto'."
            )
        tokenizer = self.preprocessor.tokenizer
        ends = (getattr(tokenizer, name, None) for name in ("end_token_id", "end_token2_id"))
        return tuple(end for end in ends if end is not None)

    # === From a state on ===

    def _go_on(self, given, state, stop_token_ids, return_state):
        """`generate` from a state on token ids: `(outputs, state)`; the latter is None without `return_state`.

        What every prompt has is read before the compiled function, which then looks alike for prompts of any length.
        The state behind the texts is made by reading them: samplers keep theirs to themselves.
        """
        generate, backbone = self.make_generate_function(), self.backbone
        check_prompt(given, self.sampler, backbone.vocabulary_size)
        rows, length = given["token_ids"].shape
        state = self.initial_state(rows) if state is None else backbone.own_state(state, rows)
        known = int(ends_of(given["padding_mask"]).min()) - 1  # All but the last token of the shortest prompt.
        first = _cut(given, 0, known)
        if isinstance(self.sampler, keras_hub.samplers.ContrastiveSampler):
            hidden = backbone.stream(_cut(given, 0, known + 1), state)[0]
            behind = ops.zeros((rows, length - known - 1, backbone.hidden_dim), hidden.dtype)
            rest = {**given, "hidden_states": ops.concatenate([hidden, behind], axis=1)}
        else:
            rest = _cut(given, known, length)
        state = backbone.read_into(state, first) if known else state
        outputs = generate({**rest, "state": state}, stop_token_ids=stop_token_ids)
        outputs = {name: ops.convert_to_numpy(x) for name, x in outputs.items()}
        if outputs["token_ids"].shape[1] < length:
            outputs = {name: np.concatenate([first[name], x], axis=1) for name, x in outputs.items()}
        if not return_state:
            return outputs, None
        return outputs, backbone.read_into(state, _cut(outputs, known, int(ends_of(outputs["padding_mask"]).max())))

    def _prompts(self, inputs, state, max_length, max_new_tokens):
        """Token ids of one batch, with room for what is generated."""
        if not are_ids(inputs):
            if not are_texts(inputs):
                raise TypeError(
                    "`inputs` must be a str, a list of str or a dict of token ids with `state` or `return_state`: one "
                    f"batch, since a state belongs to its rows. Received: inputs of type {type(inputs).__name__}."
                )
            inputs = text_chunk(self.preprocessor, inputs, state)
            if max_new_tokens is None and max_length is None:
                max_length = self.preprocessor.sequence_length
        return prepare_ids(inputs, self.backbone.vocabulary_size, max_length, max_new_tokens)


def _cut(texts, start, stop):
    """Places `start` to `stop` of a dict of arrays `[batch, length]`."""
    return {name: x[:, start:stop] for name, x in texts.items()}
