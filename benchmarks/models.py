"""The models that are compared: FAM, BSWA, stock, and stock under the dense mask of BSWA, all with random weights."""

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_fam

LORA_RANK = 8


def stock(size, num_layers=None):
    return keras_hub.models.GemmaBackbone(
        vocabulary_size=size.vocabulary_size,
        num_layers=num_layers or size.num_layers,
        num_query_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        hidden_dim=size.hidden_dim,
        intermediate_dim=size.intermediate_dim,
        head_dim=size.hidden_dim // size.num_heads,
    )


def fam(size, fam_length=None, **changes):
    fam_length = size.fam_length if fam_length is None else fam_length
    return keras_fam.FAMBackbone(stock(size, **changes), size.block_size, size.memory_segments, fam_length)


def bswa(size, **changes):
    return fam(size, fam_length=0, **changes)


def dense_bswa(size):
    """KerasHub's own layers under the dense length x length mask of BSWA, as a user without this package has it."""
    backbone = stock(size)
    for layer in backbone.transformer_layers:

        def mask(x, padding_mask, cache=None, cache_update_index=0):
            places = ops.arange(ops.shape(x)[1])
            distance = places[:, None] // size.block_size - places[None] // size.block_size
            seen = ops.logical_and(places[:, None] >= places[None], distance <= size.memory_segments)
            return ops.logical_and(seen[None], ops.cast(padding_mask, "bool")[:, None])

        layer._compute_attention_mask = mask
    return backbone


def gemma3(size, sliding_window, blocks=8):
    """Gemma 3's order of layers, five of six with a window of their own; blocks of a quarter of `size`'s."""
    block_size = max(size.block_size // 4, 1)
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=size.vocabulary_size,
        image_size=None,
        num_layers=6,
        num_query_heads=size.num_heads,
        num_key_value_heads=size.num_heads // 2,
        hidden_dim=size.hidden_dim,
        intermediate_dim=size.intermediate_dim // 2,
        head_dim=size.hidden_dim // size.num_heads,
        use_query_key_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=sliding_window * block_size,
        vision_encoder=None,
    )
    fam_length = min(size.fam_length, block_size)
    return keras_fam.FAMBackbone(backbone, block_size, memory_segments=blocks - 1, fam_length=fam_length)


MODELS = {
    "fam": fam,
    "bswa": bswa,
    "stock": stock,
    "dense_bswa": dense_bswa,
    "short_rings": lambda size: gemma3(size, sliding_window=2),
    # Windows as long as all that any layer sees: every layer keeps a ring of all blocks.
    "long_rings": lambda size: gemma3(size, sliding_window=8),
}


def language_model(backbone, **compile_options):
    """`backbone` as a language model that is compiled for training."""
    if isinstance(backbone, keras_fam.FAMBackbone):
        lm = keras_fam.FAMCausalLM(backbone)
    else:
        lm = keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    lm.compile(optimizer=keras.optimizers.SGD(1e-3), loss=loss, sampler="greedy", **compile_options)
    return lm


def batch(vocabulary_size, length, rows=1):
    """`(inputs, targets)` for `train_on_batch`; `inputs` alone for `predict_on_batch`."""
    ids = np.random.default_rng(0).integers(0, vocabulary_size, (rows, length + 1)).astype("int32")
    return {"token_ids": ids[:, :-1], "padding_mask": np.ones((rows, length), "int32")}, ids[:, 1:]


def with_lora(size, loss, piece, preset=None, dtype="float32", remat=False):
    """A model that trains by LoRA on token ids: `loss` "chunked" or "plain", or "stock", KerasHub's own model.

    `remat` recomputes every decoder layer in the gradient.
    """
    memory = dict(block_size=size.block_size, memory_segments=size.memory_segments, fam_length=size.fam_length)
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(0)
    with keras.RematScope("full" if remat else None):
        if preset:
            kind = keras_hub.models.CausalLM if loss == "stock" else keras_fam.FAMCausalLM
            lm = kind.from_preset(preset, dtype=dtype, **({} if loss == "stock" else memory))
        elif loss == "stock":
            lm = keras_hub.models.GemmaCausalLM(stock(size), preprocessor=None)
        else:
            lm = keras_fam.FAMCausalLM(fam(size))
    lm.preprocessor = None
    (lm.backbone if loss == "stock" else lm).enable_lora(LORA_RANK, target_layer_names=["query", "value"])
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    lm.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras_fam.ChunkedCrossentropy(piece) if loss == "chunked" else plain,
    )
    return lm
