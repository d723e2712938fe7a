"""Small real models of every family, with random values in every weight."""

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_fam

VOCABULARY = 50
GEMMA = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=48,
    head_dim=6,
)
GEMMA2 = dict(
    GEMMA,
    query_head_dim_normalize=True,
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
    attention_logit_soft_cap=5.0,
    final_logit_soft_cap=3.0,
    use_sliding_window_attention=True,
    sliding_window_size=5,
)
GPT2 = dict(
    vocabulary_size=VOCABULARY, num_layers=2, num_heads=4, hidden_dim=16, intermediate_dim=32, max_sequence_length=24
)
FAMILIES = {
    "gemma": (keras_hub.models.GemmaBackbone, GEMMA),
    "gemma2": (keras_hub.models.GemmaBackbone, GEMMA2),
    "gpt2": (keras_hub.models.GPT2Backbone, GPT2),
}
# Options that make a `FAMDecoderBlock` like a layer of that family.
GEMMA2_LIKE = dict(
    use_post_attention_norm=True,
    use_post_ffw_norm=True,
    logit_soft_cap=5.0,
    sliding_window_size=3,
    rope_max_wavelength=1e3,
)
GPT2_LIKE = dict(
    num_key_value_heads=4,
    normalization="layer_norm",
    gated_feedforward=False,
    use_bias=True,
    rope_max_wavelength=None,
    layer_norm_epsilon=1e-5,
    dropout=0.1,
)


def randomize(model, seed=0, scale=0.2):
    """Adds noise to every float weight, by path, so that all backends get the same values."""
    for index, variable in enumerate(sorted(model.weights, key=lambda v: v.path)):
        if "float" in str(variable.dtype) and "random_state_passing" not in variable.path:
            rng = np.random.default_rng([seed, index])
            base = 1.0 if variable.path.endswith("gamma") else 0.0
            variable.assign(base + scale * rng.standard_normal(variable.shape))


def stock_backbone(family, seed=0, **changes):
    cls, config = FAMILIES[family]
    backbone = cls(**{**config, **changes})
    randomize(backbone, seed)
    return backbone


def fam_backbone(family, block_size=4, memory_segments=1, fam_length=3, seed=0, stock=None, **options):
    stock = {} if stock is None else stock
    backbone = keras_fam.FAMBackbone(
        stock_backbone(family, seed, **stock), block_size, memory_segments, fam_length, **options
    )
    if fam_length:
        rng = np.random.default_rng(seed + 1)
        backbone.fam_prompt.embeddings.assign(0.3 * rng.standard_normal(backbone.fam_prompt.embeddings.shape))
    return backbone


def token_ids(batch, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length)).astype("int32")


def inputs(ids, mask=None):
    return {"token_ids": ids, "padding_mask": np.ones_like(ids) if mask is None else mask}


def forward(model, ids, mask=None):
    """The model's output as an array, by one compiled call on jax, where eager operations are compiled one by one."""
    if keras.config.backend() == "jax":
        return np.asarray(model.predict_on_batch(inputs(ids, mask)))
    return numpy(model(inputs(ids, mask)))


def weights_by_path(model):
    return {v.path: ops.convert_to_numpy(v) for v in model.weights}


def numpy(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)
