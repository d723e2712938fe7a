"""TransformerFAM (arXiv 2404.09173) in plain NumPy float64: the slow truth the fast implementation is tested against.

It follows the specification line by line: row by row, block by block, one attention query at a time, with absolute
positions and no cache. What a family's layer is, it asks `helpers.families`.

Symbols: B block size, m memory segments, N FAM length, d hidden size, tau block index, I a layer's input, F its FAM.
"""

from dataclasses import dataclass

import numpy as np

from helpers.families import describe, final_norm_path, scales_embeddings


@dataclass
class Memory:
    """The options of memory: B, m, N; `span` one number or one for each vector; `sink` a token id."""

    block_size: int
    memory_segments: int
    fam_length: int
    span: object = None
    sink: int | None = None


def reference_forward(family, config, weights, token_ids, padding_mask=None, *, memory,
                      position_offset=None, start=None, lora_alpha=None, fam_weights=None):  # fmt: skip
    """The backbone's inference forward pass.

    Args:
        family: a name of `helpers.families.DESCRIPTIONS`.
        config: `get_config()` of the stock keras_hub backbone.
        weights: `{variable path: array}` with the stock paths, "fam_prompt/embeddings" [N, d], LoRA's and gates if any.
        token_ids: int array [batch, length].
        padding_mask: [batch, length], 1 for real tokens; None when all are real.
        memory: `Memory`.
        position_offset: int array [batch], for learned positions only; RoPE depends on differences alone.
        start: list over layers of [batch, N, d], carried FAMs to start from instead of the learned prompt.
        lora_alpha: LoRA's alpha; None means alpha = rank, as in Keras.
        fam_weights: like `weights`, what prompt and FAM go through, if not the same as tokens.

    Returns:
        `(hidden [batch, length, d], fams)`, fams being a list over layers of [batch, N, d]: each layer's FAM after the
        last complete block.
    """
    weights = merge_lora(weights, lora_alpha)
    layers, fam_layers = (
        [Layer(describe(family, config, index), each, index) for index in range(config["num_layers"])]
        for each in (weights, weights if fam_weights is None else fam_weights)
    )
    token_ids = np.asarray(token_ids)
    real = np.ones(token_ids.shape, bool) if padding_mask is None else np.asarray(padding_mask).astype(bool)
    offsets = np.zeros(len(token_ids), int) if position_offset is None else np.asarray(position_offset)
    x = [embed_tokens(family, config, weights, ids, at) for ids, at in zip(token_ids, offsets, strict=True)]

    prompt = np.zeros((0, config["hidden_dim"]))
    if memory.fam_length > 0 and start is None:
        prompt = scale_embedding(family, config, weights["fam_prompt/embeddings"])  # no position embedding
        assert len(prompt) == memory.fam_length, f"The prompt has {len(prompt)} rows, not {memory.fam_length}."
    # The start token as it stands alone at place 0: it sees only itself, so it goes up like a prompt of one vector.
    sink = np.zeros((0, config["hidden_dim"]))
    if memory.sink is not None:
        sink = embed_tokens(family, config, weights, np.array([memory.sink]), 0)

    fams = []
    for index, layer in enumerate(zip(layers, fam_layers, strict=True)):
        layer_fams = []
        for row in range(len(token_ids)):
            fam = prompt if start is None else np.asarray(start[index][row], "float64")
            x[row], fam = run_layer(layer, x[row], real[row], (fam, start is None), sink, memory)
            layer_fams.append(fam)
        fams.append(np.stack(layer_fams))
        prompt, sink = lift_prompt(layer[1], prompt), lift_prompt(layer[0], sink)
    return final_norm(family, config, weights, np.stack(x)), fams


