"""`generate` goes on from a state and gives one back; `generate_stream` gives the text as it comes."""

import keras
import keras_hub
import numpy as np
import pytest
import tokenizers
from helpers.models import fam_backbone, forward, numpy, token_ids
from helpers.presets import TEXT, gemma_tokenizer, gpt2_tokenizer
from helpers.refusals import refused
from helpers.samplers import Script

import keras_fam

pytestmark = pytest.mark.shared_out

TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def language_model(family="gpt2", sampler="greedy", preprocessor=None, fam_length=3, **options):
    stock = {"num_layers": 1}
    if preprocessor is not None:
        stock["vocabulary_size"] = preprocessor.tokenizer.vocabulary_size()
    lm = keras_fam.FAMCausalLM(fam_backbone(family, fam_length=fam_length, stock=stock, **options), preprocessor)
    lm.compile(sampler=sampler)
    return lm


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module", params=["gpt2", "gemma"])
def text_lm(request):
    if request.param == "gpt2":
        preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(gpt2_tokenizer(), sequence_length=60)
    else:
        preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(gemma_tokenizer(), sequence_length=60)
    return language_model(request.param, preprocessor=preprocessor)


def prompts(lengths, seed=0):
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    ids = np.where(mask, token_ids(len(lengths), max(lengths), seed), 0).astype("int32")
    return {"token_ids": ids, "padding_mask": mask}


def generate(lm, given, **options):
    return lm.generate(dict(given), **{"stop_token_ids": None, **options})


def assert_same_state(made, expected):
    for x, y in zip(keras.tree.flatten(numpy(made)), keras.tree.flatten(numpy(expected)), strict=True):
        np.testing.assert_allclose(x, y, **TOLERANCE)


def same_memory(lm, made, expected):
    """Both states predict the same, at their place and over the next blocks, and count alike."""
    ids = token_ids(made.position.shape[0], 9, seed=9) % 40
    (first, made), (second, expected) = (lm.stream(ids, state) for state in (made, expected))
    np.testing.assert_allclose(numpy(first), numpy(second), **TOLERANCE)
    assert made.tokens == expected.tokens
    np.testing.assert_array_equal(numpy(made.valid), numpy(expected.valid))


SAMPLERS = {
    "greedy": lambda: keras_hub.samplers.GreedySampler(),
    "top_k": lambda: keras_hub.samplers.TopKSampler(k=5, seed=1),
    "top_p": lambda: keras_hub.samplers.TopPSampler(p=0.9, seed=1),
    "random": lambda: keras_hub.samplers.RandomSampler(seed=1),
    "beam": lambda: keras_hub.samplers.BeamSampler(num_beams=3),
    "contrastive": lambda: keras_hub.samplers.ContrastiveSampler(k=3, alpha=0.5),
}


# === From a state on ===


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_calls_read_what_one_stream_reads(sampler):
    """Prompts of different lengths, over block boundaries: the state is that of streaming the same ids."""
    lm = language_model(sampler=SAMPLERS[sampler]())
    first, state = generate(lm, prompts((3, 6)), max_new_tokens=3, return_state=True)
    second, state = generate(lm, prompts((5, 2), seed=1), max_new_tokens=4, state=state, return_state=True)
    expected = lm.initial_state(2)
    for texts in (first, second):
        assert texts["padding_mask"].all()
        _, expected = lm.stream(texts["token_ids"], expected)
    same_memory(lm, state, expected)
    assert state.tokens == [18, 18]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_new_state_changes_nothing(sampler):
    texts = []
    for options in ({}, {"return_state": True}, {"state": 2}):
        lm = language_model(sampler=SAMPLERS[sampler]())
        if "state" in options:
            options = {"state": lm.initial_state(2)}
        made = generate(lm, prompts((4, 7)), max_new_tokens=5, **options)
        texts.append(made[0] if "return_state" in options else made)
    for made in texts[1:]:
        for name in ("token_ids", "padding_mask"):
            np.testing.assert_array_equal(made[name], texts[0][name])


