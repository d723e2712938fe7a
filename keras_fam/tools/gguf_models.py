"""How each architecture's metadata and tensors become a KerasHub backbone's config and variables.

In tables of shapes: v vocabulary, d hidden dim, f intermediate dim, n query heads, k key-value heads, h head dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LLAMA31_LENGTH = 8192  # the context, in tokens, from which Llama 3.1 scales its rotation


class Weight(NamedTuple):
    """A variable, and how it is made of a tensor.

    Attributes:
        variable: str, path of the variable in the backbone; or None, for a tensor that the config stands for.
        shape: tuple. Shape that the tensor must have in the file.
        convert: function from the tensor's values to the variable's.
    """

    variable: str | None
    shape: tuple
    convert: Callable = np.asarray


def model_in(file):
    """What model a file holds.

    Args:
        file: `GGUFFile`.

    Returns:
        family (str, the beginning of the KerasHub class names), the backbone's arguments (dict), and its weights
        (dict from tensor name to `Weight`).

    Raises:
        ValueError: if KerasHub has no such model.
    """
    kind = (file.get("general.architecture", str), file.get("tokenizer.ggml.model", str))
    if kind not in _FAMILIES:
        raise file.error(f"architecture and tokenizer must be one of {sorted(_FAMILIES)}. Received: {kind}")
    family, make_config, make_weights = _FAMILIES[kind]
    config = make_config(file)
    return family, config, make_weights(config)


def check_tensors(file, weights):
    """Compares a file's tensors with those that a model is made of, by name and shape.

    Args:
        file: `GGUFFile`.
        weights: dict from tensor name to `Weight`.

    Raises:
        ValueError: if a tensor is missing, unknown or of another shape.
    """
    for name in weights:
        file.shape(name)
    for name, shape in file.shapes.items():
        if name not in weights:
            raise file.error(f"tensor `{name}` has no place in the model")
        if shape != weights[name].shape:
            raise file.error(f"tensor `{name}` must be of shape {weights[name].shape}. Received: {shape}")


# --- Gemma 3 -------------------------------------------------------------------------------------------------


def gemma3_config(file):
    """Arguments of `Gemma3Backbone` for a file of architecture `gemma3`.

    Raises:
        ValueError: if the file describes a model that KerasHub's Gemma 3 cannot be.
    """
    _expect(file, "gemma3.rope.freq_base", float, 1e6)
    _expect(file, "gemma3.rope.freq_base_swa", float, 1e4)
    _expect(file, "gemma3.attention.sliding_window_pattern", int, 6)
    _expect(file, "gemma3.attention.value_length", int, file.get("gemma3.attention.key_length", int))
    # KerasHub's decoder block keeps its own epsilon, whatever the backbone is given.
    _expect(file, "gemma3.attention.layer_norm_rms_epsilon", float, 1e-6)
    layers = file.get("gemma3.block_count", int)
    if layers == 62:
        raise file.error("Gemma 3 27B scales its queries by d / n; KerasHub's decoder block always scales them by h")
    return {
        "vocabulary_size": file.shape("token_embd.weight")[0],
        "image_size": 896,
        "num_layers": layers,
        "num_query_heads": file.get("gemma3.attention.head_count", int),
        "num_key_value_heads": file.get("gemma3.attention.head_count_kv", int),
        "hidden_dim": file.get("gemma3.embedding_length", int),
        "intermediate_dim": file.get("gemma3.feed_forward_length", int),
        "head_dim": file.get("gemma3.attention.key_length", int),
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "final_logit_soft_cap": file.get("gemma3.final_logit_softcapping", float, None),
        "use_sliding_window_attention": True,
        "sliding_window_size": file.get("gemma3.attention.sliding_window", int),
        "global_rope_scaling_factor": _linear_scaling(file, "gemma3"),
    }


def gemma3_weights(config):
    """The tensors of a Gemma 3 model: a dict from name to `Weight`."""
    n, k, h = (config[name] for name in ("num_query_heads", "num_key_value_heads", "head_dim"))
    d, f = config["hidden_dim"], config["intermediate_dim"]
    weights = {
        "token_embd.weight": Weight("token_embedding/embeddings", (config["vocabulary_size"], d)),
        "output_norm.weight": Weight("final_normalization/scale", (d,), _minus_one),
    }
    for i in range(config["num_layers"]):
        block = {
            "attn_norm": Weight("pre_attention_norm/scale", (d,), _minus_one),
            "attn_q": Weight("attention/query/kernel", (n * h, d), lambda x: x.reshape(n, h, d).transpose(0, 2, 1)),
            "attn_k": Weight("attention/key/kernel", (k * h, d), lambda x: x.reshape(k, h, d).transpose(0, 2, 1)),
            "attn_v": Weight("attention/value/kernel", (k * h, d), lambda x: x.reshape(k, h, d).transpose(0, 2, 1)),
            "attn_q_norm": Weight("attention/query_norm/scale", (h,), _minus_one),
            "attn_k_norm": Weight("attention/key_norm/scale", (h,), _minus_one),
            "attn_output": Weight(
                "attention/attention_output/kernel", (d, n * h), lambda x: x.reshape(d, n, h).transpose(1, 2, 0)
            ),
            "post_attention_norm": Weight("post_attention_norm/scale", (d,), _minus_one),
            "ffn_norm": Weight("pre_ffw_norm/scale", (d,), _minus_one),
            "ffn_gate": Weight("ffw_gating/kernel", (f, d), np.transpose),
            "ffn_up": Weight("ffw_gating_2/kernel", (f, d), np.transpose),
            "ffn_down": Weight("ffw_linear/kernel", (d, f), np.transpose),
            "post_ffw_norm": Weight("post_ffw_norm/scale", (d,), _minus_one),
        }
        weights |= _named(block, i, "decoder_block")
    return weights


# --- Llama type ----------------------------------------------------------------------------------------------


def llama_config(file):
    """Arguments of `LlamaBackbone` or `Llama3Backbone` for a file of architecture `llama`.

    Raises:
        ValueError: if the file describes a model that KerasHub's Llama cannot be.
    """
    hidden_dim = file.get("llama.embedding_length", int)
    heads = file.get("llama.attention.head_count", int)
    head_dim = hidden_dim // heads
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        _expect(file, f"llama.{key}", int, head_dim)
    _expect(file, "llama.expert_count", int, 0)
    wavelength = file.get("llama.rope.freq_base", float, 1e4)
    return {
        "vocabulary_size": file.shape("token_embd.weight")[0],
        "num_layers": file.get("llama.block_count", int),
        "num_query_heads": heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": file.get("llama.feed_forward_length", int),
        "num_key_value_heads": file.get("llama.attention.head_count_kv", int, heads),
        "rope_max_wavelength": wavelength,
        "layer_norm_epsilon": _rounded(file.get("llama.attention.layer_norm_rms_epsilon", float)),
        "tie_word_embeddings": "output.weight" not in file.shapes,
        **_frequency_scaling(file, wavelength, head_dim),
    }


def llama_weights(config):
    """The tensors of a Llama-type model: a dict from name to `Weight`."""
    n, k, v = (config[name] for name in ("num_query_heads", "num_key_value_heads", "vocabulary_size"))
    d, f = config["hidden_dim"], config["intermediate_dim"]
    h = d // n

    def heads_last(x):
        return x.reshape(-1, h, d).transpose(2, 0, 1)

    def rotated_heads_last(x):
        # The file holds each head's two halves interleaved: places 0, h/2, 1, h/2 + 1, … of the head.
        return heads_last(x.reshape(-1, h // 2, 2, d).swapaxes(1, 2))

    weights = {
        "token_embd.weight": Weight("token_embedding/embeddings", (v, d)),
        "output_norm.weight": Weight("sequence_output_layernorm/scale", (d,)),
    }
    if not config["tie_word_embeddings"]:
        weights["output.weight"] = Weight("token_embedding/reverse_embeddings", (v, d), np.transpose)
    if config.get("rope_pretraining_sequence_length") == LLAMA31_LENGTH:
        weights["rope_freqs.weight"] = Weight(None, (h // 2,))
    for i in range(config["num_layers"]):
        block = {
            "attn_norm": Weight("self_attention_layernorm/scale", (d,)),
            "attn_q": Weight("self_attention/query/kernel", (d, d), rotated_heads_last),
            "attn_k": Weight("self_attention/key/kernel", (k * h, d), rotated_heads_last),
            "attn_v": Weight("self_attention/value/kernel", (k * h, d), heads_last),
            "attn_output": Weight(
                "self_attention/attention_output/kernel", (d, d), lambda x: x.transpose().reshape(n, h, d)
            ),
            "ffn_norm": Weight("feedforward_layernorm/scale", (d,)),
            "ffn_gate": Weight("feedforward_gate_dense/kernel", (f, d), np.transpose),
            "ffn_up": Weight("feedforward_intermediate_dense/kernel", (f, d), np.transpose),
            "ffn_down": Weight("feedforward_output_dense/kernel", (d, f), np.transpose),
        }
        weights |= _named(block, i, "transformer_layer")
    return weights


def _frequency_scaling(file, wavelength, head_dim):
    """Scaling of the rotation: none, Llama 3.1's by frequency, or one factor for all frequencies."""
    factor = _linear_scaling(file, "llama")
    if "rope_freqs.weight" in file.shapes:
        # The file holds each frequency's divisor, KerasHub wants the rule that makes them.
        divisors = file.array("rope_freqs.weight")
        rule = _frequency_rule(max(1.0, float(divisors.max())), LLAMA31_LENGTH)
        expected = _frequency_divisors(rule, 2 * np.pi * wavelength ** (np.arange(0, head_dim, 2) / head_dim))
        if factor != 1 or divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
            raise file.error("tensor `rope_freqs.weight` does not follow Llama 3.1's rule, which KerasHub computes")
        return rule
    # KerasHub's Llama ignores `rope_position_scaling_factor`. By Llama 3.1's rule for a context of one token, every
    # period is longer than the context, so every frequency is divided.
    return {} if factor == 1 else _frequency_rule(factor, length=1)


