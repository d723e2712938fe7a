"""A KerasHub language model with working memory: fit, evaluate, generate, stream, score."""

import keras
import keras_hub

from keras_fam.backend.compiled import CompiledModel
from keras_fam.backend.parameters import RegistersParameters
from keras_fam.backend.rematerialize import rematerialize_blocks_alone
from keras_fam.checks import check_keywords, check_model_arguments, check_path
from keras_fam.layers.lora_checkpoint import merged_alone
from keras_fam.memory.state import StreamState
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.batches import TakesTextsAndIds
from keras_fam.models.generating import Generates
from keras_fam.models.inputs import ChecksInputs
from keras_fam.models.presets import SavesWhole, load_task, save_preset
from keras_fam.models.scoring import Scores
from keras_fam.models.texts import are_texts, text_chunk
from keras_fam.training.carried_evaluation import CarriesInEvaluation
from keras_fam.training.chunked_training import TrainsInPieces
from keras_fam.types import Tensor


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
            inputs = text_chunk(self.preprocessor, inputs, state)
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
