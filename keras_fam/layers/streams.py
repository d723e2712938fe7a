"""Streams through one layer alone: for layers in models of your own."""

import keras
from keras import ops

from keras_fam.backend.buffers import cut, join, write
from keras_fam.backend.compiled import CompiledFunctions
from keras_fam.checks import check_integer
from keras_fam.layers.checks import check_hidden, check_prompt, check_sink, check_stream_mask
from keras_fam.layers.chunks import spans
from keras_fam.memory.options import position_period
from keras_fam.memory.sequence import lift_prompt, lift_sink
from keras_fam.memory.state import (
    LayerState,
    StreamState,
    check_parts,
    check_place,
    check_state,
    empty_state,
    position_after,
    started_after,
    state_spec,
    tokens_after,
)
from keras_fam.memory.streaming import Place, advance_layer, block_valid, initial_layer_state, read_piece, slots
from keras_fam.types import Tensor


class StreamsAlone(CompiledFunctions):
    """The streaming methods of `FAMDecoderLayer`."""

    # === For one layer of a model of your own ===

    def initial_state(self, batch_size: int, fam: Tensor | None = None, sink: Tensor | None = None) -> StreamState:
        """The state of streams through this layer that have read nothing yet.

        Args:
            batch_size: int >= 1, parallel streams.
            fam: float `[1, N, d]`, the prompt at this layer: of `FAMPrompt`, or of `lift_prompt` of the layer below;
                None for a layer without FAM.
            sink: float `[1, 1, d]`, the start token at this layer, or None.

        Returns:
            `keras_fam.StreamState` of one layer, of fixed size: nothing in it grows with the text.

        Raises:
            TypeError, ValueError: `batch_size` is no integer, or below 1.
        """
        batch_size = check_integer("batch_size", batch_size, 1)
        if fam is not None:
            check_prompt(fam, self.parts.hidden_dim, self.options)
        if sink is not None:
            check_sink(sink, self.parts.hidden_dim)
        if fam is None:
            fam = ops.zeros((1, 0, self.parts.hidden_dim), self.compute_dtype)
        layer = self.inference("begin", self.begin_stream)(fam, sink, batch_size=batch_size)
        return empty_state((layer,), batch_size, self.options)

    def lift_prompt(self, fam: Tensor) -> Tensor:
        """The prompt for the layer above.

        Args:
            fam: float `[1, N, d]`, at this layer.

        Returns:
            Tensor of the same shape.

        Raises:
            TypeError, ValueError: `fam` is no tensor of floats of that shape.
        """
        check_hidden("fam", fam, self.parts.hidden_dim)
        return lift_prompt(self.core, ops.cast(fam, self.compute_dtype))

    def lift_sink(self, sink: Tensor) -> Tensor:
        """The start token for the layer above.

        Args:
            sink: float `[1, 1, d]`, at this layer.

        Returns:
            Tensor of the same shape.

        Raises:
            TypeError, ValueError: `sink` is no tensor of floats of that shape.
        """
        check_sink(sink, self.parts.hidden_dim)
        return lift_sink(self.core, ops.cast(sink, self.compute_dtype))

    def read(self, x: Tensor, state: StreamState, inputs_mask: Tensor | None = None) -> tuple[Tensor, StreamState]:
        """Reads a chunk of any length into a stream's memory. Neither `x` nor `state` is changed.

        Args:
            x: float `[batch, length, d]`, length >= 1.
            state: `keras_fam.StreamState` of `initial_state`, or of the call before.
            inputs_mask: `[batch, length]`, True for real tokens, or None.

        Returns:
            `(outputs, state)`: `[batch, length, d]`, and the state to go on with.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, by name; a state of another layer, batch size
                or dtype; a call inside of a compiled function.
        """
        if 0 in tuple(check_hidden("x", x, self.parts.hidden_dim).shape):
            raise ValueError(f"`x` must hold at least one token. Received: x of shape {tuple(x.shape)}.")
        check_parts(state)
        vectors, seen = (y.shape[1] for y in state.layers[0][:2])
        layers = (self.layer_spec(x.shape[0], vectors, seen - vectors),)
        check_state(state, state_spec(layers, x.shape[0], self.options.slots))
        mask = check_stream_mask(inputs_mask, x.shape[:2])
        position = check_place(state, self.options.block_size)
        if position is None:
            raise ValueError(
                "`state` must be known: `read` works outside of compiled functions. Received: a traced state."
            )
        compiled, outputs = self.inference("chunk", self._read_chunk), []
        for start, stop in spans(x.shape[1], position % self.options.block_size, self.options.block_size):
            last = (position + stop) % self.options.block_size == 0
            output, state = compiled(cut(x, start, stop), cut(mask, start, stop), state, last=last)
            outputs.append(output)
        return join(outputs), state

    def layer_spec(self, batch_size: int, fam_length: int, sinks: int) -> LayerState:
        """Shapes and dtypes of this layer's state.

        Args:
            batch_size: int, parallel streams.
            fam_length: int, N.
            sinks: int, 1 with a sink, else 0.

        Returns:
            `LayerState` of `keras.KerasTensor`.
        """
        parts = self.parts
        heads, rows = (parts.num_key_value_heads, parts.head_dim), batch_size
        fam = keras.KerasTensor((rows, fam_length, parts.hidden_dim), parts.fam_dtype)
        seen = keras.KerasTensor((rows, sinks + fam_length, *heads), parts.compute_dtype)
        ring = keras.KerasTensor((rows, slots(self.core), *heads), parts.compute_dtype)
        return LayerState(fam, seen, seen, ring, ring)

    def _read_chunk(self, x, mask, state, last):
        slot = state.position[0] % self.options.slots
        place = Place(state.position[0], write(state.valid, slot, mask))
        x, layer = self.read_piece(x, state.layers[0], place)
        started = state.started
        if last:
            layer = self.advance(layer, place, started)
            started = started_after(started, block_valid(self.options, place))
        period = position_period([slots(self.core), self.options.slots], None)
        position = position_after(state.position, x.shape[1], period)
        tokens = tokens_after(state.tokens_read, mask)
        return x, StreamState((layer,), place.valid, started, position, tokens, state.block_size)

    # === For one of a model's layers, whose place and padding are the model's ===

    def begin_stream(self, fam: Tensor, sink: Tensor | None, batch_size: int | Tensor) -> LayerState:
        """This layer's memory of a stream that has read nothing.

        Args:
            fam: float `[1, N, d]`, the prompt at this layer.
            sink: float `[1, 1, d]`, the start token at this layer, or None.
            batch_size: int, parallel streams.

        Returns:
            `LayerState`.
        """
        return initial_layer_state(self.core, fam, batch_size, sink)

    def read_piece(
        self, x: Tensor, state: LayerState, place: Place, in_place: bool = False
    ) -> tuple[Tensor, LayerState]:
        """At most the rest of a block through this layer.

        Args:
            x: float `[batch, t, d]`.
            state: `LayerState`.
            place: `Place` of the first token.
            in_place: bool. The arrays of `state` may be overwritten.

        Returns:
            `(outputs [batch, t, d], LayerState)`.
        """
        x = ops.cast(x, self.compute_dtype)
        attention, state = read_piece(self.core, self.parts.normalize(x), state, place, in_place)
        return self.parts.complete(attention, x), state

    def advance(self, state: LayerState, place: Place, started: Tensor) -> LayerState:
        """Updates FAM from a block that is full.

        Args:
            state: `LayerState` that has read the block.
            place: `keras_fam.memory.streaming.Place` of the block.
            started: bool `[batch]`, rows whose FAM has read a block before.

        Returns:
            `LayerState`.
        """
        return advance_layer(self.core, state, place, started) if state.fam.shape[1] else state
