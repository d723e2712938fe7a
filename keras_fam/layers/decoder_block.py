"""A whole Transformer decoder layer with Feedback Attention Memory, made from hyperparameters."""

from dataclasses import replace
from typing import Any, Self

import keras

from keras_fam.checks import check_choice, check_flag, check_initializer, check_integer, check_positive
from keras_fam.families.activations import gelu
from keras_fam.layers.attention import FeedbackAttention
from keras_fam.layers.checks import check_layer_shapes
from keras_fam.layers.decoder_layer import FAMDecoderLayer
from keras_fam.memory.options import MemoryOptions
from keras_fam.types import Shape

NORMALIZATIONS = {"rms_norm": keras.layers.RMSNormalization, "layer_norm": keras.layers.LayerNormalization}


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMDecoderBlock(FAMDecoderLayer):
    """A pre-norm decoder layer with Feedback Attention Memory (paper, Algorithm 2).

        A   = Attention(norm(I), memory segments, FAM) + I;    O_tau = FF(norm(A)) + A
        A^F = Attention(norm(F_{tau-1}), block) + R;           F_tau = FF(norm(A^F)) + A^F

    Tokens and FAM go through the same norms, projections and feed-forward: FAM adds no weight to the layer. The
    defaults are those of a Gemma layer; GPT-2's is `normalization="layer_norm", gated_feedforward=False, use_bias=True,
    rope_max_wavelength=None`.

    Args:
        num_query_heads: int, h.
        num_key_value_heads: int, k; h must be a multiple of it.
        head_dim: int, c.
        intermediate_dim: int, width of the feed-forward (of each of its two halves, if gated).
        block_size: int, B >= 1. Tokens per block.
        memory_segments: int, m >= 0. Past blocks whose keys and values stay visible.
        normalization: `"rms_norm"` or `"layer_norm"`.
        gated_feedforward: bool. `down(gelu(gate(x)) * up(x))` instead of `down(gelu(up(x)))`.
        use_bias: bool. Biases in all projections and in the feed-forward (GPT-2).
        rope_max_wavelength: float, or None for a layer without rotary positions (GPT-2).
        use_post_attention_norm: bool. Gemma 2's norm behind the attention.
        use_post_ffw_norm: bool. Gemma 2's norm behind the feed-forward.
        logit_soft_cap: float or None. Gemma 2's soft cap of attention scores.
        sliding_window_size: int or None. A window of the layer's own between tokens; FAM is always visible.
        layer_norm_epsilon: float, of all norms.
        dropout: float in [0, 1), on attention weights and behind both halves.
        stop_gradient_memory: bool. No gradient through memory segments (the Transformer-XL habit).
        truncate_bptt: int or None. Cut FAM's gradient every that many blocks.
        memory_span: float, one for each FAM vector, or None. How many times as long as what a block adds to it a
            vector may stay, so that memory can be written again at any age; None is the paper's plain sum.
        memory_gate: float or None. Where a trained scalar starts that is added to the tokens' scores on FAM; None adds
            none. It is the only weight that FAM can add to a layer.
        kernel_initializer: initializer of all kernels.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float `[batch, length, d]`, I; any length.
        fam: float `[1 or batch, N, d]`, N <= B, the prompt at this layer: of `FAMPrompt`, or returned by the block
            below. None for block sliding window attention without FAM.
        inputs_mask: bool or int `[batch, length]`, 0 for padding; a Keras mask is taken up by itself.
        carried: dict of `CarriedState` or `RandomStatePassing`, or None: the memory that training starts from.
        sink: float `[1, 1, d]`, the start token at this layer, or None.
        training: bool.

    Returns:
        O, `[batch, length, d]`; with `fam`, also the prompt for the block above; with `sink`, also the start token
        there: a tuple.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, by name.

    Example:

    ```python
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(100, 32)(ids)
    fam = keras_fam.FAMPrompt(fam_length=4)(x)
    for _ in range(2):
        x, fam = keras_fam.FAMDecoderBlock(
            num_query_heads=4, num_key_value_heads=1, head_dim=8, intermediate_dim=64, block_size=8, memory_segments=1
        )(x, fam)
    model = keras.Model(ids, keras.layers.Dense(100)(x))
    ```
    """

    def __init__(
        self,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        intermediate_dim: int,
        block_size: int,
        memory_segments: int = 0,
        normalization: str = "rms_norm",
        gated_feedforward: bool = True,
        use_bias: bool = False,
        rope_max_wavelength: float | None = 10_000.0,
        use_post_attention_norm: bool = False,
        use_post_ffw_norm: bool = False,
        logit_soft_cap: float | None = None,
        sliding_window_size: int | None = None,
        layer_norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        stop_gradient_memory: bool = False,
        truncate_bptt: int | None = None,
        memory_span: float | tuple[float, ...] | None = None,
        memory_gate: float | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        options = MemoryOptions(
            block_size, memory_segments, stop_gradient_memory, truncate_bptt, memory_span, memory_gate
        )
        self._init(options, **kwargs)
        self.intermediate_dim = check_integer("intermediate_dim", intermediate_dim, 1)
        self.normalization = check_choice("normalization", normalization, NORMALIZATIONS)
        self.gated_feedforward = check_flag("gated_feedforward", gated_feedforward)
        self.use_post_attention_norm = check_flag("use_post_attention_norm", use_post_attention_norm)
        self.use_post_ffw_norm = check_flag("use_post_ffw_norm", use_post_ffw_norm)
        self.layer_norm_epsilon = check_positive("layer_norm_epsilon", layer_norm_epsilon)
        self.dropout = dropout
        self.kernel_initializer = check_initializer("kernel_initializer", kernel_initializer)
        self.attention = FeedbackAttention(
            num_query_heads=num_query_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            block_size=block_size,
            memory_segments=memory_segments,
            use_bias=use_bias,
            rope_max_wavelength=rope_max_wavelength,
            logit_soft_cap=logit_soft_cap,
            sliding_window_size=sliding_window_size,
            dropout=dropout,
            kernel_initializer=kernel_initializer,
            dtype=self.dtype_policy,
            name="attention",
        )

    def build(self, inputs_shape: Any, fam_shape: Shape | None = None) -> None:
        """Makes the layer's weights.

        Args:
            inputs_shape: tuple, `[batch, length, d]`.
            fam_shape: tuple, `[1 or batch, N, d]`, or None without FAM.

        Raises:
            ValueError: shapes that do not go together.
        """
        check_layer_shapes(self.options.block_size, inputs_shape, fam_shape)
        dim, bias = inputs_shape[-1], self.attention.use_bias

        def norm(name):
            layer = NORMALIZATIONS[self.normalization](
                epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name
            )
            layer.build(inputs_shape)
            layer.supports_masking = True
            return layer

        def dense(name, units, input_dim, activation=None):
            layer = keras.layers.Dense(
                units,
                activation=activation,
                use_bias=bias,
                kernel_initializer=self.kernel_initializer.clone(),
                dtype=self.dtype_policy,
                name=name,
            )
            layer.build((None, None, input_dim))
            return layer

        gated = self.gated_feedforward
        self.pre_attention_norm = norm("pre_attention_norm")
        self.attention.build(inputs_shape)
        self.post_attention_norm = norm("post_attention_norm") if self.use_post_attention_norm else None
        self.pre_ffw_norm = norm("pre_ffw_norm")
        # Without a gate the first layer is the projection up, and applies the activation. Files know it by this name.
        self.ffw_gating = dense("ffw_gating", self.intermediate_dim, dim, None if gated else gelu)
        self.ffw_gating_2 = dense("ffw_gating_2", self.intermediate_dim, dim) if gated else None
        self.ffw_linear = dense("ffw_linear", dim, self.intermediate_dim)
        self.post_ffw_norm = norm("post_ffw_norm") if self.use_post_ffw_norm else None
        self.attention_dropout, self.feedforward_dropout = (
            keras.layers.Dropout(self.dropout, dtype=self.dtype_policy) if self.dropout else None for _ in range(2)
        )
        self.parts = replace(
            self.attention.parts,
            pre_attention_norm=self.pre_attention_norm,
            post_attention_norm=self.post_attention_norm,
            pre_ffw_norm=self.pre_ffw_norm,
            gate=self.ffw_gating if gated else None,
            activation=gelu if gated else None,
            up=self.ffw_gating_2 if gated else self.ffw_gating,
            down=self.ffw_linear,
            post_ffw_norm=self.post_ffw_norm,
            attention_dropout=self.attention_dropout,
            feedforward_dropout=self.feedforward_dropout,
        )
        super().build(inputs_shape, fam_shape)

    def get_config(self) -> dict[str, Any]:
        """The hyperparameters, from which `from_config` makes the same layer."""
        own = keras.layers.Layer.get_config(self)
        attention = {name: value for name, value in self.attention.get_config().items() if name not in own}
        return {
            **attention,
            **own,
            **self.options.get_config(),
            "intermediate_dim": self.intermediate_dim,
            "normalization": self.normalization,
            "gated_feedforward": self.gated_feedforward,
            "use_post_attention_norm": self.use_post_attention_norm,
            "use_post_ffw_norm": self.use_post_ffw_norm,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The layer that `get_config` described, with new weights.

        Args:
            config: dict, of `get_config`.

        Returns:
            `FAMDecoderBlock`.
        """
        return cls(**config)
