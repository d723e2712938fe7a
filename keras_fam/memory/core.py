"""A decoder layer as its working memory sees it."""

from typing import NamedTuple

import keras
from keras import ops

from keras_fam.memory.options import MemoryOptions
from keras_fam.memory.parts import AdaptedParts, DecoderParts
from keras_fam.types import Tensor


class Core(NamedTuple):
    """What the functions of this package need of a layer.

    Attributes:
        parts: `DecoderParts`.
        options: `MemoryOptions`.
        gate: scalar tensor that is added to the tokens' scores on Kf, or None.
        adapters: dict from names of projections to layers that act on FAM alone, or None.
    """

    parts: DecoderParts
    options: MemoryOptions
    gate: Tensor | None = None
    adapters: dict[str, keras.layers.Layer] | None = None

    @property
    def fam_parts(self) -> DecoderParts:
        """The parts that the prompt and FAM go through: those of tokens, unless they have adapters of their own."""
        return AdaptedParts.of(self.parts, self.adapters) if self.adapters else self.parts

    @property
    def segments(self) -> int:
        """Memory segments that a token can see: m, or fewer where the layer's own window of w tokens hides the rest."""
        window, size = self.parts.sliding_window, self.options.block_size
        return (
            self.options.memory_segments
            if window is None
            else min(self.options.memory_segments, -(-(window - 1) // size))
        )

    def gate_bias(self, slots: int, fam_length: int, behind: int = 0) -> Tensor | None:
        """The gate on `fam_length` of `slots` keys, `behind` keys from the end: float32 `[slots]`, or None."""
        if self.gate is None or not fam_length:
            return None
        gate = ops.broadcast_to(ops.reshape(ops.cast(self.gate, "float32"), (1,)), (fam_length,))
        return ops.pad(gate, [[slots - fam_length - behind, behind]])
