"""What `generate` takes: lengths, stop tokens, padding anywhere, ids and texts; and what it refuses, by name."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import VOCABULARY, fam_backbone, forward, token_ids
from helpers.presets import TEXT, gpt2_tokenizer
from helpers.refusals import refused
from keras import ops

import keras_fam

pytestmark = pytest.mark.shared_out

LENGTH = 11


def language_model(sampler="greedy", preprocessor=None, family="gpt2", fam_length=3, **stock):
    backbone = fam_backbone(family, fam_length=fam_length, stock={"num_layers": 1, **stock})
    lm = keras_fam.FAMCausalLM(backbone, preprocessor)
    lm.compile(sampler=sampler)
    return lm


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def text_lm():
    tokenizer = gpt2_tokenizer()
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=LENGTH)
    return language_model(preprocessor=preprocessor, vocabulary_size=tokenizer.vocabulary_size())


def prompts(lengths=(3, 5), length=LENGTH, seed=0):
    mask = np.arange(length)[None] < np.array(lengths)[:, None]
    ids = np.where(mask, token_ids(len(lengths), length, seed), 0).astype("int32")
    return {"token_ids": ids, "padding_mask": mask}


def generate(lm, inputs, stop_token_ids=None, **options):
    return lm.generate(inputs, stop_token_ids=stop_token_ids, **options)


def assert_same(first, second):
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


# === Lengths ===


def test_ids_are_padded_and_cut_to_max_length(lm):
    given = prompts()
    whole = generate(lm, given)
    for length in (5, 8, LENGTH):
        shorter = {name: value[:, :length] for name, value in given.items()}
        assert_same(generate(lm, shorter, max_length=LENGTH), whole)
    cut = generate(lm, prompts((3, 9)), max_length=7)
    assert cut["token_ids"].shape == cut["padding_mask"].shape == (2, 7)
    np.testing.assert_array_equal(cut["token_ids"][1], prompts((3, 9))["token_ids"][1, :7])


def test_max_new_tokens(lm, text_lm):
    assert_same(generate(lm, prompts(), max_new_tokens=6), generate(lm, prompts()))
    assert_same(generate(lm, prompts((3, 9)), max_new_tokens=2), generate(lm, prompts((3, 9))))
    tokens = 1 + max(len(row) for row in text_lm.preprocessor.tokenizer(TEXT[:2]))  # The start token goes before.
    expected = text_lm.generate(TEXT[:2], max_length=tokens + 3, stop_token_ids=None)
    assert text_lm.generate(TEXT[:2], max_new_tokens=3, stop_token_ids=None) == expected
    assert text_lm.generate(TEXT[0], max_length=tokens, stop_token_ids=None).startswith(TEXT[0])


@pytest.mark.parametrize("value", ["20", 4.0, 0, -1, True, [4]], ids=repr)
def test_bad_lengths(lm, text_lm, value):
    for name in ("max_length", "max_new_tokens"):
        refused(lambda name=name: generate(lm, prompts(), **{name: value}), name, value)
        refused(lambda name=name: text_lm.generate(TEXT, **{name: value}), name, value)
    refused(lambda: generate(lm, prompts(), max_length=9, max_new_tokens=4), "max_length", "max_new_tokens", 9, 4)


# === Stop tokens ===


def test_stop_tokens_in_any_collection(lm):
    free = generate(lm, prompts())
    assert_same(generate(lm, prompts(), []), free)
    stop = int(free["token_ids"][0, 6])
    expected = generate(lm, prompts(), (stop,))
    assert not expected["padding_mask"][0].all()
    arrays = np.array([stop]), np.int64(stop), ops.convert_to_tensor([stop])
    for form in ([stop], {stop}, frozenset([stop]), stop, *arrays):
        assert_same(generate(lm, prompts(), form), expected)
    assert_same(generate(lm, prompts(), {stop, 0}), generate(lm, prompts(), (stop, 0, stop)))


@pytest.mark.parametrize(
    "value", ["end", b"end", {7: 1}, [[7]], [7.5], True, [True], ["7"], [VOCABULARY], -1, [[1], [2, 3]]], ids=repr
)
def test_bad_stop_tokens(lm, value):
    refused(lambda: generate(lm, prompts(), value), "stop_token_ids")


# === Padding ===


def padded(pattern, length=LENGTH):
    """Prompts of 1 for a token and 0 for padding, with room behind them."""
    mask = np.array([[bool(int(each)) for each in row.ljust(length, "0")] for row in pattern])
    return {"token_ids": token_ids(len(mask), length, 4), "padding_mask": mask}


PATTERNS = [["001"], ["00111", "1"], ["0000011", "111"], ["1011", "111101"], ["10000001", "0001"]]


@pytest.mark.parametrize("family, fam_length", [("gpt2", 3), ("gemma", 3), ("gemma", 0)])
def test_padding_before_and_inside_a_prompt_is_not_read(family, fam_length):
    """Against one masked call over the finished text, whose padding no one sees either."""
    lm = language_model(family=family, fam_length=fam_length)
    for pattern in PATTERNS:
        given = padded(pattern)
        finished = generate(lm, given)
        ends = np.array([len(row) for row in pattern])[:, None]
        places = np.arange(LENGTH)[None]
        np.testing.assert_array_equal(finished["padding_mask"], given["padding_mask"] | (places >= ends))
        logits = forward(lm, finished["token_ids"].astype("int32"), finished["padding_mask"].astype("int32"))
        predicted = np.concatenate([given["token_ids"][:, :1], logits.argmax(-1)[:, :-1]], axis=1)
        np.testing.assert_array_equal(finished["token_ids"], np.where(places < ends, given["token_ids"], predicted))


def test_what_stands_in_the_padding_changes_nothing():
    for sampler in ("greedy", keras_hub.samplers.BeamSampler(num_beams=2)):
        lm = language_model(sampler)
        given = padded(["0011", "101"])
        other = dict(given, token_ids=np.where(given["padding_mask"], given["token_ids"], 7).astype("int32"))
        first, second = generate(lm, given)["token_ids"], generate(lm, other)["token_ids"]
        np.testing.assert_array_equal(first[0, 4:], second[0, 4:])
        np.testing.assert_array_equal(first[1, 3:], second[1, 3:])


def test_contrastive_search_takes_padding_behind_prompts_alone():
    lm = language_model(keras_hub.samplers.ContrastiveSampler(k=2))
    refused(lambda: generate(lm, padded(["0011", "11"])), "padding_mask", "Contrastive", "row 0")
    assert generate(lm, padded(["1111", "11"]))["token_ids"].shape == (2, LENGTH)


def test_strip_prompt_keeps_what_was_generated(lm):
    for pattern in (["111", "11111"], ["00111", "11"]):
        finished, stripped = (generate(lm, padded(pattern), strip_prompt=strip) for strip in (False, True))
        for row in range(2):
            expected = finished["token_ids"][row, len(pattern[row]) :]
            np.testing.assert_array_equal(stripped["token_ids"][row][stripped["padding_mask"][row]], expected)


def test_rows_of_padding_alone(lm, text_lm):
    refused(lambda: generate(lm, padded(["111", ""])), "padding_mask", "at least one real token", "row 1")
    for shape in ((0, 4), (2, 0), (1, 4)):
        ids = np.zeros(shape, "int32")
        for model in (lm, text_lm):
            given = {"token_ids": ids, "padding_mask": ids}
            refused(lambda model=model, given=given: generate(model, given), "padding_mask", "row 0")
    if not text_lm.preprocessor.built:
        text_lm.preprocessor.build(None)
    packer = text_lm.preprocessor.packer
    start, packer.start_value = packer.start_value, None  # Qwen has no start token: nothing is before an empty text.
    refused(lambda: text_lm.generate([TEXT[0], ""]), "padding_mask", "row 1")
    packer.start_value = start
    assert len(text_lm.generate([TEXT[0], ""])) == 2


# === Ids and texts ===


def test_ids_in_ids_out_and_texts_in_texts_out(text_lm):
    tf = pytest.importorskip("tensorflow", reason="the prompts come as a tf.data.Dataset")
    given = keras.tree.map_structure(ops.convert_to_numpy, text_lm.preprocessor.generate_preprocess(TEXT))
    end = text_lm.preprocessor.tokenizer.end_token_id
    finished = text_lm.generate(given)
    assert_same(finished, generate(text_lm, given, end))
    assert text_lm.preprocessor is not None
    assert text_lm.generate(TEXT) == text_lm.preprocessor.generate_postprocess(finished)
    assert_same(text_lm.generate(tf.data.Dataset.from_tensor_slices(given).batch(2)), finished)
    finished = text_lm.generate(TEXT)
    for size in (2, 3):
        assert text_lm.generate(tf.data.Dataset.from_tensor_slices(TEXT).batch(size)) == finished
    assert text_lm.generate(np.array(TEXT)) == text_lm.generate(np.array(TEXT, "object")) == finished
    assert text_lm.generate([text.encode() for text in TEXT]) == finished


def test_texts_need_a_preprocessor(lm, text_lm):
    for inputs in (TEXT, TEXT[0], token_ids(2, 4), 3, None):
        refused(lambda inputs=inputs: generate(lm, inputs), "inputs")
    with pytest.raises(ValueError, match="stop_token_ids"):
        lm.generate(prompts())
    refused(lambda: text_lm.generate(iter(TEXT), max_new_tokens=3), "inputs", "max_new_tokens")


def test_generate_wants_compile():
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1}), compile=False)
    refused(lambda: generate(lm, prompts()), "compile")


# === Samplers ===


def test_all_beams_are_refused():
    lm = language_model(keras_hub.samplers.BeamSampler(num_beams=2, return_all_beams=True))
    refused(lambda: generate(lm, prompts()), "sampler", "return_all_beams")


SAMPLERS = {
    "one beam": lambda: keras_hub.samplers.BeamSampler(num_beams=1),
    "five beams": lambda: keras_hub.samplers.BeamSampler(num_beams=5, temperature=0.7),
    "contrastive": lambda: keras_hub.samplers.ContrastiveSampler(k=3, alpha=0.5),
}


@pytest.mark.parametrize("sink", [None, 2])
@pytest.mark.parametrize("fam_length", [0, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_prompt_alone_is_as_in_a_batch(sampler, fam_length, sink):
    """A state of one row, and a state with empty arrays, go through every sampler."""
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", fam_length=fam_length, sink_token_id=sink, stock={"num_layers": 1}))
    lm.compile(sampler=SAMPLERS[sampler]())
    given = prompts((4, 4))
    together = generate(lm, given)["token_ids"]
    for row in range(2):
        alone = generate(lm, {name: value[row : row + 1] for name, value in given.items()})["token_ids"]
        np.testing.assert_array_equal(alone[0], together[row])


class Twice(keras_hub.samplers.GreedySampler):
    """Asks for every token twice, from the same state."""

    def __call__(self, next, **options):
        def asked_twice(*arguments):
            next(*arguments)
            return next(*arguments)

        return super().__call__(next=asked_twice, **options)


def test_a_sampler_may_go_back_to_a_state(lm):
    assert_same(generate(language_model(Twice()), prompts()), generate(lm, prompts()))
