"""A KerasHub backbone with working memory."""

import math
from collections.abc import Callable

import keras
import keras_hub
from keras import ops

from keras_fam.checks import (
    check_document_start,
    check_keywords,
    check_padding_mask,
    check_probability,
    check_stateful_batch,
    check_token_ids,
)
from keras_fam.families import family_of
from keras_fam.layers.carried_state import CarriedState
from keras_fam.layers.positions import LearnedPlaces
from keras_fam.layers.prompt import FAMPrompt
from keras_fam.layers.rematerialize import rematerialize_blocks_alone
from keras_fam.layers.state_passing import RandomStatePassing
from keras_fam.models.lora import LoRAWeights
from keras_fam.models.memory import MEMORY_ARGUMENTS, check_memory
from keras_fam.models.presets import SavesWhole, load_backbone, save_preset
from keras_fam.models.streams import Streams
from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMBackbone(SavesWhole, LoRAWeights, Streams, keras_hub.models.Backbone):
    """A stock KerasHub backbone, attending in blocks and with Feedback Attention Memory in every layer.

    The backbone's own layers and variables are adopted, under their own names and paths; none is copied. The only new
    weight is `fam_prompt.embeddings`, `[fam_length, hidden_dim]`, which starts as random rows of the vocabulary.

    Args:
        backbone: a `keras_hub.models.GemmaBackbone` (Gemma 1 and 2) or `keras_hub.models.GPT2Backbone`.
        block_size: int, B. Tokens per block.
        memory_segments: int, m. Past blocks whose keys and values stay visible.
        fam_length: int, N <= B. Memory vectors per layer; 0 is plain block sliding window attention (BSWA).
        random_state_passing: float in [0, 1], training only (paper, section 3.1): the probability that a step starts
            from the memory that the step before left. 0 leaves it out. See `keras_fam.RandomStatePassingSchedule`.
        random_position_offset: bool, training only, for learned positions: shift each row's places by a random offset,
            0 half of the time. Rotary positions are relative, so there it would change nothing and is refused.
        stop_gradient_memory: bool. No gradient through memory segments.
        truncate_bptt: int or None. Cut FAM's gradient every that many blocks.
        stateful_batch_size: int or None, training only: batches have that many rows and a length that is a multiple of
            `block_size`, and each row goes on from the memory, FAM and segments, that it had at the end of the step
            before, unless it begins a document. Gradients end at a step's edge. See `keras_fam.data.DocumentStream`.
        name, trainable: see `keras.Model`.

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
        **kwargs,
    ):
        check_keywords(kwargs, ("backbone", *MEMORY_ARGUMENTS, "name", "trainable"))
        if isinstance(backbone, FAMBackbone):
            raise ValueError("`backbone` must be a stock backbone. Received: backbone that is already a FAMBackbone.")
        family = family_of(type(backbone))(backbone)
        table_length = family.position_table_length
        check_memory(
            block_size,
            memory_segments,
            fam_length,
            random_state_passing,
            random_position_offset,
            stop_gradient_memory,
            truncate_bptt,
            stateful_batch_size,
            table_length,
        )

        # === Layers ===
        self.token_embedding = backbone.token_embedding
        self.transformer_layers = family.decoder_blocks(
            block_size=block_size,
            memory_segments=memory_segments,
            stop_gradient_memory=stop_gradient_memory,
            truncate_bptt=truncate_bptt,
        )
        self.layer_norm = family.final_norm
        self.fam_prompt = None
        self.state_passing = None
        self.carried_state = None
        self.learned_places = None
        dtype = self.token_embedding.dtype_policy
        if fam_length:
            self.fam_prompt = FAMPrompt(fam_length, dtype=dtype, name="fam_prompt")
            self.fam_prompt.build((None, None, backbone.hidden_dim))
            rows = keras.random.randint((fam_length,), 0, backbone.vocabulary_size)
            self.fam_prompt.embeddings.assign(ops.cast(self.token_embedding(rows), "float32"))
        if random_state_passing:
            self.state_passing = RandomStatePassing(random_state_passing, name="random_state_passing")
            for layer in self.transformer_layers:
                layer.keep_last_fam(fam_length, backbone.hidden_dim)
        if stateful_batch_size is not None:
            self.carried_state = CarriedState(
                stateful_batch_size, block_size, memory_segments, table_length or block_size, name="carried_state"
            )
            for layer in self.transformer_layers:
                layer.carry_state(stateful_batch_size, fam_length, backbone.hidden_dim)
        if table_length is not None:
            self.learned_places = LearnedPlaces(table_length, random_position_offset, name="learned_places")
        self.family = family

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
        self.block_size = int(block_size)
        self.memory_segments = int(memory_segments)
        self.fam_length = int(fam_length)
        self.initial_random_state_passing = float(random_state_passing)
        self.random_position_offset = random_position_offset
        self.stop_gradient_memory = stop_gradient_memory
        self.truncate_bptt = truncate_bptt
        self.stateful_batch_size = stateful_batch_size
        self.vocabulary_size = backbone.vocabulary_size
        self.hidden_dim = backbone.hidden_dim
        self.num_layers = backbone.num_layers
        # Positions are counted modulo what both the ring of blocks and a table of positions divide.
        self.position_period = math.lcm((memory_segments + 1) * block_size, table_length or 1)
        self._compiled = {}

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
        intercept = layer_intercept_fn or (lambda x, index: x)
        carried, start = None, None
        if document_start is not None:
            carried = self.carried_state(padding_mask, document_start)
            start = carried["position"]
        places = None if self.learned_places is None else self.learned_places(token_ids, start)
        x = intercept(self.family.embed(token_ids, places), -1)
        passed = None if self.state_passing is None else self.state_passing(x)
        fam = None if self.fam_prompt is None else self.family.scale(self.fam_prompt(x))
        for index, layer in enumerate(self.transformer_layers):
            if fam is None:
                x = layer(x, inputs_mask=padding_mask, carried=carried)
            else:
                x, fam = layer(x, fam, inputs_mask=padding_mask, passed=passed, carried=carried)
            x = intercept(x, index)
        return self.layer_norm(x)

    def __call__(self, inputs, *args, **kwargs):
        inputs = self.check_inputs(inputs, kwargs.get("training"))
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, training=None, mask=None, **kwargs):
        # On jax, training and prediction come here without `__call__`.
        return super().call(self.check_inputs(inputs, training), training=training, mask=mask, **kwargs)

    def check_inputs(self, inputs, training=None):
        """The checked inputs of a call, and no others; see `Call arguments`."""
        if not isinstance(inputs, dict) or not {"token_ids", "padding_mask"} <= set(inputs):
            return inputs
        ids = check_token_ids(inputs["token_ids"], self.vocabulary_size)
        checked = {"token_ids": ids, "padding_mask": check_padding_mask(inputs["padding_mask"], ids)}
        if self.carried_state is not None:
            # Ones of the kind that the token ids are, an array or a tensor: Keras refuses a mixture.
            start = inputs.get("document_start", ids[:, 0] * 0 + 1)
            checked["document_start"] = check_document_start(start, ids)
            if training:
                check_stateful_batch(ids, self.stateful_batch_size, self.block_size)
        return checked

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

    def get_config(self):
        config = super().get_config()
        config["backbone"] = keras.saving.serialize_keras_object(self.family.backbone)
        config.update({name: getattr(self, name) for name in MEMORY_ARGUMENTS})
        config["random_state_passing"] = self.initial_random_state_passing
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        stock = config.pop("backbone")
        dtype = config.pop("dtype", None)
        if isinstance(stock, dict):
            if dtype is not None:
                stock = {**stock, "config": {**stock["config"], "dtype": dtype}}
            stock = keras.saving.deserialize_keras_object(stock)
        return cls(stock, **config)

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "FAMBackbone":
        """Loads a saved FAM preset, or a stock preset and gives it memory.

        Args:
            preset: str. A KerasHub preset name, a kaggle://, hf:// or modelscope:// handle, or a local folder.
            load_weights: bool. If False, the weights are random.
            **kwargs: the arguments of `FAMBackbone` for a stock preset; `dtype`. With a saved FAM preset they may be
                left out, and must agree with it if given.

        Returns:
            `FAMBackbone`.

        Raises:
            ValueError: an unsupported family, or arguments that disagree with a saved FAM preset.
        """
        return load_backbone(cls, super().from_preset, preset, load_weights, kwargs)

    def save_to_preset(self, preset_dir: str, max_shard_size: float | None = 10) -> None:
        """Saves a preset that `from_preset` loads; a folder that was there before stays whole until it is replaced."""
        save_preset(super().save_to_preset, preset_dir, max_shard_size)