@pytest.mark.parametrize("family, fam_length", [("gpt2", 3), ("gemma", 3), ("gemma", 0)])
def test_greedy_is_the_arg_max_behind_everything_read(family, fam_length):
    lm = language_model(family, fam_length=fam_length)
    before = token_ids(2, 6, seed=5)
    _, state = lm.stream(before, lm.initial_state(2))
    given = prompts((1, 3))
    made = generate(lm, given, max_new_tokens=8, state=state)["token_ids"]
    logits = forward(lm, np.concatenate([before, made], axis=1).astype("int32"))
    predicted = logits.argmax(-1)[:, 5:-1]
    known = np.pad(given["padding_mask"], [(0, 0), (0, 8)])
    np.testing.assert_array_equal(made, np.where(known, np.pad(given["token_ids"], [(0, 0), (0, 8)]), predicted))


def test_rows_that_end_early_are_padded_behind(lm):
    free = generate(lm, prompts((3, 5)), max_new_tokens=9)["token_ids"]
    stop = int(free[0, 6])
    made, state = generate(lm, prompts((3, 5)), max_new_tokens=9, stop_token_ids=stop, return_state=True)
    lengths = made["padding_mask"].sum(axis=1).tolist()
    assert lengths[0] < 14 and state.tokens == lengths
    end = max(lengths)
    chunk = {name: x[:, :end] for name, x in made.items()}
    same_memory(lm, state, lm.stream(chunk, lm.initial_state(2))[1])
    assert int(numpy(state.position)[0]) == end


def test_the_state_passed_in_stays_valid():
    for sampler in ("greedy", "beam"):
        lm = language_model(sampler=SAMPLERS[sampler]())
        _, state = lm.stream(token_ids(2, 6), lm.initial_state(2))
        before = [x.tobytes() for x in keras.tree.flatten(numpy(state))]
        first = generate(lm, prompts((1, 1)), max_new_tokens=6, state=state)
        assert [x.tobytes() for x in keras.tree.flatten(numpy(state))] == before
        np.testing.assert_array_equal(
            generate(lm, prompts((1, 1)), max_new_tokens=6, state=state)["token_ids"], first["token_ids"]
        )


def test_padding_and_lengths_with_a_state(lm):
    state = lm.stream(token_ids(2, 3), lm.initial_state(2))[1]
    given = {"token_ids": token_ids(2, 7, 4), "padding_mask": np.array([[0, 0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0]])}
    made, after = generate(lm, given, max_length=9, state=state, return_state=True)
    np.testing.assert_array_equal(made["padding_mask"].astype(int), [[0, 0, 1, 1, 0, 1, 1, 1, 1], [1] * 9])
    same_memory(lm, after, lm.stream(made, state)[1])
    stripped = generate(lm, given, max_length=9, state=state, strip_prompt=True)
    for row, end in enumerate((6, 2)):
        kept = stripped["token_ids"][row][stripped["padding_mask"][row]]
        np.testing.assert_array_equal(kept, made["token_ids"][row, end:])
    # A prompt as long as `max_length` is read, and nothing is generated.
    short, after = generate(lm, prompts((4, 4)), max_length=4, state=state, return_state=True)
    np.testing.assert_array_equal(short["token_ids"], prompts((4, 4))["token_ids"])
    assert after.tokens == [7, 7]


