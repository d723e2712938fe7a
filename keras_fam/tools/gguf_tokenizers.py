"""Rebuilding a KerasHub tokenizer from the vocabulary in a GGUF file."""

from enum import IntEnum

import keras_hub

LLAMA3_HEADERS = ("<|start_header_id|>", "<|end_header_id|>")


class TokenType(IntEnum):
    """Token types, numbered alike in GGUF and in SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def build_tokenizer(file, family, rows):
    """The tokenizer of a model.

    Args:
        file: `GGUFFile`.
        family: str. Beginning of the KerasHub class names: `"Gemma3"`, `"Llama"` or `"Llama3"`.
        rows: int. Rows of the token embedding; no token may lie beyond.

    Returns:
        `Gemma3Tokenizer`, `LlamaTokenizer` or `Llama3Tokenizer`.

    Raises:
        ValueError: if the vocabulary is larger than the embedding, has no type for each token, or lacks a
            special token that the KerasHub class needs.
    """
    tokens = file.get("tokenizer.ggml.tokens", list)
    types = file.get("tokenizer.ggml.token_type", list)
    if len(tokens) > rows or len(types) != len(tokens) or len(set(tokens)) < len(tokens):
        raise file.error(
            f"every token must be there once, have a type and a row in tensor `token_embd.weight`. Received: "
            f"{len(tokens)} tokens, {len(set(tokens))} different ones, {len(types)} types, {rows} rows"
        )
    try:
        if family == "Llama3":
            return _byte_pair_tokenizer(file, tokens, types)
        proto = _sentencepiece_proto(file, tokens, types)
        if family == "Gemma3":
            return keras_hub.models.Gemma3Tokenizer(proto, has_vision_tokens=False)
        return keras_hub.models.LlamaTokenizer(proto)
    except (ValueError, RuntimeError) as error:
        raise file.error(f"its vocabulary makes no {family} tokenizer: {error}") from error


def adds_start_token(file):
    """Whether the model expects its start token before a text. Where the file does not say, what llama.cpp assumes."""
    default = file.get("tokenizer.ggml.model", str) == "llama" or file.get("tokenizer.ggml.pre", str, "") == "llama-bpe"
    return file.get("tokenizer.ggml.add_bos_token", bool, default)


def _sentencepiece_proto(file, tokens, types):
    """A SentencePiece model of the byte-pair kind, as bytes."""
    from sentencepiece import sentencepiece_model_pb2

    scores = file.get("tokenizer.ggml.scores", list)
    special = {
        name: file.get(f"tokenizer.ggml.{name}_token_id", int, default)
        for name, default in {"unknown": 0, "bos": 1, "eos": 2, "padding": -1}.items()
    }
    model = sentencepiece_model_pb2.ModelProto()
    for index, (token, kind, score) in enumerate(zip(tokens, types, scores, strict=True)):
        kind = _piece_type(index, kind, special)
        # Converters turn SentencePiece's space symbol in user-defined tokens into plain spaces.
        piece = token.replace(" ", "\u2581") if kind == TokenType.USER_DEFINED else token
        model.pieces.add(piece=piece, score=score, type=int(kind))
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = TokenType.BYTE in types
    trainer.split_digits = True
    trainer.unk_id, trainer.pad_id = special["unknown"], special["padding"]
    for name in ("bos", "eos"):
        setattr(trainer, f"{name}_id", special[name])
        setattr(trainer, f"{name}_piece", tokens[special[name]])
    trainer.unk_piece = tokens[special["unknown"]]
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    normalizer.remove_extra_whitespaces = False
    return model.SerializeToString()


def _piece_type(index, kind, special):
    """Control pieces other than the four that every model has are turns and the like: text may contain them."""
    if index == special["unknown"]:
        return TokenType.UNKNOWN
    if kind == TokenType.CONTROL and index not in special.values():
        return TokenType.USER_DEFINED
    return TokenType(kind)


def _byte_pair_tokenizer(file, tokens, types):
    start, end = (tokens[file.get(f"tokenizer.ggml.{name}_token_id", int)] for name in ("bos", "eos"))
    # KerasHub's class wants header tokens in every vocabulary. Those that it lacks get ids behind its end. No text is
    # turned into them: no merge makes them, and they are not among the unsplittable tokens.
    headers = [token for token in LLAMA3_HEADERS if token not in tokens]
    vocabulary = {token: index for index, token in enumerate([*tokens, *headers])}
    unsplittable = [t for t, kind in zip(tokens, types) if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    splitting = file.get("tokenizer.ggml.pre", str, "default")
    if splitting != "llama-bpe":
        print(
            f"Note: KerasHub splits text into words as Llama 3 does, this model was trained with `{splitting}`: "
            "around blank lines and runs of spaces token ids may differ",
            flush=True,
        )
    special = {"bos_token": start, "eos_token": end}
    tokenizer = keras_hub.models.Llama3Tokenizer(
        vocabulary, file.get("tokenizer.ggml.merges", list), unsplittable_tokens=unsplittable, **special
    )
    return keep_in_config(tokenizer, special)


def keep_in_config(layer, missing):
    """Adds entries to what a layer's `get_config` returns: arguments that its class takes but does not keep."""
    config = layer.get_config
    layer.get_config = lambda: {**config(), **missing}
    return layer
