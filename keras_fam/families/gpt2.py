"""GPT-2: learned absolute positions, layer norms, biases and dropout."""

import keras_hub

from keras_fam.layers.decoder_block import FAMDecoderBlock


class GPT2Family:
    """Adapts a `keras_hub.models.GPT2Backbone`."""

    backbone_cls = keras_hub.models.GPT2Backbone
    lora_layer_names = (
        "query",
        "key",
        "value",
        "attention_output",
        "feedforward_intermediate_dense",
        "feedforward_output_dense",
    )

    def __init__(self, backbone):
        self.backbone = backbone

    @property
    def position_table_length(self):
        return self.backbone.max_sequence_length

    @property
    def final_norm(self):
        return self.backbone.layer_norm

    def scale(self, embeddings):
        """What happens to token embeddings before positions, and so to the prompt: nothing."""
        return embeddings

    def embed(self, token_ids, places):
        """int `[b, t]` at the rows `places` `[1 or b, t]` of the position table, to `[b, t, d]`."""
        tokens = self.backbone.token_embedding(token_ids)
        positions = self.backbone.position_embedding(tokens, positions=places)
        return self.backbone.embeddings_dropout(self.backbone.embeddings_add((tokens, positions)))

    def decoder_blocks(self, **memory):
        """A `FAMDecoderBlock` for every stock layer, on that layer's own sublayers.

        Args:
            **memory: `block_size`, `memory_segments`, `stop_gradient_memory` and `truncate_bptt`.

        Returns:
            list of `FAMDecoderBlock`.
        """
        return [self._decoder_block(layer, memory) for layer in self.backbone.transformer_layers]

    def _decoder_block(self, layer, memory):
        attention = layer._self_attention_layer
        block = FAMDecoderBlock(
            num_query_heads=layer.num_heads,
            num_key_value_heads=layer.num_heads,
            head_dim=self.backbone.hidden_dim // layer.num_heads,
            intermediate_dim=layer.intermediate_dim,
            normalization="layer_norm",
            gated_feedforward=False,
            use_bias=True,
            rope_max_wavelength=None,
            layer_norm_epsilon=layer.layer_norm_epsilon,
            dropout=layer.dropout,
            dtype=layer.dtype_policy,
            name=layer.name,
            **memory,
        )
        block.adopt(
            attention_name=attention.name,
            attention=dict(
                query=attention._query_dense,
                key=attention._key_dense,
                value=attention._value_dense,
                attention_output=attention._output_dense,
                dropout_layer=attention._dropout_layer,
            ),
            pre_attention_norm=layer._self_attention_layer_norm,
            pre_ffw_norm=layer._feedforward_layer_norm,
            ffw_in=layer._feedforward_intermediate_dense,
            ffw_out=layer._feedforward_output_dense,
            attention_dropout=layer._self_attention_dropout,
            feedforward_dropout=layer._feedforward_dropout,
        )
        return block
