"""The offline part of finetune.py: a real text that every CPython carries, and small stock KerasHub models to train."""

import io
import json
from pydoc_data.topics import topics

import keras_hub
import sentencepiece
import tokenizers

HELD_OUT_TOPICS = ("formatstrings", "debugger", "typesmapping", "execmodel")
VOCABULARY_SIZE = 1024


def python_reference():
    """The Python Language Reference: a text to train on, and the held-out topics, which share no paragraph with it."""
    held_out = [topics[name] for name in HELD_OUT_TOPICS if name in topics]
    seen = {key for text in held_out for key in map(without_spacing, text.split("\n\n"))}
    kept = []
    for text in sorted(topics.values(), key=len, reverse=True):  # short topics repeat parts of long ones
        new = [paragraph for paragraph in text.split("\n\n") if without_spacing(paragraph) not in seen]
        seen.update(map(without_spacing, new))
        kept += new
    return "\n\n".join(kept), held_out


def without_spacing(paragraph):
    return "".join(paragraph.split())


def build_stock_model(family, text, window):
    """A small untrained KerasHub model of a family, with a tokenizer trained on `text`, for windows of some tokens."""
    return {"gpt2": build_gpt2, "gemma": build_gemma}[family](text, window)


def build_gpt2(text, window):
    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator([text], VOCABULARY_SIZE - 1, show_progress=False)
    trained = json.loads(trainer.to_str())["model"]
    # As in GPT-2 the end token comes last: id 0 pads, and generation stops at an end token.
    vocabulary = {**trained["vocab"], "<|endoftext|>": len(trained["vocab"])}
    tokenizer = keras_hub.tokenizers.GPT2Tokenizer(vocabulary, [" ".join(merge) for merge in trained["merges"]])
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        dropout=0.0,
        max_sequence_length=window,
    )
    # Fresh token embeddings have a spread of 0.01, which training as short as this does not outgrow.
    embeddings = backbone.token_embedding.embeddings
    embeddings.assign(5 * embeddings)
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=window, add_end_token=False)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


def build_gemma(text, window):
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n\n")),
        model_writer=proto,
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        max_sentence_length=len(text.encode()),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=1,
    )
    tokenizer = keras_hub.tokenizers.GemmaTokenizer(proto.getvalue())
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=128,
        intermediate_dim=768,
        head_dim=32,
    )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=window, add_end_token=False)
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor)
