"""Gemma 1 and 2: rotary positions, grouped queries, gated feed-forward; soft caps, post-norms, sliding windows."""

import keras_hub
from keras import ops

from keras_fam.layers.decoder_block import FAMDecoderBlock


class GemmaFamily:
    """Adapts a `keras_hub.models.GemmaBackbone`."""

    backbone_cls = keras_hub.models.GemmaBackbone
    lora_layer_names = ("query", "key", "value", "attention_output", "ffw_gating", "ffw_gating_2", "ffw_linear")
    position_table_length = None  # Rotary positions have no table.

    def __init__(self, backbone):
        self.backbone = backbone

    @property
    def final_norm(self):
        return self.backbone.layer_norm

    def scale(self, embeddings):
        """What happens to token embeddings, and so to the prompt: times sqrt(d)."""
        return embeddings * ops.cast(self.backbone.hidden_dim**0.5, embeddings.dtype)

    def embed(self, token_ids, places):
        """int `[b, t]` to `[b, t, d]`; the places are for the layers to rotate by."""
        return self.scale(self.backbone.token_embedding(token_ids))

    def decoder_blocks(self, **memory):
        """A `FAMDecoderBlock` for every stock layer, on that layer's own sublayers.

        Args:
            **memory: `block_size`, `memory_segments`, `stop_gradient_memory` and `truncate_bptt`.

        Returns:
            list of `FAMDecoderBlock`.
        """
        return [self._decoder_block(layer, memory) for layer in self.backbone.transformer_layers]

    def _decoder_block(self, layer, memory):
        attention = layer.attention
        block = FAMDecoderBlock(
            num_query_heads=layer.num_query_heads,
            num_key_value_heads=layer.num_key_value_heads,
            head_dim=layer.head_dim,
            intermediate_dim=layer.intermediate_dim // 2,
            rope_max_wavelength=attention.rope_layer.max_wavelength,
            use_post_attention_norm=layer.use_post_attention_norm,
            use_post_ffw_norm=layer.use_post_ffw_norm,
            logit_soft_cap=layer.logit_soft_cap,
            sliding_window_size=layer.sliding_window_size if layer.use_sliding_window_attention else None,
            layer_norm_epsilon=layer.layer_norm_epsilon,
            dropout=layer.dropout,
            dtype=layer.dtype_policy,
            name=layer.name,
            **memory,
        )
        block.adopt(
            attention_name=attention.name,
            attention=dict(
                query=attention.query_dense,
                key=attention.key_dense,
                value=attention.value_dense,
                attention_output=attention.output_dense,
                dropout_layer=attention.dropout_layer,
                # Gemma interleaves the rotated halves: the same for queries and keys, so scores do not see it.
                rope=attention.rope_layer,
            ),
            pre_attention_norm=layer.pre_attention_norm,
            post_attention_norm=getattr(layer, "post_attention_norm", None),
            pre_ffw_norm=layer.pre_ffw_norm,
            ffw_gate=layer.gating_ffw,
            ffw_in=layer.gating_ffw_2,
            ffw_out=layer.ffw_linear,
            post_ffw_norm=getattr(layer, "post_ffw_norm", None),
            attention_dropout=getattr(layer, "attention_dropout", None),
            feedforward_dropout=getattr(layer, "feedforward_dropout", None),
        )
        return block
