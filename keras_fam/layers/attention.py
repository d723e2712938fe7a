"""The attention half of a TransformerFAM decoder layer."""

from typing import Any

import keras
import keras_hub
from keras import ops

from keras_fam.checks import (
    check_block_shape,
    check_dropout,
    check_flag,
    check_integer,
    check_layer_shapes,
    check_positive,
)
from keras_fam.kernels import attend
from keras_fam.layers.rematerialize import RematerializesPurely
from keras_fam.rotary import block_rotations, rotation, turn
from keras_fam.sequence import attend_sequence
from keras_fam.types import Tensor


def keras_mask(x):
    """The mask that a layer below attached to `x`; Keras itself hands it on only to calls with several tensors."""
    return getattr(x, "_keras_mask", None)


@keras.saving.register_keras_serializable(package="keras_fam")
class FeedbackAttention(RematerializesPurely, keras.layers.Layer):
    """Block sliding window attention with Feedback Attention Memory (paper, Algorithm 2).

    In block tau, with queries, keys and values `Q, K, V` of its tokens and `Qf, Kf, Vf` of the FAM before it:

        tokens:  Attention(Q, [K_{tau-m} .. K_{tau-1}, Kf, K_tau up to the token])
        FAM:     Attention(Qf, [Kf, K_tau]) + R

    with `R` the FAM before, or zero in the first block after the learned prompt. A whole sequence is computed in the
    layer-parallel form: the projections and the token attention of all blocks at once, and only the N FAM vectors
    through a sequential loop. `FAMDecoderBlock` closes that loop over its norms and feed-forward; alone, this layer
    closes it over the plain residual above.

    Args:
        num_query_heads: int, h.
        num_key_value_heads: int, k; h must be a multiple of it.
        head_dim: int, c.
        block_size: int, B >= 1. Tokens per block.
        memory_segments: int, m >= 0. Past blocks whose keys and values stay visible.
        use_bias: bool. Biases in all four projections (GPT-2).
        rope_max_wavelength: float, or None for a layer without rotary positions (GPT-2).
        logit_soft_cap: float or None. Gemma 2's soft cap of attention scores.
        sliding_window_size: int or None. A window of the layer's own between tokens; FAM is always visible.
        dropout: float in [0, 1), on attention weights.
        stop_gradient_memory: bool. No gradient through memory segments (the Transformer-XL habit).
        truncate_bptt: int or None. Cut FAM's gradient every that many blocks.
        kernel_initializer: initializer of the projections.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float `[batch, length, d]`, any length.
        fam: float `[1 or batch, N, d]`, N <= B, the prompt at this layer; None for BSWA without FAM.
        inputs_mask: `[batch, length]`, True for real tokens; a Keras mask is taken up by itself. Padding is attended to
            by nothing, and a block of nothing but padding leaves FAM as it was.

    Returns:
        `[batch, length, d]`, without residual; with `fam`, a pair of it and the prompt's own attention output.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, by name.

    Example:

    ```python
    x = keras.random.normal((2, 24, 32))
    fam = keras_fam.FAMPrompt(fam_length=4)(x)
    attention = keras_fam.FeedbackAttention(num_query_heads=4, num_key_value_heads=2, head_dim=8, block_size=8)
    y, fam = attention(x, fam)
    ```
    """

    def __init__(
        self,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        block_size: int,
        memory_segments: int = 0,
        use_bias: bool = False,
        rope_max_wavelength: float | None = 10_000.0,
        logit_soft_cap: float | None = None,
        sliding_window_size: int | None = None,
        dropout: float = 0.0,
        stop_gradient_memory: bool = False,
        truncate_bptt: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_query_heads = check_integer("num_query_heads", num_query_heads, 1)
        self.num_key_value_heads = check_integer("num_key_value_heads", num_key_value_heads, 1)
        if num_query_heads % num_key_value_heads:
            raise ValueError(
                "`num_query_heads` must be a multiple of `num_key_value_heads`. Received: "
                f"num_query_heads={num_query_heads}, num_key_value_heads={num_key_value_heads}."
            )
        self.head_dim = check_integer("head_dim", head_dim, 1)
        if rope_max_wavelength is not None:
            check_positive("rope_max_wavelength", rope_max_wavelength)
            if head_dim % 2:
                raise ValueError(
                    f"`head_dim` must be even for rotary positions, which turn pairs. Received: head_dim={head_dim}."
                )
        self.block_size, self.memory_segments, _ = check_block_shape(block_size, memory_segments)
        self.use_bias = check_flag("use_bias", use_bias)
        self.rope_max_wavelength = rope_max_wavelength
        self.logit_soft_cap = None if logit_soft_cap is None else check_positive("logit_soft_cap", logit_soft_cap)
        self.sliding_window_size = sliding_window_size
        if sliding_window_size is not None:
            check_integer("sliding_window_size", sliding_window_size, 1)
        self.dropout = check_dropout("dropout", dropout)
        self.stop_gradient_memory = check_flag("stop_gradient_memory", stop_gradient_memory)
        self.truncate_bptt = truncate_bptt
        if truncate_bptt is not None:
            check_integer("truncate_bptt", truncate_bptt, 1)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.scale = self.head_dim**-0.5

    def adopt(self, query, key, value, attention_output, dropout_layer=None, rope=None):
        """Takes over the built sublayers of a stock attention layer, with their variables; nothing is copied."""
        self.query_dense, self.key_dense, self.value_dense = query, key, value
        self.output_dense = attention_output
        self.dropout_layer = dropout_layer
        # Angles are always float32, whatever the layer computes in.
        self.rope = rope and type(rope).from_config({**rope.get_config(), "dtype": "float32"})
        self.built = True

    def build(self, inputs_shape, fam_shape=None):
        check_layer_shapes(self.block_size, inputs_shape, fam_shape)

        def projection(equation, name, shape, bias_axes):
            return keras.layers.EinsumDense(
                equation,
                output_shape=(None, *shape),
                bias_axes=bias_axes if self.use_bias else None,
                kernel_initializer=keras.initializers.get(self.kernel_initializer).clone(),
                dtype=self.dtype_policy,
                name=name,
            )

        queries, keys = (self.num_query_heads, self.head_dim), (self.num_key_value_heads, self.head_dim)
        self.query_dense = projection("btd,ndh->btnh", "query", queries, "nh")
        self.key_dense = projection("bsd,kdh->bskh", "key", keys, "kh")
        self.value_dense = projection("bsd,kdh->bskh", "value", keys, "kh")
        self.output_dense = projection("btnh,nhd->btd", "attention_output", (inputs_shape[-1],), "d")
        for layer in (self.query_dense, self.key_dense, self.value_dense):
            layer.build(inputs_shape)
            layer.supports_masking = True
        self.output_dense.build((None, None, *queries))
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy) if self.dropout else None
        self.rope = None
        if self.rope_max_wavelength is not None:
            self.rope = keras_hub.layers.RotaryEmbedding(self.rope_max_wavelength, dtype="float32")

    # How a family's layer projects and rotates; a family that does more (query-key norms) overrides these.

    def project_query(self, x):
        """`[b, t, d]` to `[b, t, h, c]`, not yet rotated."""
        return self.query_dense(x)

    def project_key_value(self, x):
        """`[b, s, d]` to two times `[b, s, k, c]`, the key not yet rotated."""
        return self.key_dense(x), self.value_dense(x)

    def rotation(self, places):
        """The turns at `places` `[t]`, relative to a block so that no stream is long enough to blur them, or None."""
        return None if self.rope is None else rotation(self.rope, places, self.head_dim)

    def rotate(self, x, places):
        """`[b, t, heads, c]` turned to `places` `[t]`."""
        return turn(x, self.rotation(places))

    def block_rotations(self, blocks):
        """The turns of all places of `blocks` blocks and of the one before them: see `rotary.block_rotations`."""
        return None if self.rope is None else block_rotations(self.rope, self.block_size, blocks, self.head_dim)

    def attend(self, query, key, value, mask, seed=None):
        """Attention of rotated queries `[b, t, h, c]`; see `kernels.attend`."""
        return attend(query, key, value, mask, self.scale, self.logit_soft_cap, self.dropout, seed)

    def memory(self, x):
        """Keys or values of a memory segment, with the gradient that they may have."""
        return ops.stop_gradient(x) if self.stop_gradient_memory else x

    def draw_seed(self, training):
        """A seed for the dropout of attention weights, or None."""
        return self.dropout_layer.seed_generator.next() if training and self.dropout else None

    def call(
        self, inputs: Tensor, fam: Tensor | None = None, inputs_mask: Tensor | None = None, training: bool | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return self.call_around(lambda compute: compute, inputs, fam, inputs_mask, training)

    def call_around(self, rematerialize, inputs, fam=None, inputs_mask=None, training=None):
        """`call`, with all but the drawing of seeds inside `rematerialize`."""
        inputs_mask = keras_mask(inputs) if inputs_mask is None else inputs_mask
        self.check_call(inputs, fam, inputs_mask)
        seed = self.draw_seed(training)

        def compute(inputs, *fam):
            outputs, _ = attend_sequence(self, inputs, *(fam or (None,)), inputs_mask, seed=seed)
            return (outputs, self.attend_prompt(*fam)) if fam else outputs

        return rematerialize(compute)(inputs, *(() if fam is None else (fam,)))

    def check_call(self, inputs, fam, inputs_mask=None):
        """Refuses call arguments of the wrong shapes; see `call`."""
        shapes = (None if x is None else x.shape for x in (inputs, fam, inputs_mask))
        check_layer_shapes(self.block_size, *shapes)

    def attend_prompt(self, normed_prompt):
        """The prompt on its way up: attention among the N prompt vectors alone, full and not causal.

        Args:
            normed_prompt: `[1 or b, N, d]`.

        Returns:
            `[1 or b, N, d]`, without residual.
        """
        places = ops.arange(-normed_prompt.shape[1], 0)
        key, value = self.project_key_value(normed_prompt)
        query, key = self.rotate(self.project_query(normed_prompt), places), self.rotate(key, places)
        everything = ops.ones((1, 1, normed_prompt.shape[1]), dtype="bool")
        return self.output_dense(self.attend(query, key, value, everything))

    def compute_mask(self, inputs, previous_mask):
        return previous_mask

    def compute_output_shape(self, inputs_shape, fam_shape=None):
        return inputs_shape if fam_shape is None else (inputs_shape, fam_shape)

    def compute_output_spec(self, inputs, fam=None, inputs_mask=None, training=None):
        self.check_call(inputs, fam, inputs_mask)
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        return outputs if fam is None else (outputs, keras.KerasTensor(fam.shape, dtype=self.compute_dtype))

    def get_config(self):
        return {
            **super().get_config(),
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "block_size": self.block_size,
            "memory_segments": self.memory_segments,
            "use_bias": self.use_bias,
            "rope_max_wavelength": self.rope_max_wavelength,
            "logit_soft_cap": self.logit_soft_cap,
            "sliding_window_size": self.sliding_window_size,
            "dropout": self.dropout,
            "stop_gradient_memory": self.stop_gradient_memory,
            "truncate_bptt": self.truncate_bptt,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