def test_texts_go_on_without_a_second_start_token(text_lm):
    tokenizer = text_lm.preprocessor.tokenizer
    start = tokenizer.start_token_id
    options = dict(max_new_tokens=4, stop_token_ids=None, return_state=True)
    first, state = text_lm.generate(TEXT[:2], **options)
    assert first == text_lm.generate(TEXT[:2], max_new_tokens=4, stop_token_ids=None)
    rows = [len(tokenizer(text)) + 1 for text in TEXT[:2]]
    assert state.tokens == [max(rows) + 4] * 2
    _, after = text_lm.generate(["the", "a key"], state=state, **options)
    lengths = [len(tokenizer(text)) for text in ("the", "a key")]
    assert after.tokens == [each + max(lengths) + 4 for each in state.tokens]
    # One text: the ids are the start token, the text, what came, the second text and what came, and nothing else.
    text, state = text_lm.generate(TEXT[0], strip_prompt=True, **options)
    ids = [start, *np.asarray(tokenizer(TEXT[0]))]
    made = generate(text_lm, {"token_ids": [ids], "padding_mask": [[1] * len(ids)]}, max_new_tokens=4)["token_ids"]
    same_memory(text_lm, state, text_lm.stream(made, text_lm.initial_state(1))[1])
    _, first_of_all = text_lm.generate(TEXT[0], state=text_lm.initial_state(1), **options)
    same_memory(text_lm, first_of_all, state)


def test_states_that_do_not_fit_are_refused_before_any_work(lm, text_lm):
    given = prompts((3, 3))
    half = lm.initial_state(2)
    half = half._replace(layers=(half.layers[0]._replace(key=keras.ops.cast(half.layers[0].key, "float16")),))
    other = language_model(block_size=6)
    same_slots = language_model(block_size=8, memory_segments=0)
    for state, words in (
        (lm.initial_state(3), ("batch size", 2, 3)),
        (other.initial_state(2), ("another model",)),
        (same_slots.initial_state(2), ("another model", "block_size=4", "block_size=8")),
        (half, ("float32", "float16")),
        ("state.npz", ("StreamState", "str")),
    ):
        refused(lambda state=state: generate(lm, given, max_new_tokens=2, state=state), "state", *words)
        one = lm.initial_state(2) if words[0] == "batch size" else state
        refused(lambda one=one: lm.generate_stream([[1, 2]], state=one, stop_token_ids=None), "state")
    refused(lambda: text_lm.generate(TEXT, state=text_lm.initial_state(2)), "state", "3 rows", "2 rows")
    refused(lambda: text_lm.generate("the", state=3), "state", "StreamState", "int")
    refused(lambda: generate(lm, given, return_state="yes"), "return_state", "yes")
    refused(lambda: text_lm.generate(iter(TEXT), return_state=True), "inputs", "one")
    refused(lambda: text_lm.generate("", state=text_lm.stream("the", text_lm.initial_state(1))[1]), "inputs", "token")


# === Texts in `stream` ===


def test_stream_takes_texts(text_lm):
    tokenizer = text_lm.preprocessor.tokenizer
    logits, state = text_lm.stream(TEXT[0], text_lm.initial_state(1))
    ids = [[tokenizer.start_token_id, *np.asarray(tokenizer(TEXT[0]))]]
    expected, _ = text_lm.stream(ids, text_lm.initial_state(1))
    np.testing.assert_array_equal(numpy(logits), numpy(expected))
    more, state = text_lm.stream("the key", state)
    assert more.shape[1] == len(tokenizer("the key"))
    # Several at once: each row is as alone, its padding behind.
    together, states = text_lm.stream(["the", "the quick brown"], text_lm.initial_state(2))
    alone, _ = text_lm.stream("the", text_lm.initial_state(1))
    np.testing.assert_allclose(numpy(together)[:1, : alone.shape[1]], numpy(alone), **TOLERANCE)
    assert states.tokens == [len(tokenizer(text)) + 1 for text in ("the", "the quick brown")]


def test_stream_refuses_texts(lm, text_lm):
    refused(lambda: lm.stream("the", lm.initial_state(1)), "inputs", "preprocessor")
    refused(lambda: text_lm.stream(["the", "key"], text_lm.initial_state(1)), "state", "batch size", 2, 1)
    refused(lambda: text_lm.stream("the", None), "state", "StreamState")
    refused(lambda: text_lm.stream(["the", 3], text_lm.initial_state(2)), "token_ids")


# === As it comes ===


