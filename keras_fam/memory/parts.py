"""What FAM borrows of a decoder layer: its projections, norms and feed-forward. FAM adds no weight of its own."""

import contextlib
from dataclasses import dataclass, field, fields
from typing import Any

import keras
from keras import ops
from keras.src.backend import AutocastScope

from keras_fam.backend.kernels import Scoring, attend
from keras_fam.backend.random import seeded_dropout
from keras_fam.memory.rotary import Rotation, block_rotations, rotation, turn
from keras_fam.types import Tensor

LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class DecoderParts:
    """The built sublayers of a pre-norm decoder layer, and how it puts them together.

    Attributes:
        query, key, value: layers from `[b, t, d]` to `[b, t, h or k, c]`.
        output: layer from `[b, t, h, c]` to `[b, t, d]`.
        num_query_heads, num_key_value_heads, head_dim: int; h, k and c.
        scale: float, what scores are multiplied by.
        pre_attention_norm, pre_ffw_norm: layers, the norms before the two halves, or None.
        query_norm, key_norm: layers over c, before the rotation, or None.
        post_attention_norm, post_ffw_norm: layers, the norms behind the two halves, or None.
        up, down: layers of the feed-forward; None for attention alone. Without `gate`, `up` applies its own activation.
        gate, activation: `down(activation(gate(x)) * up(x))`; None for a feed-forward that is not gated.
        rope: `keras_hub.layers.RotaryEmbedding` in float32, or None.
        soft_cap: float or None, of attention scores.
        sliding_window: int or None. A token sees tokens less than this far back; FAM is always visible.
        weights_dropout, attended_dropout: `keras.layers.Dropout` on attention weights, on attended vectors; or None.
        attention_dropout, feedforward_dropout: `keras.layers.Dropout` behind the two halves, or None.
        clips_float16: bool. Residual sums in float16 stay below infinity (Gemma 3).
    """

    query: keras.layers.Layer
    key: keras.layers.Layer
    value: keras.layers.Layer
    output: keras.layers.Layer
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int
    scale: float
    pre_attention_norm: keras.layers.Layer | None = None
    query_norm: keras.layers.Layer | None = None
    key_norm: keras.layers.Layer | None = None
    post_attention_norm: keras.layers.Layer | None = None
    pre_ffw_norm: keras.layers.Layer | None = None
    up: keras.layers.Layer | None = None
    gate: keras.layers.Layer | None = None
    down: keras.layers.Layer | None = None
    post_ffw_norm: keras.layers.Layer | None = None
    activation: Any = None
    rope: keras.layers.Layer | None = None
    soft_cap: float | None = None
    sliding_window: int | None = None
    weights_dropout: keras.layers.Layer | None = None
    attended_dropout: keras.layers.Layer | None = None
    attention_dropout: keras.layers.Layer | None = None
    feedforward_dropout: keras.layers.Layer | None = None
    clips_float16: bool = False

    @property
    def compute_dtype(self) -> str:
        return self.query.compute_dtype

    @property
    def fam_dtype(self) -> str:
        """F is a sum over all blocks: float32 at least, whatever the layer computes in."""
        return keras.backend.result_type(self.compute_dtype, "float32")

    @property
    def hidden_dim(self) -> int:
        """d."""
        return int(self.output.compute_output_shape((1, 1, self.num_query_heads, self.head_dim))[-1])

    def layers(self) -> dict[str, keras.layers.Layer]:
        """The sublayers by field name."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: part for name, part in named.items() if isinstance(part, keras.layers.Layer)}

    # === Before the attention ===

    def normalize(self, x: Tensor) -> Tensor:
        """norm(I) or norm(F): `[b, t, d]` in the compute dtype."""
        return self._normalized(self.pre_attention_norm, x)

    def project_query(self, normed: Tensor) -> Tensor:
        """`[b, t, d]` to `[b, t, h, c]`, not yet rotated."""
        query = self._dense("query", normed)
        return query if self.query_norm is None else self.query_norm(query)

    def project_key_value(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """`[b, s, d]` to two times `[b, s, k, c]`, the key not yet rotated."""
        key = self._dense("key", normed)
        return (key if self.key_norm is None else self.key_norm(key)), self._dense("value", normed)

    def rotation(self, places: Tensor) -> Rotation | None:
        """The turns at `places` `[t]`, relative to a block so that no stream is long enough to blur them; or None."""
        return None if self.rope is None else rotation(self.rope, places, self.head_dim)

    def rotate(self, x: Tensor, places: Tensor) -> Tensor:
        """`[b, t, heads, c]` turned to `places` `[t]`."""
        return turn(x, self.rotation(places))

    def block_rotations(self, block_size: int, blocks: int | Tensor, places: Tensor) -> Rotation | None:
        """The turns at `places` of every block and of the one before the text; see `rotary.block_rotations`."""
        turns = self.rotation(places)
        if turns is None:
            return None
        one_block = rotation(self.rope, ops.convert_to_tensor([block_size], "int32"), self.head_dim)
        return block_rotations(one_block, turns, blocks)

    # === The attention ===

    @property
    def scoring(self) -> Scoring:
        dropout = 0.0 if self.weights_dropout is None else self.weights_dropout.rate
        return Scoring(self.scale, self.soft_cap, dropout)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        seeds: dict[str, Tensor] | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """Attention of rotated queries; see `kernels.attend`.

        Args:
            query: `[b, t, h, c]`.
            key: `[b, s, k, c]`.
            value: `[b, s, k, c]`.
            mask: bool, broadcastable to `[b, t, s]`.
            seeds: dict of drawn seeds; see `draw_seeds`.
            key_bias: float32 `[s]` that is added to the scores, or None.

        Returns:
            `[b, t, h, c]`.
        """
        seeds = seeds or {}
        attended = attend(query, key, value, mask, self.scoring, seeds.get("weights"), key_bias)
        return _dropped(self.attended_dropout, attended, seeds.get("attended"))

    # === Behind the attention ===

    def project_output(self, attended: Tensor) -> Tensor:
        """`[b, t, h, c]` to `[b, t, d]`."""
        return self._dense("output", attended)

    def complete(self, attention: Tensor, residual: Tensor, seeds: dict[str, Tensor] | None = None) -> Tensor:
        """The layer behind the attention, for tokens and FAM alike: A = attention + residual; FF(norm(A)) + A.

        Args:
            attention: `[b, t, d]`.
            residual: `[b, t, d]`; its dtype is the result's.
            seeds: dict of drawn seeds, or None for no dropout.

        Returns:
            `[b, t, d]`.
        """
        seeds = seeds or {}
        if self.post_attention_norm is not None:
            attention = self.post_attention_norm(attention)
        a = self._add(residual, _dropped(self.attention_dropout, attention, seeds.get("attention")))
        if self.down is None:
            return a
        x = self._normalized(self.pre_ffw_norm, a)
        if self.gate is None:
            x = self._dense("up", x)
        else:
            x = self.activation(self._dense("gate", x)) * self._dense("up", x)
        x = self._dense("down", x)
        if self.post_ffw_norm is not None:
            x = self.post_ffw_norm(x)
        return self._add(a, _dropped(self.feedforward_dropout, x, seeds.get("feedforward")))

    def _dense(self, name, x):
        return _dense(getattr(self, name), x)

    # === Dropout ===

    def draw_seeds(self, training: bool | None) -> dict[str, Tensor]:
        """A seed for each dropout, drawn here so that what runs in loops and recomputations draws nothing.

        Returns:
            dict of `"weights"`, `"attended"`, `"attention"`, `"feedforward"` to seeds; without those that are not used.
        """
        names = ("weights", "attended", "attention", "feedforward")
        layers = {name: getattr(self, f"{name}_dropout") for name in names if training}
        return {name: layer.seed_generator.next() for name, layer in layers.items() if layer is not None and layer.rate}

    def _normalized(self, norm, x):
        if norm is None:
            return ops.cast(x, self.compute_dtype)
        if keras.backend.standardize_dtype(x.dtype) == self.compute_dtype:
            return norm(x)
        # F is wider than the compute dtype. A layer's `__call__` would round it before the norm sees it.
        return ops.cast(norm.call(x), self.compute_dtype)

    def _add(self, residual, x):
        if self.clips_float16 and keras.backend.standardize_dtype(residual.dtype) == "float16":
            total = ops.cast(residual, "float32") + ops.cast(x, "float32")
            return ops.cast(ops.clip(total, -LARGEST_FLOAT16, LARGEST_FLOAT16), "float16")
        return residual + ops.cast(x, residual.dtype)


@dataclass(frozen=True)
class AdaptedParts(DecoderParts):
    """The parts as FAM's rows go through them where adapters are FAM's alone.

    Attributes:
        adapters: dict from the field name of a projection to the `MemoryAdapter` whose product is added to what that
            makes, behind its bias and its own activation.
    """

    adapters: dict[str, keras.layers.Layer] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: DecoderParts, adapters: dict[str, keras.layers.Layer]) -> "AdaptedParts":
        """`parts`, adapted."""
        return cls(**{each.name: getattr(parts, each.name) for each in fields(parts)}, adapters=adapters)

    def _dense(self, name, x):
        made = super()._dense(name, x)
        return made + self.adapters[name](x) if name in self.adapters else made


def _dense(layer, x):
    """A projection, or a feed-forward layer on `[b, t, d]`, in the layer's compute dtype.

    What trains with LoRA is float32 and is cast here. Keras casts LoRA kernels itself, unless the layer is quantized;
    it does not cast a bias, which would make the result float32. A `Dense` is one matrix product over rows: XLA cannot
    differentiate the product that tensorflow uses for rank 3 inside a loop over unknown many blocks.
    """
    quantized = getattr(layer, "quantization_mode", None) is not None
    with AutocastScope(layer.compute_dtype) if quantized else contextlib.nullcontext():
        if isinstance(layer, keras.layers.Dense):
            rows = layer(ops.reshape(x, (-1, x.shape[-1])))
            made = ops.reshape(rows, (*ops.shape(x)[:-1], rows.shape[-1]))
        else:
            made = layer(x)
    return ops.cast(made, layer.compute_dtype)


def _dropped(layer, x, seed):
    return x if layer is None else seeded_dropout(x, layer.rate, seed)
