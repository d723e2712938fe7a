"""How the decoder layers of each keras_hub family are written down: where their weights are and what they compute.

This is the tests' own description, by weight paths and configuration alone; the package's adapters are checked by it.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Description:
    """One family's decoder layer for the reference. Paths are relative to the layer."""

    layer: str  # the layer's name, with {index}
    attention: str  # the attention layer's name
    norms: dict  # of "attention", "post_attention", "ffw", "post_ffw" to a path, if the layer has it
    ffw: tuple  # paths of gate (None: not gated), up, down
    norm: str  # "layer", "rms" or "rms1", whose scale is stored less one
    epsilon: float
    heads_first: bool  # kernels of queries and keys [n, d, h], else [d, n, h]
    activation: str = "gelu"
    query_norm: str | None = None
    key_norm: str | None = None
    qk_epsilon: float = 1e-6
    rotary: bool = True
    soft_cap: float | None = None
    window: float = np.inf
    wavelength: float = 10_000.0
    scaling: float = 1.0
    frequencies: dict | None = None  # Llama 3.1's adjustment


def describe(family, config, index):
    """The `Description` of layer `index` of a backbone of `family` with `config`."""
    return DESCRIPTIONS[family](config, index)


def _gemma(config, index):
    local = config["use_sliding_window_attention"] and index % 2 == 0
    norms = {"attention": "pre_attention_norm", "ffw": "pre_ffw_norm"}
    if config["use_post_attention_norm"]:
        norms["post_attention"] = "post_attention_norm"
    if config["use_post_ffw_norm"]:
        norms["post_ffw"] = "post_ffw_norm"
    return Description(
        layer="decoder_block_{index}",
        attention="attention",
        norms=norms,
        ffw=("ffw_gating", "ffw_gating_2", "ffw_linear"),
        norm="rms1",
        epsilon=1e-6,  # Like the stock layers, which ignore the configuration's.
        heads_first=True,
        soft_cap=config["attention_logit_soft_cap"],
        window=config["sliding_window_size"] if local else np.inf,
    )


def _gemma3(config, index):
    local = config["use_sliding_window_attention"] and index % 6 < 5
    description = _gemma({**config, "use_sliding_window_attention": False}, index)
    description.window = config["sliding_window_size"] if local else np.inf
    description.wavelength = 10_000.0 if local else 1_000_000.0
    description.scaling = config["local_rope_scaling_factor" if local else "global_rope_scaling_factor"]
    if config["use_query_key_norm"]:
        description.query_norm, description.key_norm = "query_norm", "key_norm"
    return description


def _gpt2(config, index):
    return Description(
        layer="transformer_layer_{index}",
        attention="self_attention",
        norms={"attention": "self_attention_layer_norm", "ffw": "feedforward_layer_norm"},
        ffw=(None, "feedforward_intermediate_dense", "feedforward_output_dense"),
        norm="layer",
        epsilon=1e-5,
        heads_first=False,
        rotary=False,
    )


def _llama(config, index):
    frequencies = None
    if config.get("rope_frequency_adjustment_factor") is not None:
        names = ("frequency_adjustment_factor", "low_freq_factor", "high_freq_factor", "pretraining_sequence_length")
        frequencies = {name: config[f"rope_{name}"] for name in names}
    return Description(
        layer="transformer_layer_{index}",
        attention="self_attention",
        norms={"attention": "self_attention_layernorm", "ffw": "feedforward_layernorm"},
        ffw=("feedforward_gate_dense", "feedforward_intermediate_dense", "feedforward_output_dense"),
        norm="rms",
        epsilon=config["layer_norm_epsilon"],
        heads_first=False,
        activation="silu",
        wavelength=config["rope_max_wavelength"],
        scaling=config.get("rope_position_scaling_factor", config.get("rope_scaling_factor", 1.0)),
        frequencies=frequencies,
    )


def _mistral(config, index):
    description = _llama(config, index)
    description.window = config["sliding_window"] or np.inf
    return description


def _qwen(config, index):
    description = _llama(config, index)
    description.window = config["sliding_window_size"] if config["use_sliding_window_attention"] else np.inf
    return description


def _qwen3(config, index):
    description = _llama(config, index)
    description.window = config["sliding_window_size"] or np.inf
    description.query_norm, description.key_norm = "query_dense_layernorm", "key_dense_layernorm"
    description.qk_epsilon = config["layer_norm_epsilon"]
    return description


DESCRIPTIONS = {
    "gemma": _gemma,
    "gemma2": _gemma,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "llama": _llama,
    "llama3": _llama,
    "mistral": _mistral,
    "qwen": _qwen,
    "qwen3": _qwen3,
}
FINAL_NORMS = {"gemma": "final_normalization", "gpt2": "layer_norm"}


def final_norm_path(family):
    return next((p for f, p in FINAL_NORMS.items() if family.startswith(f)), "sequence_output_layernorm")


def scales_embeddings(family):
    """Gemma multiplies token embeddings, and so the prompt, by sqrt(d)."""
    return family.startswith("gemma")
