"""TransformerFAM (arXiv 2404.09173) in plain NumPy float64: the slow truth the fast implementation is tested against.

It follows the specification line by line, for the keras_hub families Gemma (1 and 2) and GPT-2: row by row, block by
block, one attention query at a time, with absolute positions and no cache.

Symbols: B block size, m memory segments, N FAM length, d hidden size, tau block index, I a layer's input, F its FAM.
"""

import numpy as np


def reference_forward(config, weights, token_ids, padding_mask=None, *, block_size, memory_segments, fam_length,
                      position_offset=None, start=None, lora_alpha=None):  # fmt: skip
    """The backbone's inference forward pass.

    Args:
        config: `get_config()` of the stock keras_hub backbone.
        weights: `{variable path: array}` with the stock paths, "fam_prompt/embeddings" [N, d], and LoRA's if any.
        token_ids: int array [batch, length].
        padding_mask: [batch, length], 1 for real tokens; None when all are real.
        block_size, memory_segments, fam_length: B, m and N.
        position_offset: int array [batch], for learned positions only; RoPE depends on differences alone.
        start: list over layers of [batch, N, d], carried FAMs to start from instead of the learned prompt.
        lora_alpha: LoRA's alpha; None means alpha = rank, as in Keras.

    Returns:
        `(hidden [batch, length, d], fams)`, fams being a list over layers of [batch, N, d]: each layer's FAM after the
        last complete block.
    """
    weights = merge_lora(weights, lora_alpha)
    make_layer = GemmaLayer if is_gemma(config) else GPT2Layer
    layers = [make_layer(config, weights, index) for index in range(config["num_layers"])]
    token_ids = np.asarray(token_ids)
    real = np.ones(token_ids.shape, bool) if padding_mask is None else np.asarray(padding_mask).astype(bool)
    offsets = np.zeros(len(token_ids), int) if position_offset is None else np.asarray(position_offset)
    x = [embed_tokens(config, weights, ids, offset) for ids, offset in zip(token_ids, offsets, strict=True)]

    prompt = np.zeros((0, config["hidden_dim"]))
    if fam_length > 0 and start is None:
        prompt = scale_embedding(config, weights["fam_prompt/embeddings"])  # no position embedding
        assert len(prompt) == fam_length, f"The prompt table has {len(prompt)} rows, fam_length is {fam_length}."

    fams = []
    for index, layer in enumerate(layers):
        layer_fams = []
        for row in range(len(token_ids)):
            fam = prompt if start is None else np.asarray(start[index][row], "float64")
            x[row], fam = run_layer(layer, x[row], real[row], fam, start is None, block_size, memory_segments)
            layer_fams.append(fam)
        fams.append(np.stack(layer_fams))
        prompt = lift_prompt(layer, prompt)
    return final_norm(config, weights, np.stack(x)), fams


def run_layer(layer, x, real, fam, is_learned_start, block_size, memory_segments):
    """One layer over one row: x [length, d], real bool [length] (False at padding), fam [N, d] before the first block.

    `is_learned_start` says that `fam` is the learned prompt, which carries no context. Returns the layer's output
    [length, d] and its FAM after the last complete block [N, d].
    """
    length, fam_places = len(x), np.arange(-len(fam), 0)
    q, k, v = layer.qkv(x, np.arange(length))  # Q, K, V = QKV(norm(I_tau)); token i of block tau at tau*B + i
    attended = np.zeros_like(q)
    for begin in range(0, length, block_size):  # begin = tau*B
        end = begin + block_size
        # Qf, Kf, Vf = QKV(norm(F_{tau-1})); Kf on tau*B-N ... tau*B-1, Qf on tau*B+B-N ... tau*B+B-1
        _, kf, vf = layer.qkv(fam, begin + fam_places)
        qf, _, _ = layer.qkv(fam, end + fam_places)

        # Tokens: Attention(q_t, [K_{tau-m} ... K_{tau-1}, Kf, K_tau up to t]), less padding and what is out of the
        # layer's own sliding window. The window never hides FAM.
        memory_begin = max(0, begin - memory_segments * block_size)
        for t in range(begin, min(end, length)):
            seen = [s for s in range(memory_begin, t + 1) if real[s] and t - s < layer.window]
            keys, values = np.concatenate([k[seen], kf]), np.concatenate([v[seen], vf])
            attended[t] = attend(layer, q[t : t + 1], keys, values)[0]

        # FAM: A^F = Attention(Qf, [Kf, K_tau], [Vf, V_tau]) + R; F_tau = FF(norm(A^F)) + A^F.
        # An unfinished block does not update FAM, nor does a block of nothing but padding.
        seen = [s for s in range(begin, min(end, length)) if real[s]]
        if end <= length and seen:
            keys, values = np.concatenate([kf, k[seen]]), np.concatenate([vf, v[seen]])
            residual = np.zeros_like(fam) if is_learned_start else fam  # R = 0 after the learned start, else F_{tau-1}
            fam = layer.finish(attend(layer, qf, keys, values), residual)
            is_learned_start = False
    return layer.finish(attended, x), fam  # a_t = attention + i_t; O_tau = FF(norm(A)) + A


def lift_prompt(layer, prompt):
    """The prompt of the layer above: attention among the N prompt vectors alone, on places -N ... -1, not causal."""
    q, k, v = layer.qkv(prompt, np.arange(-len(prompt), 0))
    return layer.finish(attend(layer, q, k, v), prompt)


