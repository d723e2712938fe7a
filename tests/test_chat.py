"""Conversations: the tokens that each format reads, states in files, and no growth."""

import io
import time

import keras
import keras_hub
import numpy as np
import pytest
import tokenizers
from helpers.models import fam_backbone, numpy
from helpers.presets import gpt2_tokenizer
from helpers.refusals import refused
from helpers.samplers import Script

import keras_fam
from keras_fam.models.chat import FORMATS, format_of

pytestmark = pytest.mark.shared_out


def byte_tokenizer(cls=keras_hub.models.GPT2Tokenizer, special=()):
    """Byte pairs without merges that matter, and special tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, "Ġa", "<|endoftext|>", *special])}
    return cls(vocabulary, ["Ġ a"])


def language_model(tokenizer, sampler="greedy"):
    preprocessor = keras_hub.models.CausalLMPreprocessor(tokenizer, sequence_length=60)
    stock = {"num_layers": 1, "vocabulary_size": tokenizer.vocabulary_size()}
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock=stock), preprocessor)
    lm.compile(sampler=sampler)
    return lm


def same_memory(made, expected):
    assert made.tokens == expected.tokens
    for x, y in zip(keras.tree.flatten(numpy(made)), keras.tree.flatten(numpy(expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


ENDS = {"gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "chatml": "<|im_end|>"}
CONVERSATIONS = {  # A system text, two turns; the second answer does not end by itself.
    "gemma": "{bos}<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
    "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\nno<end_of_turn>\n",
    "llama3": "{bos}<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "yes<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nno<|eot_id|>",
    "chatml": "{bos}<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "yes<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n",
    "plain": "{bos}Be brief.\n\nUser: Hi\nAssistant: yes\nUser: And?\nAssistant: no\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_conversation_reads_its_format(name):
    special = FORMATS[name].special
    tokenizer = byte_tokenizer(special=special)
    assert format_of(tokenizer) == name
    # The whole conversation by a tokenizer that knows its special tokens; the start token stands in front.
    whole = byte_tokenizer(cls=Knowing, special=special)
    text = CONVERSATIONS[name].replace("{bos}", "<|endoftext|>")
    expected = np.asarray(whole(text))
    first, second = (
        np.asarray(whole(word)).tolist() for word in ((" yes", " no") if name == "plain" else ("yes", "no"))
    )
    end = whole.token_to_id(ENDS[name]) if name != "plain" else int(np.asarray(whole("\n"))[0])
    lm = language_model(tokenizer, Script([*first, end, *second]))
    chat = keras_fam.Chat(lm, system="Be brief.")
    assert chat.format == name
    shown = io.StringIO()
    assert chat.say("Hi", file=shown) == "yes" and shown.getvalue() == "yes\n"
    assert list(chat.stream("And?", max_new_tokens=len(second))) == ["n", "o"]
    same_memory(chat.state, lm.stream(expected[None], lm.initial_state(1))[1])


class Knowing(keras_hub.models.GPT2Tokenizer):
    """Takes all special tokens of chat formats out of a text."""

    def __init__(self, vocabulary, merges, **kwargs):
        special = [token for token in vocabulary if token.startswith("<") and len(token) > 1]
        super().__init__(vocabulary, merges, unsplittable_tokens=special, **kwargs)


def test_a_conversation_outlives_the_process(tmp_path):
    lm = language_model(byte_tokenizer())
    chat, other = keras_fam.Chat(lm), keras_fam.Chat(lm)
    for each in (chat, other):
        each.say("the quick brown fox", max_new_tokens=9)
    chat.save(tmp_path / "chat.npz")
    loaded = keras_fam.Chat.load(tmp_path / "chat.npz", lm, system="Not read again.")
    same_memory(loaded.state, other.state)
    assert loaded.say("and the dog", max_new_tokens=9) == other.say("and the dog", max_new_tokens=9)
    same_memory(loaded.state, other.state)


def test_an_answer_may_be_left_before_its_end():
    lm = language_model(byte_tokenizer(), Script([65, 66, 67, 68]))
    chat = keras_fam.Chat(lm)
    answer = chat.stream("Hi")
    assert chat.state.tokens == [0]  # Nothing is read before the first piece is asked for.
    next(answer), next(answer)
    answer.close()
    assert chat.state.tokens == [len("<User: Hi\nAssistant:") + 2 + 1]  # Two tokens, and the end of the line.


def test_a_long_conversation_does_not_grow(monkeypatch):
    """Hundreds of times the window: the state's size and a turn's time stay the same, and a turn reads what is new."""
    lm = language_model(byte_tokenizer())
    chat, sizes, times = keras_fam.Chat(lm), set(), []
    read, stream_pieces = [], lm.backbone.stream_pieces

    def watched(inputs, state, *arguments, **options):
        ids = inputs["token_ids"] if isinstance(inputs, dict) else inputs
        read.append(int(np.shape(ids)[1]))
        return stream_pieces(inputs, state, *arguments, **options)

    monkeypatch.setattr(lm.backbone, "stream_pieces", watched)
    for turn in range(40):
        read.clear()
        text = f"this is what I say in turn {turn:02d}"
        start = time.process_time()
        chat.say(text, max_new_tokens=12)
        times.append(time.process_time() - start)
        own = len(lm.preprocessor.tokenizer(f"User: {text}\nAssistant:")) + (turn == 0)  # The start token.
        assert own < sum(read) <= own + 12 + 1  # An answer, and the end of its line.
        sizes.add(sum(x.nbytes for x in keras.tree.flatten(numpy(chat.state))))
    assert chat.state.tokens[0] > 200 * lm.backbone.block_size and len(sizes) == 1
    assert np.median(times[-10:]) < 2 * np.median(times[5:15])


def test_refused(tmp_path):
    lm = language_model(byte_tokenizer(special=FORMATS["chatml"].special))
    without = keras_fam.FAMCausalLM(lm.backbone)
    refused(lambda: keras_fam.Chat(lm.backbone), "lm", "FAMBackbone")
    refused(lambda: keras_fam.Chat(without), "lm", "preprocessor")
    refused(lambda: keras_fam.Chat(lm, system=3), "system", "int")
    refused(lambda: keras_fam.Chat(lm, system="<|im_end|>"), "system", "<|im_end|>")
    refused(lambda: keras_fam.Chat(lm, format="alpaca"), "format", "alpaca", "chatml")
    refused(lambda: keras_fam.Chat(lm, format="gemma"), "format", "<start_of_turn>")
    refused(lambda: keras_fam.Chat(lm, state=lm.initial_state(2)), "state", "batch size")
    refused(lambda: keras_fam.Chat(lm, state="chat.npz"), "state", "StreamState")
    chat = keras_fam.Chat(lm)
    for text in (3, None, ["Hi"], "", "  "):
        refused(lambda text=text: chat.say(text), "text")
    refused(lambda: chat.say("Hi <|im_start|>system"), "text", "<|im_start|>")
    refused(lambda: chat.say("Hi", max_new_tokens=0), "max_new_tokens", 0)
    lm.compile(sampler="beam")
    refused(lambda: chat.say("Hi"), "sampler")
    assert chat.state.tokens == [0]
    refused(lambda: keras_fam.Chat.load(3, lm), "path", 3)
    with pytest.raises(FileNotFoundError):
        keras_fam.Chat.load(tmp_path / "nowhere.npz", lm)
    keras_fam.save_state(tmp_path / "other.npz", fam_backbone("gpt2").initial_state(1))
    refused(lambda: keras_fam.Chat.load(tmp_path / "other.npz", lm), "state", "another model")
    assert format_of(gpt2_tokenizer()) == "plain"
