"""PassKey texts as strings, repeated segments, packing, and the examples of the docstrings."""

import inspect
import re

import keras
import keras_hub
import numpy as np
import pytest
from helpers.presets import gemma_tokenizer
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fam
from keras_fam.data import pack, passkey_text, repeat_random_segment
from keras_fam.data.passkey_prompts import FILLER, INTRODUCTION, QUESTION

pytestmark = pytest.mark.shared_out

RNG = np.random.default_rng(0)


def words(text):
    return re.findall(r"\w+|\W", text)


def byte_tokenizer():
    return keras_hub.tokenizers.ByteTokenizer()


# === PassKey texts ===


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 9), room=st.integers(0, 80), key_length=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_passkey_texts(blocks, room, key_length, seed):
    """The parts in their order, the statement in the first block, and no room left for one more filler sentence."""
    shortest = len(words(f"{INTRODUCTION}\n{statement('1')}\n{QUESTION} 1"))
    block_size = shortest + room
    text = passkey_text(words, blocks, block_size, key_length, np.random.default_rng(seed))
    assert re.fullmatch(rf"\d{{{key_length}}}", text.key) and text.answer == f" {text.key}"
    introduction, *before, stated, after_and_question = text.prompt.split("\n", 2 + text.prompt.startswith(HEAD))
    assert introduction == INTRODUCTION and stated == statement(text.key)
    *after, question = after_and_question.split("\n")
    assert question == QUESTION
    for filler in (*before, *after):
        cycle = " ".join(FILLER * (len(filler) // 40 + 1))
        assert filler and cycle.startswith(filler) and filler.endswith(".")
    assert len(words(text.prompt.split(stated)[0] + stated)) <= block_size
    length = len(words(text.prompt + text.answer))
    longest = max(len(words(f" {sentence}")) for sentence in FILLER)
    assert blocks * block_size - longest - 1 < length <= blocks * block_size
    again = passkey_text(words, blocks, block_size, key_length, np.random.default_rng(seed))
    assert again == text


HEAD = f"{INTRODUCTION}\n{FILLER[0]}"


def statement(key):
    return f"The pass key is {key}. Remember it. {key} is the pass key."


def test_passkeys_are_fresh_and_anywhere_in_the_first_block():
    rng = np.random.default_rng(0)
    texts = [passkey_text(words, 2, 128, rng=rng) for _ in range(100)]
    assert len({text.key for text in texts}) > 95
    places = {len(words(text.prompt.split(statement(text.key))[0])) for text in texts}
    assert min(places) == len(words(f"{INTRODUCTION}\n")) and max(places) == 98 and len(places) == 6
    assert len({passkey_text(words, 2, 128).key for _ in range(10)}) > 5  # without a generator


@pytest.mark.parametrize("tokenizer", [byte_tokenizer, gemma_tokenizer], ids=["bytes", "gemma"])
def test_passkey_texts_with_kerashub_tokenizers(tokenizer):
    tokenizer = tokenizer()
    text = passkey_text(tokenizer, 3, 512, rng=RNG)
    length = len(tokenizer(text.prompt + text.answer))
    assert 3 * 512 - 40 < length <= 3 * 512


def test_long_passkey_texts_take_few_calls():
    calls = []

    def tokenizer(text):
        calls.append(len(text))
        return text.split()

    text = passkey_text(tokenizer, 100, 128, rng=RNG)
    assert 12_795 < len((text.prompt + text.answer).split()) <= 12_800
    assert len(calls) < 60


class Cutting:
    sequence_length = 16

    def tokenize(self, text):
        return list(text)[:16]


@pytest.mark.parametrize(
    "name, value, received",
    [
        ("tokenizer", None, None),
        ("tokenizer", "gpt2", "gpt2"),
        ("tokenizer", list, list),
        ("tokenizer", Cutting(), "sequence_length=16"),
        ("tokenizer", lambda text: list(text)[:30], "30 tokens"),
        ("blocks", 0, 0),
        ("blocks", 1.0, 1.0),
        ("block_size", 0, 0),
        ("block_size", 60, "block_size=60"),  # too short for the introduction and the statement
        ("key_length", 0, 0),
        ("key_length", None, None),
        ("rng", 3, 3),
    ],
    ids=str,
)
def test_bad_passkey_texts(name, value, received):
    refused(lambda: passkey_text(**{**dict(tokenizer=words, blocks=2, block_size=200), name: value}), name, received)


def test_a_single_block_must_hold_the_question_too():
    shortest = len(words(f"{INTRODUCTION}\n{statement('1')}\n{QUESTION} 1"))
    passkey_text(words, 1, shortest)
    refused(lambda: passkey_text(words, 1, shortest - 1), "block_size", shortest, shortest - 1)
    passkey_text(words, 2, shortest - 1)


# === Repeated segments ===


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 20),
    extra=st.integers(0, 9),
    prompt=st.lists(st.integers(100, 200), max_size=3),
    weight=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_repeated_segments(length, extra, prompt, weight, seed):
    text = list(range(1, length + extra + 1))
    ids, weights = repeat_random_segment(text, np.random.default_rng(seed), length, prompt, weight)
    assert ids.dtype == "int32" and weights.dtype == "float32"
    segment = ids[-length:].tolist()
    assert ids.tolist() == text + prompt + segment
    assert segment == list(range(segment[0], segment[0] + length)) and set(segment) <= set(text)
    expected = [1.0] * len(text) + [0.0] * len(prompt) + [weight] * length
    np.testing.assert_allclose(weights, expected)


def test_segments_of_every_place():
    rng = np.random.default_rng(0)
    starts = {int(repeat_random_segment(np.arange(260), rng)[0][260]) for _ in range(100)}
    assert starts == set(range(5))
    _, weights = repeat_random_segment(np.arange(260), rng)
    assert weights[:260].tolist() == [1.0] * 260 and np.allclose(weights[260:], 0.1) and len(weights) == 516


@pytest.mark.parametrize(
    "name, value, received",
    [
        ("token_ids", [[1, 2, 3]], (1, 3)),
        ("token_ids", [1.0, 2.0], "float64"),
        ("token_ids", [1, 2], "2 tokens"),
        ("token_ids", "text", "()"),
        ("rng", None, None),
        ("segment_length", 0, 0),
        ("segment_length", 2.0, 2.0),
        ("segment_length", 9, "8 tokens"),
        ("prompt_ids", [0.5], "float64"),
        ("prompt_ids", 5, "()"),
        ("weight", -0.1, -0.1),
        ("weight", "0.1", "0.1"),
    ],
    ids=str,
)
def test_bad_segments(name, value, received):
    options = dict(token_ids=list(range(8)), rng=RNG, segment_length=3)
    refused(lambda: repeat_random_segment(**{**options, name: value}), name, received)


# === Packing ===


def plain_pack(examples, length):
    """Token by token: `(id, mask, target, weight)` of every place of every row."""
    rows = [[]]
    for ids, weights in examples:
        if rows[-1] and len(ids) > length - len(rows[-1]):
            rows.append([])
        for place in range(len(ids)):
            if len(rows[-1]) == length:
                rows.append([])
            last = place == len(ids) - 1
            rows[-1].append((ids[place], 1, 0 if last else ids[place + 1], 0.0 if last else weights[place + 1]))
    return np.array([row + [(0, 0, 0, 0.0)] * (length - len(row)) for row in rows])


EXAMPLES = st.lists(st.lists(st.tuples(st.integers(1, 99), st.sampled_from([0.0, 0.25, 1.0])), min_size=1), min_size=1)


@settings(max_examples=100, deadline=None)
@given(examples=EXAMPLES, length=st.integers(1, 12))
def test_pack(examples, length):
    examples = [([token for token, _ in example], [weight for _, weight in example]) for example in examples]
    inputs, targets, weights = pack(examples, length)
    assert inputs["token_ids"].dtype == inputs["padding_mask"].dtype == targets.dtype == "int32"
    assert weights.dtype == "float32" and sorted(inputs) == ["padding_mask", "token_ids"]
    packed = np.stack([inputs["token_ids"], inputs["padding_mask"], targets, weights], axis=-1)
    np.testing.assert_array_equal(packed, plain_pack(examples, length))


def test_packed_rows_by_hand():
    examples = [([1, 2, 3], [9, 1, 1]), ([4, 5], [9, 0.5]), ([6, 7, 8, 9, 10, 11], [9, 1, 1, 1, 0.25, 1]), ([12], [9])]
    inputs, targets, weights = pack(iter(examples), 4)
    assert inputs["token_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9], [10, 11, 12, 0]]
    assert inputs["padding_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert targets.tolist() == [[2, 3, 0, 0], [5, 0, 0, 0], [7, 8, 9, 10], [11, 0, 0, 0]]
    assert weights.tolist() == [[1, 1, 0, 0], [0.5, 0, 0, 0], [1, 1, 1, 0.25], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "examples, received",
    [
        ([], "none"),
        ([[1, 2, 3]], "list"),
        ([5], "int"),
        ([([], [])], "none"),
        ([([1, 2], [1.0])], (1,)),
        ([([1.5, 2], [1.0, 1.0])], "float64"),
        ([([1, 2], [1.0, -1.0])], "-1"),
        ([([1, 2], [1.0, float("nan")])], "nan"),
        ([([1, 2], ["a", "b"])], "a"),
    ],
    ids=str,
)
def test_bad_examples(examples, received):
    refused(lambda: pack(examples, 4), "examples" if not examples else "examples[0]", received)


def test_bad_rows():
    for length in (0, 1.5, None):
        refused(lambda length=length: pack([([1], [1.0])], length), "length", length)
    refused(lambda: pack([([1], [1.0]), ([2], 1.0)], 4), "examples[1]")


# === Docstrings ===


def examples():
    for item in [getattr(keras_fam.data, name) for name in keras_fam.data.__all__] + [
        keras_fam.data.PassKeyTask.stream
    ]:
        for code in re.findall(r"```python\n(.*?)```", inspect.getdoc(item), re.DOTALL):
            yield pytest.param(code, id=item.__name__)
    code = inspect.getdoc(keras_fam.data.PassKeyTask.prompt_blocks)
    yield pytest.param(re.search(r"```python\n(.*?)```", code, re.DOTALL).group(1), id="prompt_blocks")


@pytest.mark.parametrize("code", examples())
def test_docstring_example(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "keras_fam": keras_fam, "keras_hub": keras_hub, "np": np}
    if "lm." in code:
        stock = keras_hub.models.GPT2Backbone(
            vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=64
        )
        names["lm"] = keras_fam.FAMCausalLM(keras_fam.FAMBackbone(stock, 32, memory_segments=1, fam_length=2))
    exec(code.replace("blocks=520", "blocks=2"), names)
