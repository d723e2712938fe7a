"""The attention half of a TransformerFAM decoder layer."""

from collections.abc import Callable
from typing import Any

import keras
import keras_hub

from keras_fam.backend.rematerialize import RematerializesPurely
from keras_fam.checks import (
    check_dropout,
    check_dtype,
    check_flag,
    check_initializer,
    check_integer,
    check_positive,
)
from keras_fam.layers.checks import TakesNumbers, check_layer_call, check_layer_shapes
from keras_fam.layers.decoder_layer import keras_mask
from keras_fam.layers.shapes import ShapedLikeInputs
from keras_fam.memory.core import Core
from keras_fam.memory.options import MemoryOptions
from keras_fam.memory.parts import DecoderParts
from keras_fam.memory.sequence import attend_prompt, attend_sequence
from keras_fam.memory.state import Beginning
from keras_fam.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FeedbackAttention(TakesNumbers, ShapedLikeInputs, RematerializesPurely, keras.layers.Layer):
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
        memory_span: float, one for each FAM vector, or None. How many times as long as what a block adds to it a
            vector may stay; None is the paper's plain sum.
        kernel_initializer: initializer of the projections.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float `[batch, length, d]`, any length.
        fam: float `[1 or batch, N, d]`, N <= B, the prompt at this layer; None for BSWA without FAM.
        inputs_mask: bool or int `[batch, length]`, 0 for padding; a Keras mask is taken up by itself. Padding is
            attended to by nothing, and a block of nothing but padding leaves FAM as it was.

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
        memory_span: float | tuple[float, ...] | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        check_dtype("dtype", kwargs.get("dtype"))
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
        self.options = MemoryOptions(
            block_size, memory_segments, stop_gradient_memory, truncate_bptt, memory_span=memory_span
        )
        self.use_bias = check_flag("use_bias", use_bias)
        self.rope_max_wavelength = rope_max_wavelength
        self.logit_soft_cap = None if logit_soft_cap is None else check_positive("logit_soft_cap", logit_soft_cap)
        self.sliding_window_size = sliding_window_size
        if sliding_window_size is not None:
            check_integer("sliding_window_size", sliding_window_size, 1)
        self.dropout = check_dropout("dropout", dropout)
        self.kernel_initializer = check_initializer("kernel_initializer", kernel_initializer)
        self.supports_masking = True

    def build(self, inputs_shape: Shape, fam_shape: Shape | None = None) -> None:
        """Makes the layer's weights.

        Args:
            inputs_shape: tuple, `[batch, length, d]`.
            fam_shape: tuple, `[1 or batch, N, d]`, or None without FAM.

        Raises:
            ValueError: shapes that do not go together.
        """
        check_layer_shapes(self.options.block_size, inputs_shape, fam_shape)

        def projection(equation, name, shape, bias_axes):
            return keras.layers.EinsumDense(
                equation,
                output_shape=(None, *shape),
                bias_axes=bias_axes if self.use_bias else None,
                kernel_initializer=self.kernel_initializer.clone(),
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
        rope = None
        if self.rope_max_wavelength is not None:
            rope = self.rope = keras_hub.layers.RotaryEmbedding(self.rope_max_wavelength, dtype="float32")
        self.parts = DecoderParts(
            query=self.query_dense,
            key=self.key_dense,
            value=self.value_dense,
            output=self.output_dense,
            num_query_heads=self.num_query_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            rope=rope,
            soft_cap=self.logit_soft_cap,
            sliding_window=self.sliding_window_size,
            weights_dropout=self.dropout_layer,
        )

    def call(
        self, inputs: Tensor, fam: Tensor | None = None, inputs_mask: Tensor | None = None, training: bool | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention over a whole sequence; see the class.

        Args:
            inputs: float `[batch, length, d]`.
            fam: float `[1 or batch, N, d]`, or None.
            inputs_mask: `[batch, length]`, True for real tokens, or None.
            training: bool or None.

        Returns:
            `[batch, length, d]`, without residual; with `fam`, a pair of it and the prompt's own attention output.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, by name.
        """
        return self.call_around(lambda compute: compute, inputs, fam, inputs_mask, training)

    def call_around(
        self,
        rematerialize: Callable[[Callable], Callable],
        inputs: Tensor,
        fam: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`call`, with all but the drawing of seeds inside `rematerialize`.

        Args:
            rematerialize: callable from a function of tensors to one that computes the same.
            inputs: see `call`.
            fam: see `call`.
            inputs_mask: see `call`.
            training: see `call`.

        Returns:
            As `call`.
        """
        inputs_mask = keras_mask(inputs) if inputs_mask is None else inputs_mask
        check_layer_call(self.options, inputs, fam, inputs_mask)
        core, seeds = Core(self.parts, self.options), self.parts.draw_seeds(training)

        def compute(inputs, *fam):
            outputs, _ = attend_sequence(core, inputs, Beginning(*fam), inputs_mask, seeds)
            return (outputs, attend_prompt(core.fam_parts, *fam)) if fam else outputs

        return rematerialize(compute)(inputs, *(() if fam is None else (fam,)))

    def compute_output_spec(
        self, inputs: Tensor, fam: Tensor | None = None, inputs_mask: Tensor | None = None, training: bool | None = None
    ) -> Any:
        """Shapes and dtypes of the outputs, as `keras.KerasTensor`.

        Args:
            inputs: see `call`.
            fam: see `call`.
            inputs_mask: see `call`.
            training: see `call`.

        Returns:
            `keras.KerasTensor`, or a pair of them.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, by name.
        """
        check_layer_call(self.options, inputs, fam, inputs_mask)
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        return outputs if fam is None else (outputs, keras.KerasTensor(fam.shape, dtype=self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        options = self.options.get_config()
        options.pop("memory_gate")  # A gate is a weight of `FAMDecoderBlock`.
        return {
            **super().get_config(),
            **options,
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "use_bias": self.use_bias,
            "rope_max_wavelength": self.rope_max_wavelength,
            "logit_soft_cap": self.logit_soft_cap,
            "sliding_window_size": self.sliding_window_size,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