def attend(layer, queries, keys, values):
    """Attention of queries [n, heads, h], one by one, each over all of keys and values [seen, heads, h].

    Where nothing is seen the attention vector is zero.
    """
    attended = np.zeros_like(queries)
    for n, query in enumerate(queries if len(keys) else []):
        logits = np.einsum("nh,snh->ns", query, keys) / np.sqrt(query.shape[-1])
        if layer.soft_cap is not None:
            logits = layer.soft_cap * np.tanh(logits / layer.soft_cap)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        attended[n] = np.einsum("ns,snh->nh", shares / shares.sum(axis=-1, keepdims=True), values)
    return attended


def is_gemma(config):
    """Whether the config is a Gemma backbone's; else it is GPT-2's."""
    return "num_query_heads" in config


def scale_embedding(config, embedding):
    """What the family does to a token embedding, and so to the prompt: Gemma multiplies by sqrt(d)."""
    return embedding * np.sqrt(config["hidden_dim"]) if is_gemma(config) else embedding


def embed_tokens(config, weights, token_ids, offset):
    """One row of token ids [length] to [length, d]; GPT-2's place p reads position row (p + offset) mod the table."""
    x = scale_embedding(config, weights["token_embedding/embeddings"][token_ids])
    if is_gemma(config):
        return x
    places = (np.arange(len(token_ids)) + offset) % config["max_sequence_length"]
    return x + weights["position_embedding/embeddings"][places]


def final_norm(config, weights, x):
    """The backbone's last norm; Gemma's alone has the config's epsilon."""
    if is_gemma(config):
        return rms_norm(x, weights["final_normalization/scale"], config["layer_norm_epsilon"])
    return layer_norm(x, weights["layer_norm/gamma"], weights["layer_norm/beta"])


class GemmaLayer:
    """The pieces of one `GemmaDecoderBlock`. Like the stock one it ignores the config's norm epsilon (it uses 1e-6)."""

    def __init__(self, config, weights, index):
        self.weights, self.name = weights, f"decoder_block_{index}"
        self.queries_per_key = config["num_query_heads"] // config["num_key_value_heads"]
        self.soft_cap = config["attention_logit_soft_cap"]
        is_local = config["use_sliding_window_attention"] and index % 2 == 0
        self.window = config["sliding_window_size"] if is_local else np.inf
        self.has_post_attention_norm = config["use_post_attention_norm"]
        self.has_post_ffw_norm = config["use_post_ffw_norm"]

    def weight(self, path):
        return self.weights[f"{self.name}/{path}"]

    def norm(self, x, name):
        return rms_norm(x, self.weight(f"{name}/scale"), 1e-6)

    def qkv(self, x, positions):
        """QKV(norm(x)) with RoPE, each [n, query heads, h]: a key/value head is repeated for its group of queries."""
        x = self.norm(x, "pre_attention_norm")
        q, k, v = (np.einsum("td,ndh->tnh", x, self.weight(f"attention/{p}/kernel")) for p in ("query", "key", "value"))
        k, v = np.repeat(k, self.queries_per_key, axis=1), np.repeat(v, self.queries_per_key, axis=1)
        return rope(q, positions), rope(k, positions), v

    def finish(self, attended, residual):
        """From attention vectors [n, heads, h] to the layer's output: A = attention + residual; FF(norm(A)) + A."""
        a = np.einsum("tnh,nhd->td", attended, self.weight("attention/attention_output/kernel"))
        if self.has_post_attention_norm:
            a = self.norm(a, "post_attention_norm")
        a = a + residual
        x = self.norm(a, "pre_ffw_norm")
        x = gelu(x @ self.weight("ffw_gating/kernel")) * (x @ self.weight("ffw_gating_2/kernel"))
        x = x @ self.weight("ffw_linear/kernel")
        if self.has_post_ffw_norm:
            x = self.norm(x, "post_ffw_norm")
        return x + a


class GPT2Layer:
    """The pieces of one pre-norm `TransformerDecoder`."""

    soft_cap = None
    window = np.inf

    def __init__(self, config, weights, index):
        self.weights, self.name = weights, f"transformer_layer_{index}"

    def weight(self, path):
        return self.weights[f"{self.name}/{path}"]

    def norm(self, x, name):
        return layer_norm(x, self.weight(f"{name}/gamma"), self.weight(f"{name}/beta"))

    def dense(self, equation, x, name):
        return np.einsum(equation, x, self.weight(f"{name}/kernel")) + self.weight(f"{name}/bias")

    def qkv(self, x, positions):
        """QKV(norm(x)), each [n, heads, h]. `positions` play no part: they are in the token embeddings."""
        x = self.norm(x, "self_attention_layer_norm")
        return tuple(self.dense("td,dnh->tnh", x, f"self_attention/{p}") for p in ("query", "key", "value"))

    def finish(self, attended, residual):
        """From attention vectors [n, heads, h] to the layer's output: A = attention + residual; FF(norm(A)) + A."""
        a = self.dense("tnh,nhd->td", attended, "self_attention/attention_output") + residual
        x = self.norm(a, "feedforward_layer_norm")
        x = gelu(self.dense("td,df->tf", x, "feedforward_intermediate_dense"))
        return self.dense("tf,fd->td", x, "feedforward_output_dense") + a


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


def rope(x, positions, max_wavelength=10_000.0):
    """Rotary embedding of x [n, heads, h]: feature i and feature i + h/2 are one pair.

    keras_hub's Gemma reorders the features afterwards, of queries and keys alike, which changes no dot product.
    """
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * max_wavelength ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    rotated = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(rotated, axis=-1)


def rms_norm(x, scale, epsilon):
    """Gemma's RMS norm: its scale is stored less one."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * (1.0 + scale)


def layer_norm(x, gamma, beta, epsilon=1e-5):
    """GPT-2's layer norm."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) * gamma + beta


def gelu(x):
    """The tanh approximation, which both families use."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
