"""Tiny GGUF files with random weights: what is in them, and writing them."""

import gguf
import numpy as np

SPACE = "\u2581"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(path, metadata, tensors):
    """Writes a GGUF file.

    Args:
        path: path.
        metadata: dict from key to bool, int, float, str or list, `general.architecture` among them.
        tensors: dict from name to array, or to (array, quantization type).
    """
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        if key != "general.architecture":
            add[type(value)](key, value)
    for name, values in tensors.items():
        values, kind = values if isinstance(values, tuple) else (values, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(tensors):
    """The tensors as they read back from the file, in float64."""
    quantized = {name: values if isinstance(values, tuple) else (values, None) for name, values in tensors.items()}
    return {
        name: np.asarray(values if kind is None else gguf.dequantize(gguf.quantize(values, kind), kind), "float64")
        for name, (values, kind) in quantized.items()
    }


def gemma3():
    """Seven layers, so that one is global; positions of the global one divided by 8."""
    vocabulary = sentencepiece_vocabulary(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        user_defined=["\n", "\n\n", "  ", "   "],
        ids={"padding": 0, "eos": 1, "bos": 2, "unknown": 3},
    )
    vocabulary["tokenizer.ggml.add_space_prefix"] = False
    metadata = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 7,
        "gemma3.embedding_length": 32,
        "gemma3.feed_forward_length": 64,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 16,
        "gemma3.attention.value_length": 16,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": 4,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
        **vocabulary,
    }
    extra = {"attn_q_norm": (16,), "attn_k_norm": (16,), "post_attention_norm": (32,), "post_ffw_norm": (32,)}
    return metadata, tensors(metadata, head_dim=16, extra=extra)


def smollm2():
    """Byte pairs, tied head, no start token before a text, a vocabulary without header tokens."""
    metadata = {
        **llama_metadata(),
        **byte_pair_vocabulary(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], start=1, end=2),
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
    }
    return metadata, tensors(metadata, head_dim=8)


def llama3():
    """Byte pairs, head of its own, frequency-wise scaling of the rotation as in Llama 3.1."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    metadata = {
        **llama_metadata(),
        **byte_pair_vocabulary(special, start=0, end=4),
        "tokenizer.ggml.pre": "llama-bpe",
        "llama.rope.freq_base": 5e5,
    }
    weights = {**tensors(metadata, head_dim=8), "output.weight": head(metadata)}
    weights["rope_freqs.weight"] = np.array([llama31_divisor(5e5 ** (i / 4)) for i in range(4)], "float32")
    return metadata, weights


def llama2():
    """SentencePiece, a space put before every text, head of its own."""
    vocabulary = sentencepiece_vocabulary(["<unk>", "<s>", "</s>"], ids={"unknown": 0, "bos": 1, "eos": 2})
    metadata = {**llama_metadata(), **vocabulary, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    return metadata, {**tensors(metadata, head_dim=8), "output.weight": head(metadata)}


def llama31_divisor(inverse_frequency, factor=8.0, low=1.0, high=4.0, length=8192):
    """By how much Llama 3.1 divides one frequency of the rotation."""
    period = 2 * np.pi * inverse_frequency
    if period < length / high:
        return 1.0
    if period > length / low:
        return factor
    smooth = (length / period - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def head(metadata):
    """Weights of an output layer of its own."""
    shape = (len(metadata["tokenizer.ggml.tokens"]), metadata["llama.embedding_length"])
    return np.random.default_rng(1).normal(0.0, 0.2, shape).astype("float32")


def llama_metadata():
    return {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 8,
    }


def tensors(metadata, head_dim, extra=None):
    """Random values for every tensor of a model; the embedding is stored in 8 bits, values of layer 0 in 16."""
    rng = np.random.default_rng(0)
    architecture = metadata["general.architecture"]
    d, f = metadata[f"{architecture}.embedding_length"], metadata[f"{architecture}.feed_forward_length"]
    n, k = (head_dim * metadata[f"{architecture}.attention.{name}"] for name in ("head_count", "head_count_kv"))
    block = {"attn_norm": (d,), "ffn_norm": (d,), "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
    block |= {"attn_q": (n, d), "attn_k": (k, d), "attn_v": (k, d), "attn_output": (d, n), **(extra or {})}
    shapes = {"token_embd.weight": (len(metadata["tokenizer.ggml.tokens"]), d), "output_norm.weight": (d,)}
    for i in range(metadata[f"{architecture}.block_count"]):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    values = {
        name: rng.normal(1.0, 0.2, shape) if len(shape) == 1 else rng.normal(0.0, 1.5 / shape[-1] ** 0.5, shape)
        for name, shape in shapes.items()
    }
    values = {name: value.astype("float32") for name, value in values.items()}
    values["token_embd.weight"] = (values["token_embd.weight"], gguf.GGMLQuantizationType.Q8_0)
    values["blk.0.attn_v.weight"] = (values["blk.0.attn_v.weight"], gguf.GGMLQuantizationType.F16)
    return values


def sentencepiece_vocabulary(control, ids, user_defined=()):
    kinds = gguf.TokenType
    words = [SPACE, *LETTERS, "é", *"0123456789", "th", "the", f"{SPACE}the", f"{SPACE}c", "at", f"{SPACE}cat"]
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    pieces = [(token, kinds.CONTROL, -1000.0) for token in control]
    pieces += [(token, kinds.USER_DEFINED, -1000.0) for token in user_defined]
    pieces += [(token, kinds.BYTE, 0.0) for token in byte_pieces]
    # A merge comes the sooner the higher its score; single characters, after which nothing is merged, come last.
    pieces += [(token, kinds.NORMAL, -100.0 if len(token) == 1 else -float(i)) for i, token in enumerate(words)]
    tokens, types, scores = (list(column) for column in zip(*pieces))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.scores": scores,
        **{f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items()},
    }


def byte_pair_vocabulary(special, start, end):
    merges = ["t h", "th e", "Ġ the", "Ġ c", "a t", "Ġc at", "Ċ Ċ"]
    byte_tokens = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    byte_tokens += [chr(256 + i) for i in range(256 - len(byte_tokens))]
    tokens = [*special, *byte_tokens, *(merge.replace(" ", "") for merge in merges)]
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": start,
        "tokenizer.ggml.eos_token_id": end,
    }
