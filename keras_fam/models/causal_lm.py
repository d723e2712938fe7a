"""A KerasHub language model with working memory: fit, evaluate, generate, stream, score."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_hub
from keras import ops

from keras_fam.backend.rematerialize import rematerialize_blocks_alone
from keras_fam.checks import check_keywords, check_padding_mask, check_shape_of_ids, check_token_ids
from keras_fam.memory.state import StreamState
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.generation import generate_tokens
from keras_fam.models.inputs import ChecksInputs
from keras_fam.models.presets import SavesWhole, load_task, save_preset
from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMCausalLM(ChecksInputs, SavesWhole, keras_hub.models.CausalLM):
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
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        inputs = backbone.input
        outputs = backbone.logits(backbone(inputs))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        rematerialize_blocks_alone(self)

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
        return load_task(cls, super().from_preset, preset, load_weights, kwargs)

    def save_to_preset(self, preset_dir: str, max_shard_size: float | None = 10) -> None:
        """Saves a preset that `from_preset` loads; a folder that was there before stays whole until it is replaced."""
        save_preset(super().save_to_preset, preset_dir, max_shard_size)

    # === Training ===

    def fit(self, x: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """See `keras_hub.models.CausalLM.fit`; batches of token ids, as of `keras_fam.data`, are taken as they are."""
        fit = super().fit if self._wants_preprocessing(x) else functools.partial(keras.Model.fit, self)
        return fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args, **kwargs) -> Any:
        """See `keras_hub.models.CausalLM.evaluate`; batches of token ids are taken as they are."""
        evaluate = super().evaluate if self._wants_preprocessing(x) else functools.partial(keras.Model.evaluate, self)
        return evaluate(x, *args, **kwargs)

    @staticmethod
    def _wants_preprocessing(x):
        """False for batches that are token ids already; KerasHub takes arrays and datasets of texts alone."""
        if isinstance(x, keras.utils.PyDataset) or type(x).__module__.startswith("torch.utils.data"):
            return False
        spec = getattr(x, "element_spec", None)
        inputs = spec[0] if isinstance(spec, tuple) else spec
        return not (isinstance(inputs, dict) and "token_ids" in inputs)

    # === LoRA ===

    def enable_lora(self, rank: int, target_layer_names: list[str] | None = None) -> None:
        """See `FAMBackbone.enable_lora`. Call `compile` afterwards."""
        self.backbone.enable_lora(rank, target_layer_names)

    def save_lora_weights(self, filepath: str) -> None:
        """See `FAMBackbone.save_lora_weights`."""
        self.backbone.save_lora_weights(filepath)

    def load_lora_weights(self, filepath: str) -> None:
        """See `FAMBackbone.load_lora_weights`."""
        self.backbone.load_lora_weights(filepath)

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
        return backbone.stream_pieces(inputs, state, backbone._inference("logits", self._logits_piece))

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

    def generate(self, inputs: Any, max_length: int | None = None, **kwargs) -> Any:
        """See `keras_hub.models.CausalLM.generate`; `max_length` has no upper bound here."""
        if isinstance(inputs, dict) and "token_ids" in inputs:
            ids = check_token_ids(inputs["token_ids"], self.backbone.vocabulary_size)
            if "padding_mask" not in inputs:
                raise ValueError(f"`inputs` must have the key 'padding_mask'. Received: keys {sorted(inputs)}.")
            inputs = {**inputs, "token_ids": ids}
            inputs["padding_mask"] = check_padding_mask(inputs["padding_mask"], ids)
        return super().generate(inputs, max_length=max_length, **kwargs)

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
