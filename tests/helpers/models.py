"""Small real models of every family, with random values in every weight."""

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_fam
from helpers.reference import Memory, reference_forward

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
GEMMA3 = dict(
    GEMMA2,
    intermediate_dim=24,
    attention_logit_soft_cap=None,
    final_logit_soft_cap=None,
    image_size=None,
    use_query_key_norm=True,
    local_rope_scaling_factor=1.0,
    global_rope_scaling_factor=8.0,
)
LLAMA = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=24,
    layer_norm_epsilon=1e-5,
)
LLAMA3 = dict(
    LLAMA,
    tie_word_embeddings=True,
    rope_max_wavelength=500_000,
    rope_frequency_adjustment_factor=8.0,
    rope_low_freq_factor=1.0,
    rope_high_freq_factor=4.0,
    rope_pretraining_sequence_length=32,
)
FAMILIES = {
    "gemma": (keras_hub.models.GemmaBackbone, GEMMA),
    "gemma2": (keras_hub.models.GemmaBackbone, GEMMA2),
    "gemma3": (keras_hub.models.Gemma3Backbone, GEMMA3),
    "gpt2": (keras_hub.models.GPT2Backbone, GPT2),
    "llama": (keras_hub.models.LlamaBackbone, LLAMA),
    "llama3": (keras_hub.models.Llama3Backbone, LLAMA3),
    "mistral": (keras_hub.models.MistralBackbone, dict(LLAMA, sliding_window=5, head_dim=6)),
    # Windows of Qwen have tests of their own: the stock layers' fused attention forgets them.
    "qwen": (keras_hub.models.QwenBackbone, LLAMA),
    "qwen3": (keras_hub.models.Qwen3Backbone, dict(LLAMA, head_dim=6, sliding_window_size=None)),
}
EVERY_PART = ("gemma", "gemma2", "gemma3", "gpt2", "llama3")  # Every part that a layer of any family has.
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
            if "norm" in variable.path and variable.path.endswith("scale") and "transformer_layer" in variable.path:
                base = 1.0  # Gemma alone stores its scales less one, and calls its layers decoder blocks.
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
    backbone.tests_family = family
    rng = np.random.default_rng(seed + 1)
    if fam_length:
        backbone.fam_prompt.embeddings.assign(0.3 * rng.standard_normal(backbone.fam_prompt.embeddings.shape))
    for layer in backbone.transformer_layers:
        if layer.memory_gate is not None:
            layer.memory_gate.assign(rng.standard_normal())
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


def memory_of(backbone):
    """The options of a `FAMBackbone` for the reference."""
    options = backbone.options
    sizes = (options.block_size, options.memory_segments, options.fam_length)
    return Memory(*sizes, span=options.memory_span, sink=options.sink_token_id)


def reference(backbone, ids, mask=None, weights=None, **options):
    """`reference_forward` of a `FAMBackbone` made by `fam_backbone`."""
    config, weights = backbone.family.backbone.get_config(), weights or weights_by_path(backbone)
    return reference_forward(backbone.tests_family, config, weights, ids, mask, memory=memory_of(backbone), **options)