def _frequency_rule(factor, length):
    return {
        "rope_frequency_adjustment_factor": factor,
        "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0,
        "rope_pretraining_sequence_length": length,
    }


def _frequency_divisors(rule, periods):
    """Short periods stay, those longer than the context are divided by the factor, between them it goes over."""
    factor, low, high, length = rule.values()
    kept = np.clip((length / periods - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)


# --- All ----------------------------------------------------------------------------------------------------


def _named(block, i, layer):
    return {
        f"blk.{i}.{name}.weight": weight._replace(variable=f"{layer}_{i}/{weight.variable}")
        for name, weight in block.items()
    }


def _minus_one(scale):
    # The file holds 1 + w, KerasHub's variable is w.
    return scale - 1


def _rounded(value):
    # Metadata are float32: 1e-6 comes as 9.99999997e-07.
    return float(f"{value:.6g}")


def _expect(file, key, kind, value):
    """Refuses a file whose metadata, where it has the key, say something else than KerasHub computes."""
    received = file.get(key, kind, value)
    if kind is float:
        received = _rounded(received)
    if received != value:
        raise file.error(f"metadata `{key}` must be {value}, as KerasHub computes it. Received: {received}")


def _linear_scaling(file, architecture):
    """By how much positions are divided before they rotate queries and keys."""
    _expect(file, f"{architecture}.rope.scale_linear", float, 1.0)
    kind = file.get(f"{architecture}.rope.scaling.type", str, "none")
    if kind == "none":
        return 1.0
    _expect(file, f"{architecture}.rope.scaling.type", str, "linear")
    return file.get(f"{architecture}.rope.scaling.factor", float)


_FAMILIES = {  # architecture and kind of tokenizer
    ("gemma3", "llama"): ("Gemma3", gemma3_config, gemma3_weights),
    ("llama", "gpt2"): ("Llama3", llama_config, llama_weights),
    ("llama", "llama"): ("Llama", llama_config, llama_weights),
}