def run_layer(layers, x, real, start, sink, memory):
    """One layer over one row.

    Args:
        layers: two `Layer`, for tokens and for FAM.
        x: [length, d].
        real: bool [length], False at padding.
        start: `(fam [N, d], is_learned)`: F before the first block, and whether it is the learned prompt, which carries
            no context.
        sink: [1, d], the start token at this layer, or [0, d].
        memory: `Memory`.

    Returns:
        The layer's output [length, d] and its FAM after the last complete block [N, d].
    """
    (fam, is_learned_start), block_size, (layer, fam_layer) = start, memory.block_size, layers
    length, fam_places = len(x), np.arange(-len(fam), 0)
    q, k, v = layer.qkv(x, np.arange(length))  # Q, K, V = QKV(norm(I_tau)); token i of block tau at tau*B + i
    attended = np.zeros_like(q)
    for begin in range(0, length, block_size):  # begin = tau*B
        end = begin + block_size
        # Qf, Kf, Vf = QKV(norm(F_{tau-1})); Kf on tau*B-N ... tau*B-1, Qf on tau*B+B-N ... tau*B+B-1
        _, kf, vf = fam_layer.qkv(fam, begin + fam_places)
        qf, _, _ = fam_layer.qkv(fam, end + fam_places)
        # S, the sink, on the place before Kf.
        _, ks, vs = layer.qkv(sink, begin - len(fam) - 1 + np.arange(len(sink)))

        # Tokens: Attention(q_t, [K_{tau-m} ... K_{tau-1}, S, Kf, K_tau up to t]), less padding and what is out of the
        # layer's own sliding window. The window hides neither FAM nor sink. The gate is added to the scores on Kf.
        memory_begin = max(0, begin - memory.memory_segments * block_size)
        for t in range(begin, min(end, length)):
            seen = [s for s in range(memory_begin, t + 1) if real[s] and t - s < layer.window]
            keys, values = np.concatenate([k[seen], ks, kf]), np.concatenate([v[seen], vs, vf])
            bias = np.concatenate([np.zeros(len(seen) + len(ks)), np.full(len(kf), layer.gate)])
            attended[t] = attend(layer, q[t : t + 1], keys, values, bias)[0]

        # FAM: A^F = Attention(Qf, [S, Kf, K_tau], [Vf, V_tau]) + R; F_tau = FF(norm(A^F)) + A^F.
        # An unfinished block does not update FAM, nor does a block of nothing but padding.
        seen = [s for s in range(begin, min(end, length)) if real[s]]
        if end <= length and seen:
            keys, values = np.concatenate([ks, kf, k[seen]]), np.concatenate([vs, vf, v[seen]])
            residual = np.zeros_like(fam) if is_learned_start else fam  # R = 0 after the learned start, else F_{tau-1}
            fam = fam_layer.finish(attend(fam_layer, qf, keys, values), residual)
            if memory.span is not None:
                fam = bound(fam, residual, memory.span)
            is_learned_start = False
    return layer.finish(attended, x), fam  # a_t = attention + i_t; O_tau = FF(norm(A)) + A


def bound(fam, residual, span):
    """Delta = F - R; F = Delta + R * min(1, span * |Delta| / |R|), vector by vector."""
    span = np.broadcast_to(span, len(fam))
    bounded = []
    for vector, before, limit in zip(fam, residual, span, strict=True):
        delta, length = vector - before, np.linalg.norm(before)
        factor = min(1.0, limit * np.linalg.norm(delta) / length) if length else 1.0
        bounded.append(delta + before * factor)
    return np.stack(bounded)


def lift_prompt(layer, prompt):
    """The prompt of the layer above: attention among the N prompt vectors alone, on places -N ... -1, not causal."""
    q, k, v = layer.qkv(prompt, np.arange(-len(prompt), 0))
    return layer.finish(attend(layer, q, k, v), prompt)


def attend(layer, queries, keys, values, bias=0.0):
    """Attention of queries [n, heads, h], one by one, each over all of keys and values [seen, heads, h].

    Where nothing is seen the attention vector is zero.
    """
    attended = np.zeros_like(queries)
    for n, query in enumerate(queries if len(keys) else []):
        logits = np.einsum("nh,snh->ns", query, keys) / np.sqrt(query.shape[-1])
        if layer.soft_cap is not None:
            logits = layer.soft_cap * np.tanh(logits / layer.soft_cap)
        logits = logits + bias
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        attended[n] = np.einsum("ns,snh->nh", shares / shares.sum(axis=-1, keepdims=True), values)
    return attended


def scale_embedding(family, config, embedding):
    """What the family does to a token embedding, and so to the prompt."""
    return embedding * np.sqrt(config["hidden_dim"]) if scales_embeddings(family) else embedding


def embed_tokens(family, config, weights, token_ids, offset):
    """One row of token ids [length] to [length, d]; GPT-2's place p reads position row (p + offset) mod the table."""
    x = scale_embedding(family, config, weights["token_embedding/embeddings"][token_ids])
    if "position_embedding/embeddings" not in weights:
        return x
    places = (np.arange(len(token_ids)) + offset) % config["max_sequence_length"]
    return x + weights["position_embedding/embeddings"][places]


def final_norm(family, config, weights, x):
    """The backbone's last norm, with the configuration's epsilon (GPT-2: 1e-5)."""
    path = final_norm_path(family)
    if family == "gpt2":
        return layer_norm(x, weights[f"{path}/gamma"], weights[f"{path}/beta"], 1e-5)
    scale = weights[f"{path}/scale"] + (1.0 if scales_embeddings(family) else 0.0)
    return rms_norm(x, scale, config["layer_norm_epsilon"])


