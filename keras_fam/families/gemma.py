"""Gemma 1, 2 and 3: gated feed-forward; soft caps, post-norms, query-key norms, local and global layers."""

import keras_hub
from keras import ops

from keras_fam.families.family import DecoderParts, Family, gelu, in_float32


class GemmaFamily(Family):
    """Adapts `keras_hub.models.GemmaBackbone`, which is Gemma 1 and 2."""

    backbone_cls = keras_hub.models.GemmaBackbone
    lora_layer_names = ("query", "key", "value", "attention_output", "ffw_gating", "ffw_gating_2", "ffw_linear")
    weight_axes = {
        "token_embedding/embeddings": "vd",
        r"decoder_block_\d+/attention/query": "hdc->hc",
        r"decoder_block_\d+/attention/(key|value)": "kdc->kc",
        r"decoder_block_\d+/attention/attention_output": "hcd->d",
        r"decoder_block_\d+/(ffw_gating|ffw_gating_2)": "df->f",
        r"decoder_block_\d+/ffw_linear": "fd->d",
    }

    def scale(self, embeddings):
        return embeddings * ops.cast(self.backbone.hidden_dim**0.5, embeddings.dtype)

    def parts(self, layer):
        attention = layer.attention
        return DecoderParts(
            query=attention.query_dense,
            key=attention.key_dense,
            value=attention.value_dense,
            output=attention.output_dense,
            num_query_heads=layer.num_query_heads,
            num_key_value_heads=layer.num_key_value_heads,
            head_dim=layer.head_dim,
            scale=self.score_scale(attention),
            pre_attention_norm=layer.pre_attention_norm,
            query_norm=getattr(attention, "query_norm", None),
            key_norm=getattr(attention, "key_norm", None),
            post_attention_norm=getattr(layer, "post_attention_norm", None),
            pre_ffw_norm=layer.pre_ffw_norm,
            gate=layer.gating_ffw,
            activation=gelu,
            up=layer.gating_ffw_2,
            down=layer.ffw_linear,
            post_ffw_norm=getattr(layer, "post_ffw_norm", None),
            # Gemma 1 interleaves the rotated halves: the same for queries and keys, so scores do not see it.
            rope=in_float32(attention.rope_layer),
            soft_cap=layer.logit_soft_cap,
            sliding_window=layer.sliding_window_size if layer.use_sliding_window_attention else None,
            weights_dropout=attention.dropout_layer,
            attention_dropout=getattr(layer, "attention_dropout", None),
            feedforward_dropout=getattr(layer, "feedforward_dropout", None),
            clips_float16=self.clips_float16,
        )

    clips_float16 = False

    def score_scale(self, attention):
        dim = attention.head_dim
        if not attention.query_head_dim_normalize:
            dim = self.backbone.hidden_dim // attention.num_query_heads
        return dim**-0.5


class Gemma3Family(GemmaFamily):
    """Adapts `keras_hub.models.Gemma3Backbone` for text."""

    backbone_cls = keras_hub.models.Gemma3Backbone
    clips_float16 = True

    @staticmethod
    def unsupported(config):
        if config.get("vision_encoder") is not None:
            return "it has a vision encoder (vision_encoder); only a Gemma 3 for text alone is supported"
        if config.get("use_bidirectional_attention"):
            return "its attention is bidirectional (use_bidirectional_attention=True)"
        if config.get("is_embedding_model"):
            return "it is an embedding model (is_embedding_model=True), whose output is a pooled vector"
        return None
