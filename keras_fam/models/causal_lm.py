"""A KerasHub language model with working memory: fit, evaluate, generate, stream, score."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_fam.backend.compiled import CompiledModel
from keras_fam.backend.parameters import RegistersParameters
from keras_fam.backend.rematerialize import rematerialize_blocks_alone
from keras_fam.checks import (
    check_flag,
    check_keywords,
    check_padding_mask,
    check_path,
    check_shape_of_ids,
    check_token_ids,
)
from keras_fam.layers.lora_checkpoint import merged_alone
from keras_fam.memory.state import StreamState
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.batches import TakesTextsAndIds
from keras_fam.models.generation import generate_tokens
from keras_fam.models.inputs import ChecksInputs
from keras_fam.models.presets import SavesWhole, load_task, save_preset
from keras_fam.models.prompts import (
    are_ids,
    as_texts,
    check_lengths,
    check_prompt,
    check_sampler,
    check_stop_tokens,
    longest_text,
    prepare_ids,
)
from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMCausalLM(
    CompiledModel, ChecksInputs, SavesWhole, TakesTextsAndIds, RegistersParameters, keras_hub.models.CausalLM
):
    """A causal language model on a `FAMBackbone`.

    Args:
        backbone: `keras_fam.FAMBackbone`.
        preprocessor: `keras_hub.models.CausalLMPreprocessor` of the stock preset, or None to work on token ids.
        **kwargs: see `keras_hub.models.CausalLM`.

    Call arguments:
        inputs: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, `[batch, length]`.

    Returns:
        Logits, `[batch, length, vocabulary_size]`.

    Raises:
        TypeError: `backbone` is no `FAMBackbone`.

    Example:

    ```python
    stock = keras_hub.models.GPT2Backbone(
        vocabulary_size=100, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=64
    )
    lm = keras_fam.FAMCausalLM(keras_fam.FAMBackbone(stock, block_size=8, memory_segments=1, fam_length=4))
    state = lm.initial_state(batch_size=1)
    logits, state = lm.stream([[1, 2, 3]], state)
    ```
    """

    backbone_cls = FAMBackbone
    preprocessor_cls = keras_hub.models.CausalLMPreprocessor

    def __init__(
        self,
        backbone: FAMBackbone,
        preprocessor: keras_hub.models.CausalLMPreprocessor | None = None,
        **kwargs,
    ):
        if not isinstance(backbone, FAMBackbone):
            raise TypeError(
                "`backbone` must be a keras_fam.FAMBackbone: expected FAMBackbone(backbone, ...). Received: backbone "
                f"of type {type(backbone).__name__}."
            )
        check_keywords(kwargs, ("backbone", "preprocessor", "compile", "name", "trainable"))
        _check_arguments(preprocessor, kwargs)
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        inputs = backbone.input
        outputs = backbone.logits(backbone(inputs))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        rematerialize_blocks_alone(self)
        self._compiled = {}

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "FAMCausalLM":
        """Loads a saved FAM preset, or a stock preset and gives it memory.

        A stock preset gets defaults that do a trained model little harm. `sink_token_id` is the start token of the
        preprocessor's tokenizer, if it has one. `memory_gate` is -6, if there is FAM. Sizes that are not given fit the
        model: where positions are learned, `block_size` is at most the table's length / (memory_segments + 1), or,
        if `block_size` is given, `memory_segments` as many as the table has room for; `fam_length` is at most
        `block_size`. What is given is taken; None switches sink and gate off.

        Args:
            preset: str. A KerasHub preset name, a kaggle://, hf:// or modelscope:// handle, or a local folder.
            load_weights: bool. If False, the weights are random.
            **kwargs: the arguments of `FAMBackbone` for a stock preset; `dtype`; `preprocessor`. With a saved FAM
                preset the arguments of `FAMBackbone` may be left out, and must agree with it if given.

        Returns:
            `FAMCausalLM`.

        Raises:
            ValueError: an unsupported family, or arguments that disagree with a saved FAM preset.

        Example:

        ```python
        lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en")
        ```
        """
        _check_arguments(kwargs.get("preprocessor"), {"load_weights": load_weights, **kwargs})
        return load_task(cls, super().from_preset, preset, load_weights, kwargs)

    def save_to_preset(self, preset_dir: str, max_shard_size: float | None = 10) -> None:
        """Saves a preset that `from_preset` loads; a folder that was there before stays whole until it is replaced."""
        check_path("preset_dir", preset_dir)
        with merged_alone():
            save_preset(super().save_to_preset, preset_dir, max_shard_size)

    # === LoRA ===

    def enable_lora(self, rank: int, target_layer_names: list[str] | None = None) -> None:
        """See `FAMBackbone.enable_lora`. Call `compile` afterwards."""
        self.backbone.enable_lora(rank, target_layer_names)
        self._trainable = True  # The setter would set it for all layers.

    def save_lora_weights(self, filepath: str) -> None:
        """See `FAMBackbone.save_lora_weights`."""
        check_path("filepath", filepath)
        self.backbone.save_lora_weights(filepath)

    def load_lora_weights(self, filepath: str) -> None:
        """See `FAMBackbone.load_lora_weights`."""
        check_path("filepath", filepath)
        enabled = self.backbone.lora_enabled
        self.backbone.load_lora_weights(filepath)
        self._trainable = self._trainable or not enabled

    # === Streaming ===

    def initial_state(self, batch_size: int) -> StreamState:
        """See `FAMBackbone.initial_state`."""
        return self.backbone.initial_state(batch_size)

    def stream(self, inputs: Tensor | dict[str, Tensor], state: StreamState) -> tuple[Tensor, StreamState]:
        """Reads a chunk of any length into a stream's memory and predicts what follows each of its tokens.

        Args:
            inputs: int token ids `[batch, length]`, or a dict of `"token_ids"` and `"padding_mask"`.
            state: `keras_fam.StreamState`, of `initial_state` or of the call before; it is not changed.

        Returns:
            `(logits, state)`: logits `[batch, length, vocabulary_size]`, and the state to go on with.

        Raises:
            TypeError, ValueError: see `FAMBackbone.stream`.
        """
        backbone = self.backbone
        return backbone.stream_pieces(inputs, state, backbone.inference("logits", self._logits_piece))

    def _logits_piece(self, token_ids, padding_mask, state, last):
        hidden, state = self.backbone.piece(token_ids, padding_mask, state, last)
        return self.backbone.logits(hidden), state

    # === Generation ===

    def generate_step(
        self, inputs: dict[str, Tensor], stop_token_ids: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Generates for one batch, in a state of fixed size. Used by `generate`, compiled where the backend compiles.

        Args:
            inputs: dict of `"token_ids"`, int `[batch, max_length]`, and `"padding_mask"`, 1 for the prompt's tokens.
            stop_token_ids: tuple of int, tokens that end a text, or None to go on to `max_length`.

        Returns:
            dict of the same shapes: the finished texts, and 1 up to their ends.
        """
        return generate_tokens(self, inputs["token_ids"], inputs["padding_mask"], stop_token_ids)

    def make_generate_function(self):
        """See `keras_hub.models.CausalLM`; what it is given is checked before anything is compiled."""
        if not hasattr(self, "generate_function"):
            raise ValueError("`compile` must be called before `generate`. Received: a model that was never compiled.")
        self.drop_stale_functions()
        return functools.partial(self._generate_checked, super().make_generate_function())

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

        Returns:
            str or list of str for texts; for token ids a dict of `"token_ids"` and `"padding_mask"`, arrays
            `[batch, max_length]`, the mask 1 for what was read or written up to a text's end.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name.
        """
        check_lengths(max_length, max_new_tokens)
        stop_token_ids = check_stop_tokens(stop_token_ids, self.backbone.vocabulary_size)
        check_sampler(getattr(self, "sampler", None))
        if not are_ids(getattr(inputs, "element_spec", inputs)):
            if self.preprocessor is None:
                raise ValueError(
                    "`inputs` must be a dict of 'token_ids' and 'padding_mask' for a model without a preprocessor. "
                    f"Received: inputs of type {type(inputs).__name__}."
                )
            if max_new_tokens is not None:
                max_length = longest_text(self.preprocessor, inputs) + max_new_tokens
            return super().generate(inputs, max_length, stop_token_ids, strip_prompt)
        batches = inputs.as_numpy_iterator() if hasattr(inputs, "as_numpy_iterator") else [inputs]
        if stop_token_ids == "auto" and self.preprocessor is not None:
            tokenizer = self.preprocessor.tokenizer
            ends = (getattr(tokenizer, name, None) for name in ("end_token_id", "end_token2_id"))
            stop_token_ids = tuple(end for end in ends if end is not None)
        outputs, preprocessor = [], self.preprocessor
        try:
            self.preprocessor = None  # Ids in, ids out.
            for batch in batches:
                batch = prepare_ids(batch, self.backbone.vocabulary_size, max_length, max_new_tokens)
                outputs.append(super().generate(batch, None, stop_token_ids, strip_prompt))
        finally:
            self.preprocessor = preprocessor
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def _normalize_generate_inputs(self, inputs):
        batches, is_scalar = super()._normalize_generate_inputs(inputs)
        # A `tf.data.Dataset` hands out arrays of bytes; tokenizers take str.
        return (as_texts(batch) for batch in batches), is_scalar

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
        if scoring_mode not in ("logits", "loss"):
            raise ValueError(f"`scoring_mode` must be 'logits' or 'loss'. Received: scoring_mode={scoring_mode!r}.")
        if scoring_mode == "loss" and target_ids is None:
            raise ValueError("`target_ids` must be given with scoring_mode='loss'. Received: target_ids=None.")
        token_ids = check_token_ids(token_ids, self.backbone.vocabulary_size)
        padding_mask = ops.ones(token_ids.shape, "bool") if padding_mask is None else padding_mask
        padding_mask = ops.convert_to_tensor(check_padding_mask(padding_mask, token_ids))
        if target_ids is not None:
            target_ids = check_token_ids(target_ids, self.backbone.vocabulary_size, "target_ids")
            target_ids = check_shape_of_ids(target_ids, token_ids, "target_ids")
        token_ids = ops.convert_to_tensor(token_ids, "int32")
        hidden = self.backbone.hidden_states(token_ids, padding_mask, layer_intercept_fn=layer_intercept_fn)
        logits = self.backbone.logits(hidden)
        if scoring_mode == "logits":
            return logits
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        return loss(target_ids, logits)


def _check_arguments(preprocessor, flags):
    """Refuses what is no preprocessor, and flags among keyword arguments that are no bool."""
    if not (preprocessor is None or callable(preprocessor)):
        raise TypeError(
            "`preprocessor` must be a keras_hub.models.CausalLMPreprocessor or None. Received: preprocessor="
            f"{preprocessor!r} of type {type(preprocessor).__name__}."
        )
    for name in ("compile", "trainable", "load_weights"):
        check_flag(name, flags.get(name, True))
