"""Small stock presets with real tokenizers, saved the way KerasHub saves them."""

import io

import keras_hub
import sentencepiece

from helpers.models import GEMMA, GPT2, randomize

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "the pass key is one two three, remember the pass key",
    "a long text has many blocks and the memory reads every block",
]
MERGES = ["t h", "th e", "Ġ the", "Ġ a", "e r", "o n", "Ġ b", "k e", "ke y"]


def gpt2_tokenizer():
    """Byte pairs: a space, the characters of `TEXT`, what the merges make, and last the end token, as in GPT-2."""
    characters = sorted({c for line in TEXT for c in line if c != " "})
    pieces = ["!", "Ġ", *characters, *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    return keras_hub.models.GPT2Tokenizer({piece: index for index, piece in enumerate(pieces)}, MERGES)


def gemma_tokenizer():
    """A SentencePiece model trained on `TEXT`."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=proto,
        vocab_size=44,
        model_type="BPE",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return keras_hub.models.GemmaTokenizer(proto.getvalue())


def gpt2_preset(path, **changes):
    """Saves a random `GPT2CausalLM` with its tokenizer at `path` and returns `path` as a str."""
    tokenizer = gpt2_tokenizer()
    config = {**GPT2, "vocabulary_size": tokenizer.vocabulary_size(), **changes}
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)
    return _save(path, keras_hub.models.GPT2CausalLM(keras_hub.models.GPT2Backbone(**config), preprocessor))


def gemma_preset(path, **changes):
    """Saves a random `GemmaCausalLM` with its tokenizer at `path` and returns `path` as a str."""
    tokenizer = gemma_tokenizer()
    config = {**GEMMA, "vocabulary_size": tokenizer.vocabulary_size(), **changes}
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=16)
    return _save(path, keras_hub.models.GemmaCausalLM(keras_hub.models.GemmaBackbone(**config), preprocessor))


def _save(path, lm):
    randomize(lm.backbone)
    lm.save_to_preset(str(path))
    return str(path)


PRESETS = {"gpt2": gpt2_preset, "gemma": gemma_preset}
