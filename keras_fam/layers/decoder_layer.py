"""A decoder layer with Feedback Attention Memory: the machine, for the parts of any layer."""

import functools
from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_fam.backend.rematerialize import RematerializesPurely, rematerialize_blocks_alone
from keras_fam.checks import check_dtype
from keras_fam.layers.checks import TakesNumbers, check_layer_call
from keras_fam.layers.lora_checkpoint import LoRACheckpoint
from keras_fam.layers.memory_adapter import AdaptsMemory
from keras_fam.layers.parts_config import parts_from_config, parts_to_config
from keras_fam.layers.shapes import ShapedLikeInputs
from keras_fam.layers.streams import StreamsAlone
from keras_fam.memory.core import Core
from keras_fam.memory.maps import attention_maps, memory_share
from keras_fam.memory.options import MemoryOptions
from keras_fam.memory.parts import DecoderParts
from keras_fam.memory.sequence import attend_sequence, complete_tokens, lift_prompt, lift_sink
from keras_fam.memory.state import Beginning, Segments
from keras_fam.memory.streaming import slots
from keras_fam.training.carried_state import carries_on
from keras_fam.training.run_state import SavesRunState
from keras_fam.types import Shape, Tensor


def keras_mask(x):
    """The mask that a layer below attached to `x`; Keras itself hands it on only to calls with several tensors."""
    return getattr(x, "_keras_mask", None)


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMDecoderLayer(
    TakesNumbers, ShapedLikeInputs, RematerializesPurely, AdaptsMemory, StreamsAlone, SavesRunState, keras.layers.Layer
):
    """A pre-norm decoder layer with Feedback Attention Memory (paper, Algorithm 2), made of a layer's own parts.

        A   = Attention(norm(I), memory segments, FAM) + I;    O_tau = FF(norm(A)) + A
        A^F = Attention(norm(F_{tau-1}), block) + R;           F_tau = FF(norm(A^F)) + A^F

    Tokens and FAM go through the same norms, projections and feed-forward. `FAMBackbone` makes such layers of the
    sublayers of a stock model. `FAMDecoderBlock` makes its own from hyperparameters.

    Args:
        parts: `keras_fam.memory.parts.DecoderParts` of built sublayers; nothing is copied.
        options: `keras_fam.memory.options.MemoryOptions`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float `[batch, length, d]`, I; any length.
        fam: float `[1 or batch, N, d]`, N <= B, the prompt at this layer: of `FAMPrompt`, or returned by the layer
            below. None for block sliding window attention without FAM.
        inputs_mask: bool or int `[batch, length]`, 0 for padding; a Keras mask is taken up by itself. Padding is
            attended to by nothing, and a block of nothing but padding leaves FAM as it was.
        carried: dict of `CarriedState` or `RandomStatePassing`, or None: the memory that training starts from.
        sink: float `[1, 1, d]`, the start token at this layer: its embedding, or returned by the layer below; or None.
        training: bool.

    Returns:
        O, `[batch, length, d]`; with `fam`, also the prompt for the layer above; with `sink`, also the start token
        there: a tuple.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape, by name.

    Example:

    ```python
    backbone = keras_fam.FAMBackbone(stock, block_size=8, memory_segments=1, fam_length=4)
    layer = backbone.transformer_layers[0]
    y, fam = layer(keras.random.normal((2, 24, 16)), keras.random.normal((1, 4, 16)))
    ```
    """

    def __init__(self, parts: DecoderParts, options: MemoryOptions, **kwargs: Any) -> None:
        self._init(options, **kwargs)
        for name, part in parts.layers().items():  # Tracked, and saved, under these names.
            setattr(self, f"part_{name}", part)
        self.parts = parts
        self.build(None)
        self.built = True

    def _init(self, options, **kwargs):
        check_dtype("dtype", kwargs.get("dtype"))
        # F comes in and goes out in the dtype that it has: casting is done here and not by Keras.
        super().__init__(autocast=False, **kwargs)
        self.options = options
        self.memory_gate = None
        self._compiled = {}
        self._lora_checkpoint = LoRACheckpoint(functools.partial(self._flatten_layers, include_self=False))
        self.last_fam = None
        self.carried_state = []
        self.supports_masking = True

    def build(self, inputs_shape: Any, fam_shape: Shape | None = None) -> None:
        """What this layer adds to its parts: nothing, or one gate.

        Args:
            inputs_shape: tuple, `[batch, length, d]`, or None; not used.
            fam_shape: tuple, `[1 or batch, N, d]`, or None; not used.
        """
        if self.options.memory_gate is not None:
            start = keras.initializers.Constant(self.options.memory_gate)
            self.memory_gate = self.add_weight(name="memory_gate", shape=(), initializer=start, dtype="float32")
        rematerialize_blocks_alone(self)

    @property
    def core(self) -> Core:
        """What the functions of `keras_fam.memory` need of this layer."""
        return Core(self.parts, self.options, self.memory_gate, self.memory_adapters)

    @property
    def ring_slots(self) -> int:
        """Places of the ring in which a stream keeps keys and values."""
        return slots(self.core)

    # === State between training steps ===

    def keep_last_fam(self, fam_length: int, hidden_dim: int) -> None:
        """Random state passing: adds the non-trainable weight in which a training step leaves row 0's last FAM.

        Args:
            fam_length: int, N.
            hidden_dim: int, d.
        """
        self.last_fam = self._add_state("last_fam", (fam_length, hidden_dim), self.parts.fam_dtype)

    def carry_state(self, batch_size: int, fam_length: int, hidden_dim: int) -> None:
        """Stateful training: adds the non-trainable weights from which the next training step goes on.

        Args:
            batch_size: int, rows of a batch.
            fam_length: int, N; 0 without FAM.
            hidden_dim: int, d.
        """
        parts, segments = self.parts, self.core.segments
        states = []
        if fam_length:
            states.append(self._add_state("carried_fam", (batch_size, fam_length, hidden_dim), parts.fam_dtype))
        if segments:
            heads = (parts.num_key_value_heads, parts.head_dim)
            shape = (batch_size, segments, self.options.block_size, *heads)
            states += [self._add_state(f"carried_{name}", shape, self.variable_dtype) for name in ("key", "value")]
        self.carried_state = states

    def _add_state(self, name, shape, dtype):
        self._tracker.unlock()
        weight = self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False, dtype=dtype)
        self._tracker.lock()
        return weight

    # === A whole text ===

    def call(
        self,
        inputs: Tensor,
        fam: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        carried: dict[str, Tensor] | None = None,
        sink: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """A whole sequence through the layer; see the class.

        Args:
            inputs: float `[batch, length, d]`, I.
            fam: float `[1 or batch, N, d]`, the prompt at this layer, or None.
            inputs_mask: `[batch, length]`, True for real tokens, or None.
            carried: dict of `CarriedState` or `RandomStatePassing`, or None: the memory that training starts from.
            sink: float `[1, 1, d]`, the start token at this layer, or None.
            training: bool or None.

        Returns:
            O, `[batch, length, d]`; with `fam`, also the prompt for the layer above; with `sink`, also the start token
            there: a tuple.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, by name.
        """
        return self.call_around(lambda compute: compute, inputs, fam, inputs_mask, carried, sink, training)

    def call_around(
        self,
        rematerialize: Callable[[Callable], Callable],
        inputs: Tensor,
        fam: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        carried: dict[str, Tensor] | None = None,
        sink: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """`call`, with all but the drawing of seeds and the keeping of state inside `rematerialize`.

        Args:
            rematerialize: callable from a function of tensors to one that computes the same.
            inputs: see `call`.
            fam: see `call`.
            inputs_mask: see `call`.
            carried: see `call`.
            sink: see `call`.
            training: see `call`.

        Returns:
            As `call`.
        """
        inputs_mask = keras_mask(inputs) if inputs_mask is None else inputs_mask
        check_layer_call(self.options, inputs, fam, inputs_mask, sink, carried)
        inputs = ops.cast(inputs, self.compute_dtype)
        core, seeds = self.core, self.parts.draw_seeds(training)
        update_seeds = {} if fam is None else self.parts.draw_seeds(training)
        # The arguments of `compute` by name: what may be differentiated goes through them.
        given = {"inputs": inputs}
        if fam is not None:
            given["prompt"] = given["fam"] = ops.cast(fam, self.compute_dtype)
        if sink is not None:
            given["sink"] = ops.cast(sink, self.compute_dtype)
        beginning, resumed = self._begin(given, carried, training)
        if beginning.fam is not None:
            given["fam"] = beginning.fam
        names = tuple(given)

        def compute(*tensors):
            named = dict(zip(names, tensors))
            start = beginning._replace(fam=named.get("fam"), sink=named.get("sink"))
            attention, passed = attend_sequence(
                core, named["inputs"], start, inputs_mask, seeds, update_seeds, passes_on=resumed
            )
            lift = {"prompt": lift_prompt, "sink": lift_sink}
            lifted = [lift[name](core, named[name]) for name in lift if name in named]
            kept = [ops.stop_gradient(x) for x in passed or () if x is not None]
            return (complete_tokens(core, attention, named["inputs"], seeds, training), *lifted, *kept)

        outputs = rematerialize(compute)(*given.values())
        count = 1 + (fam is not None) + (sink is not None)
        if resumed:
            self._keep(outputs[count:])
        return outputs[0] if count == 1 else tuple(outputs[:count])

    def _begin(self, given, carried, training):
        """The `Beginning`, and whether the next step goes on from where this one ends."""
        fam, carried = given.get("fam"), carried or {}
        rows = ops.shape(given["inputs"])[0]
        if training and self.last_fam is not None and "passed" in carried:
            passed = ops.cast(carried["passed"], "bool")
            start = ops.where(passed, ops.cast(self.last_fam, self.parts.fam_dtype)[None], self._wide(fam))
            return Beginning(start, ops.broadcast_to(passed, (rows,))), True
        if not (self.carried_state and "fresh" in carried and carries_on(training)):
            return Beginning(fam), False
        kept = list(self.carried_state)
        if fam is not None:
            carried_fam = ops.cast(kept.pop(0), self.parts.fam_dtype)
            fam = ops.where(carried["fresh"][:, None, None], self._wide(fam), carried_fam)
        segments = None
        if kept:
            valid = carried["valid"][:, self.options.memory_segments - self.core.segments :]
            # Copies: torch overwrites weights in place, and recomputation reads these once more.
            key, value = (ops.copy(ops.cast(weight, self.compute_dtype)) for weight in kept)
            segments = Segments(key, value, valid)
        return Beginning(fam, carried["started"], segments), True

    def _wide(self, fam):
        return ops.cast(fam, self.parts.fam_dtype)

    def _keep(self, passed):
        if self.last_fam is not None:
            self.last_fam.assign(ops.cast(passed[0][0], self.last_fam.dtype))
        else:
            for weight, value in zip(self.carried_state, passed):
                weight.assign(ops.cast(value, weight.dtype))

    def attention_map(
        self, inputs: Tensor, head: int, fam: Tensor | None = None, sink: Tensor | None = None
    ) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """One head's attention weights; see `keras_fam.plot_attention`, which draws them.

        Args:
            inputs: float `[1, length, d]`.
            head: int, index of the query head.
            fam: float `[1, N, d]`, the prompt at this layer, or None.
            sink: float `[1, 1, d]`, the start token at this layer, or None.

        Returns:
            `(weights, marks)`: float `[s, s]`, queries by keys, and the `(start, stop)` of the rows and columns of the
            sink and of each FAM.
        """
        weights, marks = attention_maps(self.core, inputs, Beginning(fam, sink=sink), [head])
        return weights[0], marks

    def memory_share(self, inputs: Tensor, fam: Tensor, sink: Tensor | None = None) -> np.ndarray:
        """How much of its attention each token gives to FAM; see `FAMCausalLM.calibrate_gates`.

        Args:
            inputs: float `[1, length, d]`.
            fam: float `[1, N, d]`, the prompt at this layer.
            sink: float `[1, 1, d]`, the start token at this layer, or None.

        Returns:
            float32 `[length, h]`, from 0 to 1, of each query head.
        """
        return memory_share(self.core, inputs, Beginning(fam, sink=sink))

    # === Shapes and configuration ===

    def compute_output_spec(
        self,
        inputs: Tensor,
        fam: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        carried: dict[str, Tensor] | None = None,
        sink: Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Shapes and dtypes of the outputs, as `keras.KerasTensor`.

        Args:
            inputs: see `call`.
            fam: see `call`.
            inputs_mask: see `call`.
            carried: see `call`.
            sink: see `call`.
            training: see `call`.

        Returns:
            `keras.KerasTensor`, or a tuple of them.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, by name.
        """
        check_layer_call(self.options, inputs, fam, inputs_mask, sink, carried)
        shapes = [x.shape for x in (inputs, fam, sink) if x is not None]
        outputs = [keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in shapes]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def get_config(self) -> dict[str, Any]:
        """The parts one by one, so that the layer computes the same wherever it is loaded."""
        return {**super().get_config(), "parts": parts_to_config(self.parts), "options": self.options.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        parts, options = parts_from_config(config.pop("parts")), MemoryOptions(**config.pop("options"))
        return cls(parts, options, **config)