@pytest.mark.parametrize("sampler", ["greedy", "random", "top_k", "top_p"])
def test_pieces_are_the_text_of_generate(sampler, text_lm):
    text_lm.compile(sampler=SAMPLERS[sampler]())
    _, state = text_lm.stream("the memory ", text_lm.initial_state(1))
    options = dict(max_new_tokens=12, stop_token_ids=None, state=state)
    pieces = text_lm.generate_stream("reads every", **options)
    streamed = list(pieces)
    text_lm.compile(sampler=SAMPLERS[sampler]())
    text, after = text_lm.generate("reads every", strip_prompt=True, return_state=True, **options)
    assert "".join(streamed).strip() == text.strip() and len(streamed) > 2
    same_memory(text_lm, pieces.state, after)


def test_ids_come_one_by_one_and_the_state_is_there_at_any_time(lm):
    pieces = lm.generate_stream([[1, 2, 3]], max_new_tokens=6, stop_token_ids=None)
    assert pieces.state is None
    tokens = [next(pieces), next(pieces)]
    assert pieces.state.tokens == [5]
    same_memory(lm, pieces.state, lm.stream([[1, 2, 3, *tokens]], lm.initial_state(1))[1])
    tokens += pieces
    given = {"token_ids": np.array([[1, 2, 3]]), "padding_mask": np.ones((1, 3), "int32")}
    assert tokens == generate(lm, given, max_new_tokens=6, strip_prompt=True)["token_ids"][0, :6].tolist()
    endless = lm.generate_stream(given, stop_token_ids=None)
    assert [next(endless) for _ in range(30)][:6] == tokens


def test_a_stop_token_is_read_and_not_yielded(lm):
    tokens = list(lm.generate_stream([[1, 2, 3]], max_new_tokens=6, stop_token_ids=None))
    stop = tokens[3]
    pieces = lm.generate_stream([[1, 2, 3]], stop_token_ids=[stop])
    first = tokens.index(stop)
    assert list(pieces) == tokens[:first] and pieces.state.tokens == [3 + first + 1]


@pytest.mark.parametrize("words", ["héllo 你好 👩‍👧!", "", "abc"])
def test_code_points_come_whole(words):
    """A tokenizer of nearly nothing but single bytes, so that letters are split over tokens."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = keras_hub.models.GPT2Tokenizer({**vocabulary, "Ġa": 256, "<|endoftext|>": 257}, ["Ġ a"])
    lm = language_model(preprocessor=keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=60))
    lm.compile(sampler=Script([*np.asarray(tokenizer(words)), 257]))
    pieces = list(lm.generate_stream("a é"))
    assert "".join(pieces) == words and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) == len(words)
    # Bytes that are no text: what generate shows for them, at once or as soon as it is certain.
    first, second, third, letter = np.asarray(tokenizer("你A"))
    broken = [first, second, letter, third, third, third, third, third, third, first]
    lm.compile(sampler=Script([*broken, 257]))
    assert "".join(lm.generate_stream("a")) == tokenizer.detokenize(np.array(broken))


def test_generate_stream_refuses(lm, text_lm):
    for sampler in (SAMPLERS["beam"](), SAMPLERS["contrastive"]()):
        other = language_model(sampler=sampler)
        refused(lambda other=other: other.generate_stream([[1]], stop_token_ids=None), "sampler", "greedy")
    refused(lambda: lm.generate_stream("the", stop_token_ids=None), "prompt", "preprocessor")
    refused(lambda: text_lm.generate_stream(["the", "key"]), "prompt", "one text", 2)
    refused(lambda: lm.generate_stream(token_ids(2, 3), stop_token_ids=None), "prompt", "one text", 2)
    refused(lambda: lm.generate_stream([[1, 99]], stop_token_ids=None), "prompt", 99)
    refused(lambda: lm.generate_stream([[1]], stop_token_ids=None, max_new_tokens=0), "max_new_tokens", 0)
    refused(lambda: lm.generate_stream([[1]]), "stop_token_ids", "preprocessor")
    refused(lambda: keras_fam.FAMCausalLM(lm.backbone, compile=False).generate_stream([[1]]), "compile")
