"""GPT-2: learned absolute positions, layer norms, biases and dropout."""

import keras_hub

from keras_fam.families.family import DecoderParts, Family


class GPT2Family(Family):
    """Adapts `keras_hub.models.GPT2Backbone`."""

    backbone_cls = keras_hub.models.GPT2Backbone
    lora_layer_names = (
        "query",
        "key",
        "value",
        "attention_output",
        "feedforward_intermediate_dense",
        "feedforward_output_dense",
    )
    weight_axes = {
        "token_embedding/embeddings": "vd",
        "position_embedding/embeddings": "pd",
        r"transformer_layer_\d+/self_attention/query": "dhc->hc",
        r"transformer_layer_\d+/self_attention/(key|value)": "dkc->kc",
        r"transformer_layer_\d+/self_attention/attention_output": "hcd->d",
        r"transformer_layer_\d+/feedforward_intermediate_dense": "df->f",
        r"transformer_layer_\d+/feedforward_output_dense": "fd->d",
    }
    table_length_name = "max_sequence_length"

    def embed(self, token_ids, places):
        tokens = self.backbone.token_embedding(token_ids)
        positions = self.backbone.position_embedding(tokens, positions=places)
        return self.backbone.embeddings_add((tokens, positions))

    @property
    def embeddings_dropout(self):
        return self.backbone.embeddings_dropout

    def parts(self, layer):
        attention, head_dim = layer._self_attention_layer, self.backbone.hidden_dim // layer.num_heads
        return DecoderParts(
            query=attention._query_dense,
            key=attention._key_dense,
            value=attention._value_dense,
            output=attention._output_dense,
            num_query_heads=layer.num_heads,
            num_key_value_heads=layer.num_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            pre_attention_norm=layer._self_attention_layer_norm,
            pre_ffw_norm=layer._feedforward_layer_norm,
            up=layer._feedforward_intermediate_dense,
            down=layer._feedforward_output_dense,
            weights_dropout=attention._dropout_layer,
            attention_dropout=layer._self_attention_dropout,
            feedforward_dropout=layer._feedforward_dropout,
        )
