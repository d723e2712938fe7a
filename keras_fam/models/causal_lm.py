"""A KerasHub language model with working memory: fit, evaluate, generate, stream, score."""

from typing import Any, Self

import keras
import keras_hub

from keras_fam.arguments import DEFAULT, given
from keras_fam.backend.compiled import CompiledModel
from keras_fam.backend.parameters import RegistersParameters
from keras_fam.backend.rematerialize import rematerialize_blocks_alone
from keras_fam.checks import check_keywords, check_model_arguments, check_path
from keras_fam.layers.lora_checkpoint import merged_alone
from keras_fam.memory.options import MEMORY_ARGUMENTS
from keras_fam.memory.state import StreamState
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.batches import TakesTextsAndIds
from keras_fam.models.gates import CalibratesGates
from keras_fam.models.generating import Generates
from keras_fam.models.inputs import ChecksInputs
from keras_fam.models.presets import SavesWhole, load_task, save_preset
from keras_fam.models.scoring import Scores
from keras_fam.models.texts import are_texts, text_chunk
from keras_fam.training.carried_evaluation import CarriesInEvaluation
from keras_fam.training.chunked_training import TrainsInPieces
from keras_fam.types import Path, Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMCausalLM(
    CarriesInEvaluation,
    CompiledModel,
    TrainsInPieces,
    ChecksInputs,
    SavesWhole,
    TakesTextsAndIds,
    Generates,
    Scores,
    CalibratesGates,
    RegistersParameters,
    keras_hub.models.CausalLM,
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
    backbone: FAMBackbone
    preprocessor: Any

    def __init__(
        self,
        backbone: FAMBackbone,
        preprocessor: keras_hub.models.CausalLMPreprocessor | None = None,
        **kwargs: Any,
    ) -> None:
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
    def from_preset(
        cls,
        preset: str,
        load_weights: bool = True,
        *,
        block_size: int = DEFAULT,
        memory_segments: int = DEFAULT,
        fam_length: int = DEFAULT,
        random_state_passing: float = DEFAULT,
        random_position_offset: bool = DEFAULT,
        stop_gradient_memory: bool = DEFAULT,
        truncate_bptt: int | None = DEFAULT,
        stateful_batch_size: int | None = DEFAULT,
        memory_span: float | tuple[float, ...] | None = DEFAULT,
        memory_gate: float | None = DEFAULT,
        sink_token_id: int | None = DEFAULT,
        dtype: Any = DEFAULT,
        preprocessor: keras_hub.models.CausalLMPreprocessor | None = DEFAULT,
        **kwargs: Any,
    ) -> Self:
        """Loads a saved FAM preset, or a stock preset and gives it memory.

        A stock preset gets defaults that do a trained model little harm. `sink_token_id` is the start token of the
        preprocessor's tokenizer, if it has one. `memory_gate` is -9, if there is FAM. Sizes that are not given fit the
        model: where positions are learned, `block_size` is at most the table's length / (memory_segments + 1), or,
        if `block_size` is given, `memory_segments` as many as the table has room for; `fam_length` is at most
        `block_size`. What is given is taken; None switches sink and gate off. With a saved FAM preset, options may be
        left out, and those that shape the memory must agree with it if given.

        Args:
            preset: str. A KerasHub preset name, a kaggle://, hf:// or modelscope:// handle, or a local folder.
            load_weights: bool. If False, the weights are random.
            block_size: int, B. Tokens per block.
            memory_segments: int, m. Past blocks whose keys and values stay visible.
            fam_length: int, N <= B. Memory vectors per layer; 0 is plain block sliding window attention (BSWA).
            random_state_passing: float in [0, 1], training only: see `FAMBackbone`, as for all options.
            random_position_offset: bool, training only, for learned positions: shift each row's places.
            stop_gradient_memory: bool. No gradient through memory segments.
            truncate_bptt: int or None. Cut FAM's gradient every that many blocks.
            stateful_batch_size: int or None. Batches of that many rows go on from each other.
            memory_span: float, one for each FAM vector, or None. How long a vector may stay.
            memory_gate: float or None. Where a trained scalar of each layer starts that weighs FAM; None adds none.
            sink_token_id: int or None. The token that stays visible for ever.
            dtype: str or `keras.DTypePolicy`, such as `"bfloat16"`.
            preprocessor: `keras_hub.models.CausalLMPreprocessor` in place of the preset's own, or None for none.
            **kwargs: `compile`, `name`, `trainable`.

        Returns:
            `FAMCausalLM`.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name; an unsupported family;
                options that disagree with a saved FAM preset.

        Example:

        ```python
        lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en")
        ```
        """
        arguments = given(locals(), *MEMORY_ARGUMENTS, "dtype", "preprocessor") | kwargs
        _check_arguments(arguments.get("preprocessor"), {"load_weights": load_weights, **arguments})
        return load_task(cls, super().from_preset, preset, load_weights, arguments)

    def save_to_preset(self, preset_dir: Path, max_shard_size: float | None = 10) -> None:
        """Saves a preset that `from_preset` loads; a folder that was there before stays whole until it is replaced.

        Args:
            preset_dir: str or path-like, a folder. Other files in it are kept.
            max_shard_size: float, how many GB a file of weights may have; None is no limit.

        Raises:
            TypeError, ValueError: `preset_dir` is no path, or a file.
        """
        check_path("preset_dir", preset_dir)
        with merged_alone():
            save_preset(super().save_to_preset, preset_dir, max_shard_size)

    # === LoRA ===

    def enable_lora(self, rank: int, target_layer_names: list[str] | None = None, memory_only: bool = False) -> None:
        """Freezes the model but for LoRA on its projections, the target layers' biases, the FAM prompt and gates.

        See `FAMBackbone.enable_lora`. Call `compile` afterwards.

        Args:
            rank: int >= 1.
            target_layer_names: list of str or None, names of layers; None is attention and feed-forward.
            memory_only: bool. LoRA acts on the prompt and FAM alone, and biases stay frozen: tokens go through the same
                layers as before, to the last bit, and differ only by what they read of FAM.

        Raises:
            TypeError, ValueError: `rank` is no integer or below 1; a name that no layer has; LoRA is enabled already;
                `memory_only` without FAM.
        """
        self.backbone.enable_lora(rank, target_layer_names, memory_only)
        self._trainable = True  # The setter would set it for all layers.

    def save_lora_weights(self, filepath: Path) -> None:
        """Saves all that LoRA fine-tuning trains: LoRA kernels, biases and the FAM prompt, by variable path.

        Args:
            filepath: str or path-like ending in `.lora.safetensors`, or in `.lora.h5`. Replaced in one step.

        Raises:
            TypeError, ValueError: no path; LoRA is not enabled, another ending, or weights with NaN or infinity.
        """
        check_path("filepath", filepath)
        self.backbone.save_lora_weights(filepath)

    def load_lora_weights(self, filepath: Path) -> None:
        """Loads what `save_lora_weights` saved, enabling LoRA if it is not; nothing is changed if a check fails.

        Args:
            filepath: str or path-like.

        Raises:
            FileNotFoundError: no such file.
            TypeError, ValueError: no path; no LoRA file, another rank, or variables that do not match this model's.
        """
        check_path("filepath", filepath)
        enabled = self.backbone.lora_enabled
        self.backbone.load_lora_weights(filepath)
        self._trainable = self._trainable or not enabled

    # === Streaming ===

    def initial_state(self, batch_size: int) -> StreamState:
        """The state of streams that have read nothing yet.

        Args:
            batch_size: int >= 1, parallel streams.

        Returns:
            `keras_fam.StreamState`, of fixed size: nothing in it grows with the text.

        Raises:
            TypeError, ValueError: `batch_size` is no integer, or below 1.
        """
        return self.backbone.initial_state(batch_size)

    def stream(
        self, inputs: Tensor | dict[str, Tensor] | str | list[str], state: StreamState
    ) -> tuple[Tensor, StreamState]:
        """Reads a chunk of any length into a stream's memory and predicts what follows each of its tokens.

        Args:
            inputs: int token ids `[batch, length]`, or a dict of `"token_ids"` and `"padding_mask"`; for a model with a
                preprocessor also a str, or a list of one str for each row. A row that has read nothing begins with the
                tokenizer's start token, if it has one; one that goes on does not. Texts that are shorter than the
                longest are padded behind; logits on padding mean nothing.
            state: `keras_fam.StreamState`, of `initial_state` or of the call before; it is not changed.

        Returns:
            `(logits, state)`: logits `[batch, length, vocabulary_size]`, and the state to go on with.

        Raises:
            TypeError, ValueError: see `FAMBackbone.stream`; texts for a model without a preprocessor.
        """
        if are_texts(inputs):
            chunk: Any = inputs
            inputs = text_chunk(self.preprocessor, chunk, state)
        return self.backbone.stream_pieces(inputs, state, "logits", self._logits_piece)

    def _logits_piece(self, token_ids, padding_mask, state, last, count=None):
        hidden, state = self.backbone.piece(token_ids, padding_mask, state, last, count)
        return self.backbone.logits(hidden), state


def _check_arguments(preprocessor, others):
    """Refuses what is no preprocessor, and names, dtypes and flags among keyword arguments that are none."""
    if not (preprocessor is None or (callable(preprocessor) and not isinstance(preprocessor, type))):
        raise TypeError(
            "`preprocessor` must be a keras_hub.models.CausalLMPreprocessor or None. Received: preprocessor="
            f"{preprocessor!r} of type {type(preprocessor).__name__}."
        )
    check_model_arguments(others)
