"""A KerasHub backbone with working memory."""

import math
from collections.abc import Callable

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_fam import streaming
from keras_fam.checks import (
    check_block_shape,
    check_flag,
    check_integer,
    check_padding_mask,
    check_probability,
    check_token_ids,
)
from keras_fam.families import family_of
from keras_fam.layers.positions import LearnedPlaces
from keras_fam.layers.prompt import FAMPrompt
from keras_fam.layers.state_passing import RandomStatePassing
from keras_fam.models.compiled import compile_inference
from keras_fam.models.lora import LoRAWeights
from keras_fam.models.presets import MEMORY_ARGUMENTS, load_backbone, save_preset
from keras_fam.state import StreamState, check_state
from keras_fam.types import Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMBackbone(LoRAWeights, keras_hub.models.Backbone):
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
        name, trainable: see `keras.Model`.

    Call arguments:
        inputs: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, `[batch, length]`, 1 where real.

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
        **kwargs,
    ):
        block_size, memory_segments, fam_length = check_block_shape(block_size, memory_segments, fam_length)
        random_state_passing = check_probability("random_state_passing", random_state_passing)
        check_flag("stop_gradient_memory", stop_gradient_memory)
        if truncate_bptt is not None:
            check_integer("truncate_bptt", truncate_bptt, 1)
        if isinstance(backbone, FAMBackbone):
            raise ValueError("`backbone` must be a stock backbone. Received: backbone that is already a FAMBackbone.")
        family = family_of(type(backbone))(backbone)
        table_length = family.position_table_length
        _check_positions(table_length, block_size, memory_segments, random_position_offset)
        if random_state_passing and not fam_length:
            raise ValueError(
                "`random_state_passing` needs FAM: expected fam_length of at least 1. Received: "
                f"random_state_passing={random_state_passing}, fam_length=0."
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
        if table_length is not None:
            self.learned_places = LearnedPlaces(table_length, random_position_offset, name="learned_places")
        self.family = family

        # === Functional Model ===
        inputs = {
            "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
            "padding_mask": keras.Input((None,), dtype="int32", name="padding_mask"),
        }
        super().__init__(inputs=inputs, outputs=self.hidden_states(**inputs), **kwargs)
        self.dtype_policy = backbone.dtype_policy

        # === Config ===
        self.block_size = block_size
        self.memory_segments = memory_segments
        self.fam_length = fam_length
        self.initial_random_state_passing = random_state_passing
        self.random_position_offset = random_position_offset
        self.stop_gradient_memory = stop_gradient_memory
        self.truncate_bptt = truncate_bptt
        self.vocabulary_size = backbone.vocabulary_size
        self.hidden_dim = backbone.hidden_dim
        self.num_layers = backbone.num_layers
        # Positions are counted modulo what both the ring of blocks and a table of positions divide.
        self.position_period = math.lcm((memory_segments + 1) * block_size, table_length or 1)
        self._compiled = {}

    def hidden_states(
        self, token_ids: Tensor, padding_mask: Tensor, layer_intercept_fn: Callable[[Tensor, int], Tensor] | None = None
    ) -> Tensor:
        """The whole sequence, layer by layer.

        Args:
            token_ids: int `[batch, length]`.
            padding_mask: `[batch, length]`, 1 for real tokens.
            layer_intercept_fn: callable `(x, index) -> x` on the embeddings (index -1) and each layer's output, or
                None.

        Returns:
            `[batch, length, hidden_dim]`.
        """
        intercept = layer_intercept_fn or (lambda x, index: x)
        places = None if self.learned_places is None else self.learned_places(token_ids)
        x = intercept(self.family.embed(token_ids, places), -1)
        passed = None if self.state_passing is None else self.state_passing(x)
        fam = None if self.fam_prompt is None else self.family.scale(self.fam_prompt(x))
        for index, layer in enumerate(self.transformer_layers):
            if fam is None:
                x = layer(x, inputs_mask=padding_mask)
            else:
                x, fam = layer(x, fam, inputs_mask=padding_mask, passed=passed)
            x = intercept(x, index)
        return self.layer_norm(x)

    def __call__(self, inputs, *args, **kwargs):
        if isinstance(inputs, dict) and {"token_ids", "padding_mask"} <= set(inputs):
            ids = check_token_ids(inputs["token_ids"], self.vocabulary_size)
            inputs = {"token_ids": ids, "padding_mask": check_padding_mask(inputs["padding_mask"], ids)}
        return super().__call__(inputs, *args, **kwargs)

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

    # === Streaming ===

    def initial_state(self, batch_size: int) -> StreamState:
        """The state of streams that have read nothing yet.

        Args:
            batch_size: int >= 1, parallel streams.

        Returns:
            `keras_fam.StreamState`, of fixed size: nothing in it grows with the text.
        """
        batch_size = check_integer("batch_size", batch_size, 1)
        return self._inference("initial_state", self._initial_state)(batch_size=batch_size)

    def stream(self, inputs: Tensor | dict[str, Tensor], state: StreamState) -> tuple[Tensor, StreamState]:
        """Reads a chunk of any length into a stream's memory.

        Any split of a text into chunks gives what one call gives. Neither `inputs` nor `state` is changed.

        Args:
            inputs: int token ids `[batch, length]`, or a dict of `"token_ids"` and `"padding_mask"`.
            state: `keras_fam.StreamState`, of `initial_state` or of the call before.

        Returns:
            `(hidden, state)`: hidden states `[batch, length, hidden_dim]`, and the state to go on with.

        Raises:
            TypeError, ValueError: token ids of the wrong rank or dtype, empty or out of vocabulary; a mask of another
                shape; a state of another model, batch size or dtype.
        """
        token_ids, padding_mask = self.check_chunk(inputs, state)
        return self.stream_pieces(token_ids, padding_mask, state, self._inference("piece", self.piece))

    def stream_pieces(self, token_ids, padding_mask, state, piece):
        """`piece(token_ids, padding_mask, state, last)` over the pieces of a checked chunk; outputs put together."""
        outputs = []
        position, length = int(ops.convert_to_numpy(state.position)[0]), token_ids.shape[1]
        for start, stop in pieces(length, position % self.block_size, self.block_size):
            last = (position + stop) % self.block_size == 0
            output, state = piece(token_ids[:, start:stop], padding_mask[:, start:stop], state, last=last)
            outputs.append(output)
        return (outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)), state

    def check_chunk(self, inputs: Tensor | dict[str, Tensor], state: StreamState) -> tuple[Tensor, Tensor]:
        """The checked `(token_ids, padding_mask)` tensors of a chunk; see `stream`."""
        token_ids, padding_mask = inputs, None
        if isinstance(inputs, dict):
            if "token_ids" not in inputs:
                raise ValueError(f"`inputs` must have the key 'token_ids'. Received: keys {sorted(inputs)}.")
            token_ids, padding_mask = inputs["token_ids"], inputs.get("padding_mask")
        token_ids = check_token_ids(token_ids, self.vocabulary_size)
        if 0 in tuple(token_ids.shape):
            raise ValueError(
                f"`token_ids` must hold at least one token. Received: an empty chunk of shape {tuple(token_ids.shape)}."
            )
        if padding_mask is None:
            padding_mask = np.ones(token_ids.shape, "bool")
        padding_mask = check_padding_mask(padding_mask, token_ids)
        check_state(state, self.state_spec(token_ids.shape[0]))
        positions = ops.convert_to_numpy(state.position)
        if (positions != positions[0]).any():
            raise ValueError(
                f"`state` must hold streams at one position: expected {positions[0]} in every row. Received: positions "
                f"{positions.tolist()}."
            )
        return ops.convert_to_tensor(token_ids, "int32"), ops.cast(ops.convert_to_tensor(padding_mask), "bool")

    def state_spec(self, batch_size):
        """`StreamState` of `KerasTensor`: shapes and dtypes of a state of this model."""
        layers = []
        for layer in self.transformer_layers:
            attention, dtype = layer.attention, layer.compute_dtype
            slots = (self.memory_segments + 1) * self.block_size
            heads = (attention.num_key_value_heads, attention.head_dim)
            fam, slots = (batch_size, self.fam_length), (batch_size, slots)
            shapes = [(*fam, self.hidden_dim), (*fam, *heads), (*fam, *heads), (*slots, *heads), (*slots, *heads)]
            layers.append(streaming.LayerState(*(keras.KerasTensor(shape, dtype) for shape in shapes)))
        return StreamState(
            tuple(layers),
            keras.KerasTensor(slots, "bool"),
            keras.KerasTensor((batch_size,), "bool"),
            keras.KerasTensor((batch_size,), "int32"),
        )

    def _initial_state(self, batch_size):
        dtype = self.transformer_layers[0].compute_dtype
        if self.fam_prompt is None:
            fam = ops.zeros((1, 0, self.hidden_dim), dtype)
        else:
            fam = self.family.scale(ops.cast(self.fam_prompt(None), dtype))
        layers = []
        for layer in self.transformer_layers:
            layers.append(streaming.initial_layer_state(layer.attention, fam, batch_size, layer.pre_attention_norm))
            if self.fam_length:
                fam = layer.raise_prompt(fam)
        slots = (self.memory_segments + 1) * self.block_size
        return StreamState(
            tuple(layers),
            ops.zeros((batch_size, slots), "bool"),
            ops.zeros((batch_size,), "bool"),
            ops.zeros((batch_size,), "int32"),
        )

    def piece(self, token_ids, padding_mask, state, last, count=None):
        """Up to the rest of a block, through all layers.

        Args:
            token_ids: int `[b, t]`, t at most what is left of the block.
            padding_mask: bool `[b, t]`.
            state: `StreamState`.
            last: bool, or bool scalar tensor: whether the piece fills its block, so that FAM is updated.
            count: int scalar tensor or None. Only so many tokens of the piece are read into the state.

        Returns:
            `(hidden [b, t, d], StreamState)`.
        """
        length, size = token_ids.shape[1], self.block_size
        position = state.position[0]
        slot = position % ((self.memory_segments + 1) * size)
        places = None
        if self.learned_places is not None:
            places = ((position + ops.arange(length, dtype="int32")) % self.learned_places.table_length)[None]
        if count is not None:
            padding_mask = ops.logical_and(padding_mask, ops.arange(length)[None] < count)
        valid = ops.slice_update(state.valid, [0, slot], padding_mask)
        x = self.family.embed(token_ids, places)
        layers = []
        for layer, layer_state in zip(self.transformer_layers, state.layers):
            attention, layer_state = streaming.attend_piece(
                layer.attention, layer.pre_attention_norm(x), layer_state, valid, slot
            )
            x = layer.complete(attention, x)
            layers.append(layer_state)
        read = ops.cast(length if count is None else count, "int32")
        position = (state.position + read) % self.position_period
        state = StreamState(tuple(layers), valid, state.started, position)
        return self.layer_norm(x), self._advance(state, slot // size * size, last)

    def _advance(self, state, slot, last):
        """Updates FAM of every layer from the block at `slot` of the ring, if it is full."""
        if not self.fam_length or last is False:
            return state

        def advance():
            fams = [
                streaming.advance_layer(
                    layer.attention,
                    layer_state,
                    state.valid,
                    state.started,
                    slot,
                    layer.pre_attention_norm,
                    layer.complete,
                )
                for layer, layer_state in zip(self.transformer_layers, state.layers)
            ]
            block = ops.slice(state.valid, [0, slot], (ops.shape(state.valid)[0], self.block_size))
            return fams, ops.logical_or(state.started, ops.any(block, axis=1))

        def stay():
            return [tuple(layer_state[:3]) for layer_state in state.layers], state.started

        fams, started = advance() if last is True else ops.cond(last, advance, stay)
        layers = (
            layer_state._replace(**dict(zip(layer_state._fields, fam))) for layer_state, fam in zip(state.layers, fams)
        )
        return state._replace(layers=tuple(layers), started=started)

    def _inference(self, name, function):
        """`function` compiled, and compiled anew when the set of variables has changed (LoRA, quantization)."""
        key = (name, len(self.variables), self.dtype_policy.name)
        if key not in self._compiled:
            self._compiled[key] = compile_inference(self, function)
        return self._compiled[key]

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


def pieces(length: int, place: int, block_size: int) -> list[tuple[int, int]]:
    """How a chunk is cut: at block boundaries, and inside a block into powers of two.

    So at most log2(block_size) + 1 shapes are ever compiled, whatever the lengths of chunks.

    Args:
        length: int, tokens in the chunk.
        place: int, the first token's place in its block.
        block_size: int.

    Returns:
        list of `(start, stop)`.
    """
    spans, start = [], 0
    while start < length:
        span = min(block_size - place, length - start)
        if span < block_size:
            span = 1 << (span.bit_length() - 1)
        spans.append((start, start + span))
        start, place = start + span, (place + span) % block_size
    return spans


def _check_positions(table_length, block_size, memory_segments, random_position_offset):
    check_flag("random_position_offset", random_position_offset)
    if table_length is None:
        if random_position_offset:
            raise ValueError(
                "`random_position_offset` is for learned positions only: rotary positions are relative and would not "
                "change. Expected False. Received: random_position_offset=True."
            )
    elif (memory_segments + 1) * block_size > table_length:
        raise ValueError(
            "(memory_segments + 1) * block_size must not exceed the position table, max_sequence_length="
            f"{table_length}. Received: memory_segments={memory_segments}, block_size={block_size}, together "
            f"{(memory_segments + 1) * block_size}."
        )