class Layer:
    """One decoder layer, as its `Description` and its weights say."""

    def __init__(self, description, weights, index):
        self.description, self.weights = description, weights
        self.name = description.layer.format(index=index)
        self.soft_cap, self.window = description.soft_cap, description.window
        self.gate = float(weights.get(f"{self.name}/memory_gate", 0.0))

    def weight(self, path):
        return self.weights[f"{self.name}/{path}"]

    def norm(self, x, name):
        d, path = self.description, self.description.norms[name]
        if d.norm == "layer":
            return layer_norm(x, self.weight(f"{path}/gamma"), self.weight(f"{path}/beta"), d.epsilon)
        return rms_norm(x, self.weight(f"{path}/scale") + (d.norm == "rms1"), d.epsilon)

    def project(self, x, name):
        """[n, d] to [n, heads, h], with the bias if there is one."""
        path = f"{self.description.attention}/{name}"
        equation = "td,ndh->tnh" if self.description.heads_first else "td,dnh->tnh"
        return np.einsum(equation, x, self.weight(f"{path}/kernel")) + self.weights.get(f"{self.name}/{path}/bias", 0.0)

    def qkv(self, x, positions):
        """QKV(norm(x)) with RoPE, each [n, query heads, h]: a key/value head is repeated for its group of queries."""
        d, x = self.description, self.norm(x, "attention")
        q, k, v = (self.project(x, name) for name in ("query", "key", "value"))
        for norm in (d.query_norm, d.key_norm):
            if norm is not None:
                scale = self.weight(f"{d.attention}/{norm}/scale") + (d.norm == "rms1")
                q, k = (rms_norm(q, scale, d.qk_epsilon), k) if norm == d.query_norm else (
                    q, rms_norm(k, scale, d.qk_epsilon)
                )  # fmt: skip
        if d.rotary:
            q, k = rope(q, positions, d), rope(k, positions, d)
        group = q.shape[1] // k.shape[1]
        return q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)

    def finish(self, attended, residual):
        """From attention vectors [n, heads, h] to the layer's output: A = attention + residual; FF(norm(A)) + A."""
        d, path = self.description, f"{self.description.attention}/attention_output"
        a = np.einsum("tnh,nhd->td", attended, self.weight(f"{path}/kernel"))
        a = a + self.weights.get(f"{self.name}/{path}/bias", 0.0)
        if "post_attention" in d.norms:
            a = self.norm(a, "post_attention")
        a = a + residual
        x, (gate, up, down) = self.norm(a, "ffw"), d.ffw
        activate = gelu if d.activation == "gelu" else silu
        x = activate(self.dense(x, gate)) * self.dense(x, up) if gate else activate(self.dense(x, up))
        x = self.dense(x, down)
        if "post_ffw" in d.norms:
            x = self.norm(x, "post_ffw")
        return x + a

    def dense(self, x, name):
        return x @ self.weight(f"{name}/kernel") + self.weights.get(f"{self.name}/{name}/bias", 0.0)


def merge_lora(weights, alpha):
    """All weights in float64, each LoRA pair merged into its kernel: kernel + (alpha / rank) * (a @ b)."""
    weights = {path: np.asarray(value, "float64") for path, value in weights.items()}
    merged = dict(weights)
    for path in weights:
        if path.endswith("/lora_kernel_a"):
            a, b = weights[path], weights[path[:-1] + "b"]
            kernel = path.removesuffix("lora_kernel_a") + "kernel"
            merged[kernel] = weights[kernel] + (1.0 if alpha is None else alpha / a.shape[-1]) * (a @ b)
    return merged


def rope(x, positions, description):
    """Rotary embedding of x [n, heads, h]: feature i and feature i + h/2 are one pair.

    keras_hub's Gemma reorders the features afterwards, of queries and keys alike, which changes no dot product.
    """
    half = x.shape[-1] // 2
    frequencies = description.wavelength ** (-np.arange(half) / half)
    if description.frequencies is not None:
        frequencies = adjust_frequencies(frequencies, **description.frequencies)
    angles = positions[:, None, None] / description.scaling * frequencies
    first, second = x[..., :half], x[..., half:]
    rotated = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(rotated, axis=-1)


def adjust_frequencies(frequencies, frequency_adjustment_factor, low_freq_factor, high_freq_factor,
                       pretraining_sequence_length):  # fmt: skip
    """Llama 3.1: long waves are stretched by a factor, short ones left, those between blended."""
    adjusted = []
    for frequency in frequencies:
        turns = pretraining_sequence_length * frequency / (2 * np.pi)
        blend = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
        adjusted.append((1 - blend) * frequency / frequency_adjustment_factor + blend * frequency)
    return np.array(adjusted)


def rms_norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(x, gamma, beta, epsilon):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) * gamma + beta


def gelu(x):
    """The tanh approximation, which all families with GELU use."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1.0 + np.exp(-x))
