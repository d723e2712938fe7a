"""A whole Transformer decoder layer with Feedback Attention Memory."""

from typing import Any

import keras
from keras import ops

from keras_fam.checks import check_flag, check_integer, check_layer_shapes, check_positive
from keras_fam.layers.attention import FeedbackAttention, keras_mask
from keras_fam.layers.rematerialize import RematerializesPurely, rematerialize_blocks_alone
from keras_fam.ops import merge_blocks, seeded_dropout, split_blocks
from keras_fam.sequence import Past, attend_sequence
from keras_fam.types import Tensor

TOKENS_AT_ONCE = 2048  # behind the attention, on jax and torch outside training
NORMALIZATIONS = {"rms_norm": keras.layers.RMSNormalization, "layer_norm": keras.layers.LayerNormalization}


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMDecoderBlock(RematerializesPurely, keras.layers.Layer):
    """A pre-norm decoder layer with Feedback Attention Memory (paper, Algorithm 2).

        A   = Attention(norm(I), memory segments, FAM) + I;    O_tau = FF(norm(A)) + A
        A^F = Attention(norm(F_{tau-1}), block) + R;           F_tau = FF(norm(A^F)) + A^F

    Tokens and FAM go through the same norms, projections and feed-forward: FAM adds no weight to the layer. The
    defaults are those of a Gemma layer; GPT-2's is `normalization="layer_norm", gated_feedforward=False, use_bias=True,
    rope_max_wavelength=None`.

    Args:
        num_query_heads, num_key_value_heads, head_dim, block_size, memory_segments, use_bias, rope_max_wavelength,
            logit_soft_cap, sliding_window_size, stop_gradient_memory, truncate_bptt: see `FeedbackAttention`.
            `use_bias` holds for the feed-forward too.
        intermediate_dim: int, width of the feed-forward (of each of its two halves, if gated).
        normalization: `"rms_norm"` or `"layer_norm"`.
        gated_feedforward: bool. `down(gelu(gate(x)) * up(x))` instead of `down(gelu(up(x)))`.
        use_post_attention_norm, use_post_ffw_norm: bool. Gemma 2's norms behind both halves.
        layer_norm_epsilon: float, of all norms.
        dropout: float in [0, 1), on attention weights and behind both halves.
        kernel_initializer: initializer of all kernels.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float `[batch, length, d]`, I; any length.
        fam: float `[1 or batch, N, d]`, N <= B, the prompt at this layer: of `FAMPrompt`, or returned by the block
            below. None for block sliding window attention without FAM.
        inputs_mask: `[batch, length]`, True for real tokens; a Keras mask is taken up by itself.
        passed: bool `[1]`, or None. Random state passing: start from the FAM that the last training step left.
        carried: dict of `CarriedState`, or None. Stateful training: go on from what the last step left in each row.
        training: bool.

    Returns:
        O, `[batch, length, d]`; with `fam`, a pair of it and the prompt for the block above.

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
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be one of {sorted(NORMALIZATIONS)}. Received: normalization={normalization!r}."
            )
        self.intermediate_dim = check_integer("intermediate_dim", intermediate_dim, 1)
        self.normalization = normalization
        self.gated_feedforward = check_flag("gated_feedforward", gated_feedforward)
        self.use_post_attention_norm = check_flag("use_post_attention_norm", use_post_attention_norm)
        self.use_post_ffw_norm = check_flag("use_post_ffw_norm", use_post_ffw_norm)
        self.layer_norm_epsilon = check_positive("layer_norm_epsilon", layer_norm_epsilon)
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
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
            stop_gradient_memory=stop_gradient_memory,
            truncate_bptt=truncate_bptt,
            kernel_initializer=kernel_initializer,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.last_fam = None
        self.carried_state = []
        self.supports_masking = True

    def adopt(
        self,
        attention_name,
        attention,
        pre_attention_norm,
        pre_ffw_norm,
        ffw_in,
        ffw_out,
        ffw_gate=None,
        post_attention_norm=None,
        post_ffw_norm=None,
        attention_dropout=None,
        feedforward_dropout=None,
    ):
        """Takes over the built sublayers of a stock decoder layer, with their variables; nothing is copied.

        Args:
            attention_name: str, the stock attention layer's name.
            attention: dict of the arguments of `FeedbackAttention.adopt`.
            pre_attention_norm, ..., feedforward_dropout: built layers, or None where the family has none. `ffw_in`
                applies its own activation if there is no `ffw_gate`.
        """
        self.attention.name = attention_name
        self.attention.adopt(**attention)
        self.pre_attention_norm, self.post_attention_norm = pre_attention_norm, post_attention_norm
        self.pre_ffw_norm, self.post_ffw_norm = pre_ffw_norm, post_ffw_norm
        self.ffw_gating, self.ffw_gating_2, self.ffw_linear = ffw_gate or ffw_in, ffw_gate and ffw_in, ffw_out
        self.attention_dropout, self.feedforward_dropout = attention_dropout, feedforward_dropout
        rematerialize_blocks_alone(self)
        self.built = True

    def build(self, inputs_shape, fam_shape=None):
        check_layer_shapes(self.attention.block_size, inputs_shape, fam_shape)
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

        self.pre_attention_norm = norm("pre_attention_norm")
        self.attention.build(inputs_shape)
        self.post_attention_norm = norm("post_attention_norm") if self.use_post_attention_norm else None
        self.pre_ffw_norm = norm("pre_ffw_norm")
        self.ffw_gating = dense("ffw_gating", self.intermediate_dim, dim, None if self.gated_feedforward else _gelu)
        self.ffw_gating_2 = dense("ffw_gating_2", self.intermediate_dim, dim) if self.gated_feedforward else None
        self.ffw_linear = dense("ffw_linear", dim, self.intermediate_dim)
        self.post_ffw_norm = norm("post_ffw_norm") if self.use_post_ffw_norm else None
        self.attention_dropout, self.feedforward_dropout = (
            keras.layers.Dropout(self.dropout, dtype=self.dtype_policy) if self.dropout else None for _ in range(2)
        )
        rematerialize_blocks_alone(self)

    def keep_last_fam(self, fam_length, hidden_dim):
        """Random state passing: adds the non-trainable weight in which a training step leaves row 0's last FAM."""
        self.last_fam = self._add_state("last_fam", (fam_length, hidden_dim))

    def carry_state(self, batch_size, fam_length, hidden_dim):
        """Stateful training: adds the non-trainable weights from which the next training step goes on."""
        attention = self.attention
        segment = (attention.block_size, attention.num_key_value_heads, attention.head_dim)
        shapes = {"carried_fam": (fam_length, hidden_dim)} if fam_length else {}
        if attention.memory_segments:
            shapes.update({f"carried_{name}": (attention.memory_segments, *segment) for name in ("key", "value")})
        self.carried_state = [self._add_state(name, (batch_size, *shape)) for name, shape in shapes.items()]

    def _add_state(self, name, shape):
        self._tracker.unlock()
        weight = self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)
        self._tracker.lock()
        return weight

    def call(
        self,
        inputs: Tensor,
        fam: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        passed: Tensor | None = None,
        carried: dict[str, Tensor] | None = None,
        training: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return self.call_around(lambda compute: compute, inputs, fam, inputs_mask, passed, carried, training)

    def call_around(self, rematerialize, inputs, fam=None, inputs_mask=None, passed=None, carried=None, training=None):
        """`call`, with all but the drawing of seeds and the keeping of state inside `rematerialize`."""
        inputs_mask = keras_mask(inputs) if inputs_mask is None else inputs_mask
        self.attention.check_call(inputs, fam, inputs_mask)
        seed, seeds = self._draw_seeds(training)
        update_seeds = None if seeds is None or fam is None else self._draw_seeds(training)
        start, options = self._begin(inputs, fam, passed, carried) if training else (fam, {})

        def compute(inputs, *fams):
            attention, last = attend_sequence(
                self.attention,
                inputs,
                fams[0] if fams else None,
                inputs_mask,
                self.pre_attention_norm,
                self.complete,
                seed=seed,
                update_seeds=update_seeds,
                **options,
            )
            prompts = [self.raise_prompt(fams[1])] if fams else []
            outputs = self._complete_tokens(attention, inputs, seeds, training)
            return (outputs, *prompts, *map(ops.stop_gradient, last or ()))

        fams = () if fam is None else (start, fam)
        outputs, *rest = rematerialize(compute)(inputs, *fams)
        if options:
            self._keep(rest[1:] if fams else rest)
        return outputs if fam is None else (outputs, rest[0])

    def _begin(self, inputs, fam, passed, carried):
        """Training: the FAM to start from, and the options of `attend_sequence` that tell where it comes from."""
        if passed is not None and self.last_fam is not None:
            start = ops.where(passed, ops.cast(self.last_fam, fam.dtype)[None], fam)
            started = ops.broadcast_to(ops.cast(passed, "bool"), (ops.shape(inputs)[0],))
            return start, dict(started=started, keep_last=True)
        if carried is None or not self.carried_state:
            return fam, {}
        kept = [ops.cast(weight, self.compute_dtype) for weight in self.carried_state]
        if fam is not None:
            fam = ops.where(carried["fresh"][:, None, None], fam, kept.pop(0))
        past = Past(*kept, carried["valid"]) if kept else None
        return fam, dict(started=carried["started"], past=past, keep_last=True)

    def _keep(self, last):
        if self.last_fam is not None:
            self.last_fam.assign(ops.cast(last[0][0], self.last_fam.dtype))
        else:
            for weight, value in zip(self.carried_state, last):
                weight.assign(ops.cast(value, weight.dtype))

    def complete(self, attention, residual, seeds=None):
        """The layer behind the attention, for tokens and FAM alike: A = attention + R, FF(norm(A)) + A.

        Args:
            attention: `[b, t, d]`.
            residual: `[b, t, d]`.
            seeds: a pair of drawn seeds for the two dropouts, or None.

        Returns:
            `[b, t, d]`.
        """
        seeds = seeds or (None, None)
        if self.post_attention_norm is not None:
            attention = self.post_attention_norm(attention)
        a = residual + _dropout(self.attention_dropout, attention, seeds[0])
        x = self.pre_ffw_norm(a)
        if self.ffw_gating_2 is None:
            x = _dense(self.ffw_gating, x)
        else:
            x = _gelu(_dense(self.ffw_gating, x)) * _dense(self.ffw_gating_2, x)
        x = _dense(self.ffw_linear, x)
        if self.post_ffw_norm is not None:
            x = self.post_ffw_norm(x)
        return _dropout(self.feedforward_dropout, x, seeds[1]) + a

    def _complete_tokens(self, attention, inputs, seeds, training):
        """`complete`; outside training, jax and torch read a long text in parts, whose activations are small.

        tensorflow gains nothing by it, and jax loses in training.
        """
        length = inputs.shape[1]
        if training or keras.config.backend() == "tensorflow" or length <= TOKENS_AT_ONCE:
            return self.complete(attention, inputs, seeds)
        count = -(-length // TOKENS_AT_ONCE)
        parts = [ops.moveaxis(split_blocks(x, -(-length // count), length), 1, 0) for x in (attention, inputs)]
        completed = ops.map(lambda part: self.complete(*part), parts)
        return merge_blocks(ops.moveaxis(completed, 0, 1), length)

    def raise_prompt(self, fam):
        """The prompt `[1 or b, N, d]` for the layer above: through this layer, seeing no token, without dropout."""
        return self.complete(self.attention.attend_prompt(self.pre_attention_norm(fam)), fam)

    def _draw_seeds(self, training):
        """One seed for the attention weights and a pair for `complete`; None without dropout."""
        if not training or not self.dropout:
            return None, None
        layers = (self.attention_dropout, self.feedforward_dropout)
        return self.attention.draw_seed(training), [layer.seed_generator.next() for layer in layers]

    def compute_mask(self, inputs, previous_mask):
        return previous_mask

    def compute_output_shape(self, inputs_shape, fam_shape=None):
        return inputs_shape if fam_shape is None else (inputs_shape, fam_shape)

    def compute_output_spec(self, inputs, fam=None, inputs_mask=None, passed=None, carried=None, training=None):
        self.attention.check_call(inputs, fam, inputs_mask)
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        return outputs if fam is None else (outputs, keras.KerasTensor(fam.shape, dtype=self.compute_dtype))

    def get_config(self):
        attention = self.attention.get_config()
        return {
            **{name: value for name, value in attention.items() if name not in ("name", "trainable", "dtype")},
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "normalization": self.normalization,
            "gated_feedforward": self.gated_feedforward,
            "use_post_attention_norm": self.use_post_attention_norm,
            "use_post_ffw_norm": self.use_post_ffw_norm,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_fam", name="gelu_approximate")
def _gelu(x):
    return keras.activations.gelu(x, approximate=True)


def _dense(layer, x):
    """A feed-forward layer on `[b, t, d]`, a `Dense` as one matrix product over rows.

    XLA cannot differentiate the product that tensorflow uses for rank 3 inside a loop over unknown many blocks.
    """
    if isinstance(layer, keras.layers.EinsumDense):
        return layer(x)
    rows = layer(ops.reshape(x, (-1, x.shape[-1])))
    return ops.reshape(rows, (*ops.shape(x)[:-1], rows.shape[-1]))


def _dropout(layer, x, seed):
    return x if layer is None else seeded_dropout(x, layer.rate, seed)
