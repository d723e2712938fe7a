"""Streams of unlimited length through a whole model, block after block, in memory of fixed size."""

from collections.abc import Callable

import numpy as np
from keras import ops

from keras_fam.backend.buffers import is_concrete, join, to_host, write
from keras_fam.backend.compiled import without_gradients
from keras_fam.backend.devices import rows_over_devices
from keras_fam.checks import (
    check_ids_shape,
    check_integer,
    check_ones_and_zeros,
    check_padding_mask,
    check_vocabulary,
)
from keras_fam.layers.chunks import read_traced, spans
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
from keras_fam.memory.streaming import Place, block_valid, with_short_rings
from keras_fam.types import MixedIn, Tensor


class Streams(MixedIn):
    """The streaming methods of `FAMBackbone`."""

    def initial_state(self, batch_size: int) -> StreamState:
        """The state of streams that have read nothing yet.

        Args:
            batch_size: int >= 1, parallel streams.

        Returns:
            `keras_fam.StreamState`, of fixed size: nothing in it grows with the text.

        Raises:
            TypeError, ValueError: `batch_size` is no integer, or below 1.
        """
        batch_size = check_integer("batch_size", batch_size, 1)
        return self.inference("initial_state", self.begin)(batch_size=batch_size)

    def stream(self, inputs: Tensor | dict[str, Tensor], state: StreamState) -> tuple[Tensor, StreamState]:
        """Reads a chunk of any length into a stream's memory.

        Any split of a text into chunks gives what one call gives. Neither `inputs` nor `state` is changed. Inside a
        compiled function (`jax.jit`, `tf.function`) values cannot be checked, only shapes and dtypes are. A chunk's
        place in its block is not known there: the tokens up to the end of the block are then read one by one.

        Args:
            inputs: int token ids `[batch, length]`, or a dict of `"token_ids"` and `"padding_mask"`.
            state: `keras_fam.StreamState`, of `initial_state` or of the call before.

        Returns:
            `(hidden, state)`: hidden states `[batch, length, hidden_dim]`, and the state to go on with.

        Raises:
            TypeError, ValueError: token ids of the wrong rank or dtype, empty or out of vocabulary; a mask of another
                shape; a state of another model, batch size or dtype.
        """
        return self.stream_pieces(inputs, state, "piece", self.piece)

    def read_into(self, state: StreamState, inputs: Tensor | dict[str, Tensor]) -> StreamState:
        """`stream` without the hidden states, so that a long chunk takes no more memory than a short one.

        Args:
            state: `keras_fam.StreamState`, of `initial_state` or of a call before.
            inputs: int token ids `[batch, length]`, or a dict of `"token_ids"` and `"padding_mask"`.

        Returns:
            `keras_fam.StreamState` to go on with.

        Raises:
            TypeError, ValueError: see `stream`.
        """
        return self.stream_pieces(inputs, state, "piece", self.piece, keep=False)[1]

    def stream_pieces(
        self,
        inputs: Tensor | dict[str, Tensor],
        state: StreamState,
        name: str,
        piece: Callable[..., tuple[Tensor, StreamState]],
        keep: bool = True,
    ) -> tuple[Tensor, StreamState]:
        """What `stream` does, with a function of your own over the pieces of a chunk.

        Args:
            inputs: see `stream`.
            state: see `stream`.
            name: str, under which the compiled function is kept.
            piece: callable `(token_ids, padding_mask, state, last, count) -> (outputs, state)`, such as `piece`.
            keep: bool. Whether to give outputs; without, they are None.

        Returns:
            `(outputs, state)`: `[batch, length, ...]`, and the state to go on with.

        Raises:
            TypeError, ValueError: see `stream`.
        """
        token_ids, padding_mask, state, position = self._check_chunk(inputs, state)
        if position is None:  # Inside a compiled function already.
            return read_traced(without_gradients(piece), token_ids, padding_mask, state, self.block_size)
        compiled, outputs = self.inference(name, piece), []
        for start, stop in spans(token_ids.shape[1], position % self.block_size, self.block_size):
            last = (position + stop) % self.block_size == 0
            part = (ops.convert_to_tensor(x[:, start:stop]) for x in (token_ids, padding_mask))
            output, state = compiled(*part, state, last=last)
            if keep:
                outputs.append(output)
        return join(outputs) if keep else None, state

    def _check_chunk(self, inputs, state):
        """Checked arrays of token ids and padding, the state in this model's form, and its position; see `stream`.

        Inside a compiled function values are not known. Then these are tensors, and only shapes and dtypes are checked.
        """
        token_ids, padding_mask = inputs, None
        if isinstance(inputs, dict):
            if "token_ids" not in inputs:
                raise ValueError(f"`inputs` must have the key 'token_ids'. Received: keys {sorted(inputs)}.")
            token_ids, padding_mask = inputs["token_ids"], inputs.get("padding_mask")
        token_ids = check_ids_shape(token_ids)
        if 0 in tuple(token_ids.shape):
            raise ValueError(
                f"`token_ids` must hold at least one token. Received: an empty chunk of shape {tuple(token_ids.shape)}."
            )
        if padding_mask is not None:
            padding_mask = check_padding_mask(padding_mask, token_ids)
        state, place = self._own(state, token_ids.shape[0])
        masks = () if padding_mask is None else (padding_mask,)
        if place is None or not all(map(is_concrete, (token_ids, *masks))):
            mask = ops.ones_like(token_ids, "bool") if padding_mask is None else ops.cast(padding_mask, "bool")
            return ops.cast(token_ids, "int32"), mask, state, None
        token_ids, *masks = to_host(token_ids, *masks)
        check_vocabulary(token_ids, self.vocabulary_size)
        mask = (
            check_ones_and_zeros("padding_mask", masks[0], token_ids.shape)
            if masks
            else np.ones(token_ids.shape, "bool")
        )
        return token_ids.astype("int32"), mask, state, place

    def own_state(self, state: StreamState, batch_size: int) -> StreamState:
        """A state in this model's form: one of a file by an earlier version may have another.

        Args:
            state: `keras_fam.StreamState`.
            batch_size: int, its streams.

        Returns:
            `keras_fam.StreamState`.

        Raises:
            TypeError, ValueError: the state of another model, batch size or dtype.
        """
        return self._own(state, batch_size)[0]

    def _own(self, state, batch_size):
        """`own_state`, and the state's position, None where it is not known."""
        check_parts(state)
        spec = self.state_spec(batch_size)
        state = with_short_rings(state, spec, self.options)
        check_state(state, spec)
        return state, check_place(state, self.block_size)

    def state_spec(self, batch_size: int) -> StreamState:
        """Shapes and dtypes of a state of this model.

        Args:
            batch_size: int, parallel streams.

        Returns:
            `keras_fam.StreamState` of `keras.KerasTensor`.
        """
        sinks = 0 if self.sink_token_id is None else 1
        layers = [layer.layer_spec(batch_size, self.fam_length, sinks) for layer in self.transformer_layers]
        return state_spec(tuple(layers), batch_size, self.options.slots)

    def begin(self, batch_size: int) -> StreamState:
        """`initial_state` inside a compiled function.

        Args:
            batch_size: int >= 1, parallel streams.

        Returns:
            `keras_fam.StreamState`.
        """
        start = self.start_of_memory()
        fam, sink = start.get("fam"), start.get("sink")
        if fam is None:
            fam = ops.zeros((1, 0, self.hidden_dim), self.compute_dtype)
        layers = []
        for layer in self.transformer_layers:
            layers.append(layer.begin_stream(fam, sink, batch_size))
            fam = layer.lift_prompt(fam) if self.fam_length else fam
            sink = None if sink is None else layer.lift_sink(sink)
        return empty_state(tuple(layers), batch_size, self.options)

    def piece(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        state: StreamState,
        last: bool | Tensor,
        count: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, StreamState]:
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
        token_ids, padding_mask = rows_over_devices(token_ids), rows_over_devices(padding_mask)
        length, position = token_ids.shape[1], state.position[0]
        places = None
        if self.learned_places is not None:
            places = ((position + ops.arange(length, dtype="int32")) % self.learned_places.table_length)[None]
        if count is not None:
            padding_mask = ops.logical_and(padding_mask, ops.arange(length)[None] < count)
        place = Place(position, write(state.valid, position % self.options.slots, padding_mask, in_place))
        x = self.family.embed(token_ids, places)
        layers = []
        for layer, layer_state in zip(self.transformer_layers, state.layers):
            x, layer_state = layer.read_piece(x, layer_state, place, in_place)
            layers.append(layer_state)
        position = position_after(state.position, length if count is None else count, self.position_period)
        tokens_read = tokens_after(state.tokens_read, padding_mask)
        state = state._replace(layers=tuple(layers), valid=place.valid, position=position, tokens_read=tokens_read)
        return self.layer_norm(x), self._advance(state, place, last)

    def _advance(self, state, place, last):
        """Updates FAM of every layer from the block at `place`, if it is full."""
        if not self.fam_length or last is False:
            return state

        def advance():
            layers = zip(self.transformer_layers, state.layers)
            states = [layer.advance(layer_state, place, state.started) for layer, layer_state in layers]
            return [x[:3] for x in states], started_after(state.started, block_valid(self.options, place))

        def stay():
            return [x[:3] for x in state.layers], state.started

        fams, started = advance() if last is True else ops.cond(last, advance, stay)
        layers = (LayerState(*fam, *layer_state[3:]) for layer_state, fam in zip(state.layers, fams))
        return state._replace(layers=tuple(layers), started=started)
