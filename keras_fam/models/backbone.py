"""A KerasHub backbone with working memory."""

from collections.abc import Callable
from typing import Any, Self

import keras
import keras_hub
from keras import ops

from keras_fam.arguments import DEFAULT, given
from keras_fam.backend.compiled import CompiledModel
from keras_fam.backend.parameters import RegistersParameters
from keras_fam.backend.quantized import keep_gradient
from keras_fam.backend.rematerialize import rematerialize_blocks_alone
from keras_fam.backend.values import KeepsValues
from keras_fam.checks import check_function, check_keywords, check_model_arguments, check_path, check_probability
from keras_fam.families import family_of
from keras_fam.layers.checks import check_states
from keras_fam.layers.decoder_layer import FAMDecoderLayer
from keras_fam.layers.lora_checkpoint import merged_alone
from keras_fam.layers.positions import LearnedPlaces
from keras_fam.layers.prompt import FAMPrompt
from keras_fam.memory.options import MEMORY_ARGUMENTS, ModelOptions, position_period
from keras_fam.models.inputs import ChecksInputs, check_texts
from keras_fam.models.layouts import LaidOut
from keras_fam.models.lora import LoRAWeights
from keras_fam.models.presets import SavesWhole, load_backbone, save_preset
from keras_fam.models.streams import Streams
from keras_fam.training.carried_evaluation import CarriesInOwnEvaluation
from keras_fam.training.carried_state import CarriedState
from keras_fam.training.state_passing import RandomStatePassing
from keras_fam.types import Path, Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMBackbone(
    CarriesInOwnEvaluation,
    KeepsValues,
    CompiledModel,
    ChecksInputs,
    SavesWhole,
    LoRAWeights,
    LaidOut,
    Streams,
    RegistersParameters,
    keras_hub.models.Backbone,
):
    """A stock KerasHub backbone, attending in blocks and with Feedback Attention Memory in every layer.

    The backbone's own layers and variables are taken over, under their own names and paths; none is copied. The only
    new weight is `fam_prompt.embeddings`, `[fam_length, hidden_dim]`, which starts as random rows of the vocabulary
    (and one number a layer with `memory_gate`).

    Args:
        backbone: a KerasHub backbone of a supported family: Gemma 1, 2 and 3 (text), GPT-2, Llama 2 and 3, Mistral,
            Qwen 2.5, Qwen 3, or one that was given to `keras_fam.register_family`.
        block_size: int, B. Tokens per block.
        memory_segments: int, m. Past blocks whose keys and values stay visible.
        fam_length: int, N <= B. Memory vectors per layer; 0 is plain block sliding window attention (BSWA).
        random_state_passing: float in [0, 1], training only (paper, section 3.1): the probability that a step starts
            from the memory that the step before left. 0 leaves it out. See `keras_fam.RandomStatePassingSchedule`.
        random_position_offset: bool, training only, for learned positions: shift each row's places by a random offset,
            0 half of the time. Rotary positions are relative, so there it would change nothing and is refused.
        stop_gradient_memory: bool. No gradient through memory segments.
        truncate_bptt: int or None. Cut FAM's gradient every that many blocks.
        memory_span: float, one for each FAM vector, or None. How many times as long as what a block adds to it a vector
            may stay, so that memory can be written again at any age; None is the paper's plain sum.
        memory_gate: float or None. Where a trained scalar of each layer starts that is added to the tokens' scores on
            FAM: 0 is the paper, -9 nearly hides FAM; None adds none.
        sink_token_id: int or None. The start token, whose key and value stay visible to all tokens and FAM for ever:
            what pretrained models need of the start of a text.
        stateful_batch_size: int or None, training, and `evaluate` with `"document_start"`: batches have that many rows
            and a length that is a multiple of `block_size`, and each row goes on from the memory, FAM and segments,
            that it had at the end of the batch before, unless it begins a document. Gradients end at a step's edge.
        **kwargs: `name` and `trainable`, see `keras.Model`.

    Call arguments:
        inputs: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, `[batch, length]`, 1 where real;
            with `stateful_batch_size` also of `"document_start"`, int `[batch]`, 1 for rows that begin a document (all
            do if it is left out).

    Returns:
        Hidden states, `[batch, length, hidden_dim]`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, by name; an unsupported backbone;
            `(memory_segments + 1) * block_size` beyond a table of learned positions.

    Example:

    ```python
    stock = keras_hub.models.GPT2Backbone(
        vocabulary_size=100, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=64
    )
    backbone = keras_fam.FAMBackbone(stock, block_size=8, memory_segments=1, fam_length=4)
    ids = np.ones((1, 20), "int32")
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    ```
    """

    def __init__(
        self,
        backbone: keras_hub.models.Backbone,
        block_size: int = 1024,
        memory_segments: int = 3,
        fam_length: int = 64,
        random_state_passing: float = 0.0,
        random_position_offset: bool = False,
        stop_gradient_memory: bool = False,
        truncate_bptt: int | None = None,
        stateful_batch_size: int | None = None,
        memory_span: float | tuple[float, ...] | None = None,
        memory_gate: float | None = None,
        sink_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_keywords(kwargs, ("backbone", *MEMORY_ARGUMENTS, "name", "trainable"))
        check_model_arguments(kwargs)
        if isinstance(backbone, FAMBackbone):
            raise ValueError("`backbone` must be a stock backbone. Received: backbone that is already a FAMBackbone.")
        options = ModelOptions(
            block_size=block_size,
            memory_segments=memory_segments,
            stop_gradient_memory=stop_gradient_memory,
            truncate_bptt=truncate_bptt,
            memory_span=memory_span,
            memory_gate=memory_gate,
            fam_length=fam_length,
            sink_token_id=sink_token_id,
            random_state_passing=random_state_passing,
            random_position_offset=random_position_offset,
            stateful_batch_size=stateful_batch_size,
        )
        family = family_of(type(backbone), _config_of(backbone))(backbone)
        options.check_model(backbone.vocabulary_size, family.position_table_length)

        # === Layers ===
        self.family = family
        self.options = options
        self.token_embedding = backbone.token_embedding
        keep_gradient(self.token_embedding)
        self.transformer_layers = [
            FAMDecoderLayer(family.parts(layer), options.for_layers(), dtype=layer.dtype_policy, name=layer.name)
            for layer in family.decoder_layers
        ]
        self.layer_norm = family.final_norm
        self.fam_prompt: FAMPrompt | None = None
        self.state_passing: RandomStatePassing | None = None
        self.carried_state: Any = None  # `CarriedState`
        self.learned_places: LearnedPlaces | None = None
        self._add_memory(options, backbone)

        # === Functional Model ===
        inputs = {
            "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
            "padding_mask": keras.Input((None,), dtype="int32", name="padding_mask"),
        }
        if stateful_batch_size is not None:
            inputs["document_start"] = keras.Input((), dtype="int32", name="document_start")
        super().__init__(inputs=inputs, outputs=self.hidden_states(**inputs), **kwargs)
        rematerialize_blocks_alone(self)
        self.dtype_policy = backbone.dtype_policy

        # === Config ===
        for name in MEMORY_ARGUMENTS:
            if name != "random_state_passing":  # A property, which can change.
                setattr(self, name, getattr(options, name))
        self.vocabulary_size = backbone.vocabulary_size
        self.hidden_dim = backbone.hidden_dim
        self.num_layers = backbone.num_layers
        self._compiled = {}

    def _add_memory(self, options, backbone):
        """The layers that only a model with memory has."""
        fam_length, rows, dim = options.fam_length, options.stateful_batch_size, backbone.hidden_dim
        table_length, dtype = self.family.position_table_length, self.token_embedding.dtype_policy
        rings = [layer.ring_slots for layer in self.transformer_layers]
        # Positions are counted modulo what every ring of blocks and a table of positions divide.
        self.position_period = position_period([options.slots, *rings], table_length)
        if fam_length:
            prompt = self.fam_prompt = FAMPrompt(fam_length, dtype=dtype, name="fam_prompt")
            prompt.build((None, None, dim))
            tokens = keras.random.randint((fam_length,), 0, backbone.vocabulary_size)
            prompt.embeddings.assign(ops.cast(self.token_embedding(tokens), "float32"))
        if options.random_state_passing:
            self.state_passing = RandomStatePassing(options.random_state_passing, name="random_state_passing")
            for layer in self.transformer_layers:
                layer.keep_last_fam(fam_length, dim)
        if rows is not None:
            sizes = (rows, options.block_size, options.memory_segments, table_length or options.block_size)
            self.carried_state = CarriedState(*sizes, name="carried_state")
            for layer in self.transformer_layers:
                layer.carry_state(rows, fam_length, dim)
        if table_length is not None:
            self.learned_places = LearnedPlaces(table_length, options.random_position_offset, name="learned_places")

    def hidden_states(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        document_start: Tensor | None = None,
        layer_intercept_fn: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Tensor:
        """The whole sequence, layer by layer.

        Args:
            token_ids: int `[batch, length]`.
            padding_mask: `[batch, length]`, 1 for real tokens.
            document_start: int `[batch]`, 1 for rows that begin a document, or None: see `stateful_batch_size`.
            layer_intercept_fn: callable `(x, index) -> x` on the embeddings (index -1) and each layer's output, or
                None.

        Returns:
            `[batch, length, hidden_dim]`.
        """
        intercept = check_function("layer_intercept_fn", layer_intercept_fn) or (lambda x, index: x)
        token_ids, padding_mask, document_start = check_texts(self, token_ids, padding_mask, document_start)
        carried, start = None, None
        if document_start is not None:
            carried = self.carried_state(padding_mask, document_start)
            start = carried["position"]
        places = None if self.learned_places is None else self.learned_places(token_ids, start)
        x = self.family.embed(token_ids, places)
        if self.family.embeddings_dropout is not None:
            x = self.family.embeddings_dropout(x)
        x = intercept(x, -1)
        if self.state_passing is not None:
            carried = {"passed": self.state_passing(x)}
        prompts = self.start_of_memory(x, token_ids)
        for index, layer in enumerate(self.transformer_layers):
            outputs = layer(x, inputs_mask=padding_mask, carried=carried, **prompts)
            x, *lifted = outputs if prompts else (outputs,)
            prompts = dict(zip(prompts, lifted))
            x = intercept(x, index)
        return self.layer_norm(x)

    def start_of_memory(self, x: Tensor | None = None, token_ids: Tensor | None = None) -> dict[str, Tensor]:
        """What goes up through the layers beside the tokens.

        Neither argument changes the numbers. They make prompt and start token a part of a functional model's graph, so
        that both are computed from the weights of each call, and not once from those at the start.

        Args:
            x: token embeddings, or None outside of a functional model.
            token_ids: int `[batch, length]`, or None outside of a functional model.

        Returns:
            dict of `"fam"`, `[1, N, d]`, the prompt as the family scales it, and of `"sink"`, `[1, 1, d]`, the start
            token; without what this model does not have.
        """
        start = {}
        if self.fam_prompt is not None:
            start["fam"] = self.family.scale(self.fam_prompt(x))
        if self.options.sink_token_id is not None:
            token = ops.zeros((1, 1), "int32") if token_ids is None else ops.reshape(0 * ops.sum(token_ids), (1, 1))
            token = ops.cast(token, "int32") + self.options.sink_token_id
            start["sink"] = self.family.embed(token, ops.zeros((1, 1), dtype="int32"))
        return start

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of what may follow each token.

        Args:
            hidden: hidden states, `[batch, length, hidden_dim]`.

        Returns:
            `[batch, length, vocabulary_size]`.

        Raises:
            TypeError, ValueError: `hidden` is no tensor of floats of that shape.
        """
        return self.family.logits(check_states("hidden", hidden, self.hidden_dim))

    @property
    def random_state_passing(self) -> float:
        """The probability of random state passing; assign it to change it, also while `fit` runs."""
        return 0.0 if self.state_passing is None else float(ops.convert_to_numpy(self.state_passing.probability))

    @random_state_passing.setter
    def random_state_passing(self, value: float) -> None:
        value = check_probability("random_state_passing", value)
        if self.state_passing is None:
            raise ValueError(
                "`random_state_passing` can only change in a model that was made with it: expected FAMBackbone(..., "
                f"random_state_passing=p) with p > 0. Received: {value} for a model made with 0."
            )
        self.state_passing.probability.assign(value)

    # === Serialization ===

    def get_config(self) -> dict[str, Any]:
        """The stock backbone's configuration and the options of memory, for `from_config`."""
        config = super().get_config()
        stock = config["backbone"] = keras.saving.serialize_keras_object(self.family.backbone)
        for name in self.family.unsaved_arguments:
            if hasattr(self.family.backbone, name):
                stock["config"].setdefault(name, getattr(self.family.backbone, name))
        config.update(self.options.get_config())
        if self.lora_memory_only:  # Other LoRA is merged into what is saved.
            config["memory_lora"] = {"rank": self._lora_rank, "target_layer_names": self._lora_target_layer_names}
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The model that `get_config` described, with new weights.

        Args:
            config: dict, of `get_config`.

        Returns:
            `FAMBackbone`.
        """
        config = dict(config)
        stock, lora = config.pop("backbone"), config.pop("memory_lora", None)
        dtype = config.pop("dtype", None)
        if isinstance(stock, dict):
            if dtype is not None:
                stock = {**stock, "config": {**stock["config"], "dtype": dtype}}
            stock = keras.saving.deserialize_keras_object(stock)
        backbone = cls(stock, **config)
        if lora is not None:
            backbone.enable_lora(**lora, memory_only=True)
        return backbone

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
        **kwargs: Any,
    ) -> Self:
        """Loads a saved FAM preset, or a stock preset and gives it memory.

        A stock preset gets the defaults of `FAMCausalLM.from_preset`, but for the sink: a backbone has no tokenizer to
        say which token is the start token, so `sink_token_id` is None unless it is given. With a saved FAM preset,
        options may be left out, and those that shape the memory must agree with it if given.

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
            **kwargs: the stock backbone's own arguments, such as `dropout`; `name`, `trainable`.

        Returns:
            `FAMBackbone`.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name; an unsupported family;
                options that disagree with a saved FAM preset.
        """
        arguments = given(locals(), *MEMORY_ARGUMENTS, "dtype") | kwargs
        check_model_arguments({"load_weights": load_weights, **arguments})
        return load_backbone(cls, super().from_preset, preset, load_weights, arguments)

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


def _config_of(backbone):
    """The configuration of a KerasHub backbone, as far as it has one."""
    return backbone.get_config() if isinstance(backbone, keras_hub.models.Backbone) else None
