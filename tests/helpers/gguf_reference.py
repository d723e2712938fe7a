"""What a GGUF file's tensors compute, in numpy and float64, in the file's own conventions: slow and readable."""

import numpy as np


def logits(metadata, weights, ids):
    """Logits of a Gemma 3 or Llama-type model.

    Args:
        metadata: dict, as in the file.
        weights: dict from tensor name to float64 array, as in the file.
        ids: int array, `(length,)`.

    Returns:
        float64, `(length, vocabulary size)`.
    """
    architecture = metadata["general.architecture"]
    gemma = architecture == "gemma3"
    epsilon = metadata[f"{architecture}.attention.layer_norm_rms_epsilon"]

    def norm(name, x):
        """RMS norm; nothing where the model has none of the name."""
        if f"{name}.weight" not in weights:
            return x
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]

    def dense(name, x):
        return x @ weights[f"{name}.weight"].T

    x = weights["token_embd.weight"][ids] * (weights["token_embd.weight"].shape[1] ** 0.5 if gemma else 1)
    for i in range(metadata[f"{architecture}.block_count"]):
        layer = f"blk.{i}"
        h = norm(f"{layer}.attn_norm", x)
        heads = metadata[f"{architecture}.attention.head_count"]
        pairs = [(name, heads) for name in "q"] + [
            (name, metadata[f"{architecture}.attention.head_count_kv"]) for name in "kv"
        ]
        q, k, v = (dense(f"{layer}.attn_{name}", h).reshape(len(ids), count, -1) for name, count in pairs)
        q, k = (
            rotated(norm(f"{layer}.attn_{name}_norm", part), angles(metadata, weights, i, part.shape), halves=gemma)
            for name, part in (("q", q), ("k", k))
        )
        window = metadata["gemma3.attention.sliding_window"] if gemma and i % 6 != 5 else len(ids)
        attended = np.stack(
            [attend(q[:, head], k[:, head // (heads // k.shape[1])], v[:, head // (heads // k.shape[1])], window)
             for head in range(heads)],
            axis=1,
        )  # fmt: skip
        attended = dense(f"{layer}.attn_output", attended.reshape(len(ids), -1))
        x = x + norm(f"{layer}.post_attention_norm", attended)
        h = norm(f"{layer}.ffn_norm", x)
        activation = gelu if gemma else silu
        h = dense(f"{layer}.ffn_down", activation(dense(f"{layer}.ffn_gate", h)) * dense(f"{layer}.ffn_up", h))
        x = x + norm(f"{layer}.post_ffw_norm", h)
    return dense("output" if "output.weight" in weights else "token_embd", norm("output_norm", x))


def angles(metadata, weights, layer, shape):
    """By how much each pair of a head's places is turned: `(length, head dim / 2)`."""
    length, _, dim = shape
    architecture = metadata["general.architecture"]
    base, scaling = metadata.get(f"{architecture}.rope.freq_base", 1e4), 1.0
    if architecture == "gemma3" and layer % 6 != 5:
        base = 1e4
    elif metadata.get(f"{architecture}.rope.scaling.type") == "linear":
        scaling = metadata[f"{architecture}.rope.scaling.factor"]
    frequencies = base ** (-np.arange(0, dim, 2) / dim) / weights.get("rope_freqs.weight", 1.0)
    return np.arange(length)[:, None] / scaling * frequencies


def rotated(x, angle, halves):
    """Turns pairs of places: place i with i + h/2 (`halves`), or 2i with 2i + 1."""
    dim = x.shape[-1]
    first, second = (slice(dim // 2), slice(dim // 2, dim)) if halves else (slice(0, dim, 2), slice(1, dim, 2))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    result = np.empty_like(x)
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result


def attend(q, k, v, window):
    scores = q @ k.T / q.shape[-1] ** 0.5
    distance = np.arange(len(q))[:, None] - np.arange(len(k))
    scores[(distance < 0) | (distance >= window)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))
