"""Llama 2 and 3, Mistral, Qwen 2.5 and Qwen 3: one layout, with a window, biases or query-key norms."""

import keras_hub

from keras_fam.families.family import DecoderParts, Family, in_float32, silu


class LlamaFamily(Family):
    """Adapts `keras_hub.models.LlamaBackbone` and `Llama3Backbone` (Llama 3, 3.1, 3.2)."""

    backbone_cls = (keras_hub.models.LlamaBackbone, keras_hub.models.Llama3Backbone)
    lora_layer_names = (
        "query",
        "key",
        "value",
        "attention_output",
        "feedforward_gate_dense",
        "feedforward_intermediate_dense",
        "feedforward_output_dense",
    )
    unsaved_arguments = ("tie_word_embeddings",)  # KerasHub's Llama, in 0.32.
    # KerasHub's own maps of Llama and Qwen name the axes of query, key and value in the order of Gemma's kernels,
    # [heads, d, c]. These kernels are [d, heads, c]. By those maps d would be split over the model dimension, and the
    # heads over the data dimension: every device would then attend with all heads.
    weight_axes = {
        "token_embedding/embeddings": "vd",
        "token_embedding/reverse_embeddings": "dv",
        r"transformer_layer_\d+/self_attention/query": "dhc->hc",
        r"transformer_layer_\d+/self_attention/(key|value)": "dkc->kc",
        r"transformer_layer_\d+/self_attention/attention_output": "hcd->d",
        r"transformer_layer_\d+/(feedforward_gate_dense|feedforward_intermediate_dense)": "df->f",
        r"transformer_layer_\d+/feedforward_output_dense": "fd->d",
    }

    def parts(self, layer):
        attention = layer._self_attention_layer
        *_, heads, head_dim = attention._query_dense.compute_output_shape((None, None, self.backbone.hidden_dim))
        return DecoderParts(
            query=attention._query_dense,
            key=attention._key_dense,
            value=attention._value_dense,
            output=attention._output_dense,
            num_query_heads=heads,
            num_key_value_heads=layer.num_key_value_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            pre_attention_norm=layer._self_attention_layernorm,
            query_norm=getattr(attention, "_query_dense_layer_norm", None),
            key_norm=getattr(attention, "_key_dense_layer_norm", None),
            pre_ffw_norm=layer._feedforward_layernorm,
            gate=layer._feedforward_gate_dense,
            activation=silu,
            up=layer._feedforward_intermediate_dense,
            down=layer._feedforward_output_dense,
            rope=in_float32(attention.rotary_embedding_layer),
            sliding_window=self.sliding_window,
            attended_dropout=attention._dropout_layer,
            attention_dropout=layer._self_attention_dropout,
        )

    @property
    def sliding_window(self):
        return None


class MistralFamily(LlamaFamily):
    """Adapts `keras_hub.models.MistralBackbone`."""

    backbone_cls = keras_hub.models.MistralBackbone

    @property
    def sliding_window(self):
        return self.backbone.sliding_window


class QwenFamily(LlamaFamily):
    """Adapts `keras_hub.models.QwenBackbone` (Qwen 2 and 2.5), with the window that its fused attention forgets."""

    backbone_cls = keras_hub.models.QwenBackbone

    @property
    def sliding_window(self):
        return self.backbone.sliding_window_size if self.backbone.use_sliding_window_attention else None


class Qwen3Family(LlamaFamily):
    """Adapts `keras_hub.models.Qwen3Backbone`."""

    backbone_cls = keras_hub.models.Qwen3Backbone

    @property
    def sliding_window(self):
        return self.backbone.sliding_window_size
