"""Streams of unlimited length through a whole model, block after block, in memory of fixed size."""

import keras
import numpy as np
from keras import ops

from keras_fam import streaming
from keras_fam.checks import check_integer, check_padding_mask, check_token_ids
from keras_fam.models.compiled import compile_inference
from keras_fam.ops import write
from keras_fam.state import LayerState, StreamState, check_state
from keras_fam.types import Tensor


class Streams:
    """The streaming methods of `FAMBackbone`."""

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
            part = (ops.convert_to_tensor(x[:, start:stop]) for x in (token_ids, padding_mask))
            output, state = piece(*part, state, last=last)
            outputs.append(output)
        return (outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)), state

    def check_chunk(self, inputs: Tensor | dict[str, Tensor], state: StreamState) -> tuple[np.ndarray, np.ndarray]:
        """The checked `(token_ids, padding_mask)` of a chunk, as arrays; see `stream`."""
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
        return ops.convert_to_numpy(token_ids).astype("int32"), ops.convert_to_numpy(padding_mask).astype("bool")

    def state_spec(self, batch_size):
        """`StreamState` of `KerasTensor`: shapes and dtypes of a state of this model."""
        layers = []
        for layer in self.transformer_layers:
            attention, dtype = layer.attention, layer.compute_dtype
            slots = (self.memory_segments + 1) * self.block_size
            heads = (attention.num_key_value_heads, attention.head_dim)
            fam, slots = (batch_size, self.fam_length), (batch_size, slots)
            shapes = [(*fam, self.hidden_dim), (*fam, *heads), (*fam, *heads), (*slots, *heads), (*slots, *heads)]
            layers.append(LayerState(*(keras.KerasTensor(shape, dtype) for shape in shapes)))
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

    def piece(self, token_ids, padding_mask, state, last, count=None, in_place=False):
        """Up to the rest of a block, through all layers.

        Args:
            token_ids: int `[b, t]`, t at most what is left of the block.
            padding_mask: bool `[b, t]`.
            state: `StreamState`.
            last: bool, or bool scalar tensor: whether the piece fills its block, so that FAM is updated.
            count: int scalar tensor or None. Only so many tokens of the piece are read into the state.
            in_place: bool. The arrays of `state` may be overwritten.

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
        valid = write(state.valid, slot, padding_mask, in_place)
        x = self.family.embed(token_ids, places)
        layers = []
        for layer, layer_state in zip(self.transformer_layers, state.layers):
            attention, layer_state = streaming.attend_piece(
                layer.attention, layer.pre_attention_norm(x), layer_state, valid, slot, in_place
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
