"""Files of format 1, in `fixtures`, load and give the numbers that were computed when they were written."""

import os

import keras
import numpy as np
import pytest
from helpers.models import inputs, numpy, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

FIXTURES = os.path.join(os.path.dirname(__file__), "fixtures")
IDS = token_ids(2, 11) % 40


def fixture(name):
    return os.path.join(FIXTURES, name)


def agrees(values, name):
    np.testing.assert_allclose(numpy(values), np.load(fixture(name)), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def lm():
    return keras_fam.FAMCausalLM.from_preset(fixture("preset_v1"))


def test_a_preset(lm):
    agrees(lm(inputs(IDS)), "logits_v1.npy")


def test_a_state(lm):
    agrees(lm.stream(IDS[:, 7:], keras_fam.load_state(fixture("state_v1.npz")))[0], "streamed_v1.npy")


def test_a_state_in_bfloat16():
    state = keras_fam.load_state(fixture("state_v1_bfloat16.npz"))
    assert keras.backend.standardize_dtype(state.layers[0].key.dtype) == "bfloat16"
    values = np.concatenate([numpy(x).astype("float32").ravel() for x in keras.tree.flatten(state)])
    np.testing.assert_array_equal(values, np.load(fixture("bfloat16_v1.npy")))


def test_a_state_that_did_not_count_goes_on_without_counting(lm, tmp_path):
    """It prints its place, and a text that goes on from it gets no start token."""
    lm.compile(sampler="greedy")
    state = keras_fam.load_state(fixture("state_v1.npz"))
    assert state.tokens is None and "not counted, place 7" in repr(state) and "(m + 1) * B=8" in repr(state)
    options = dict(stop_token_ids=None, max_new_tokens=3)
    texts, after = lm.generate(["the", "key"], state=state, return_state=True, **options)
    ids = [np.asarray(row) for row in lm.preprocessor.tokenizer(["the", "key"])]
    given = np.zeros((2, max(map(len, ids))), "int32")
    mask = np.arange(given.shape[1])[None] < np.array([[len(row)] for row in ids])
    given[mask] = np.concatenate(ids)
    made = lm.generate({"token_ids": given, "padding_mask": mask}, state=state, **options)
    assert after.tokens is None and texts == lm.preprocessor.generate_postprocess(made)
    keras_fam.save_state(tmp_path / "state.npz", after)
    assert keras_fam.load_state(tmp_path / "state.npz").tokens is None


def test_an_adapter():
    lm = keras_fam.FAMCausalLM.from_preset(fixture("preset_v1"))
    lm.load_lora_weights(fixture("adapter_v1.lora.h5"))
    agrees(lm(inputs(IDS)), "adapted_v1.npy")
    assert np.abs(np.load(fixture("adapted_v1.npy")) - np.load(fixture("logits_v1.npy"))).max() > 0.1


def test_what_is_loaded_and_saved_again_is_of_the_new_format(tmp_path):
    """The old state, saved by today's code, is not the old file, and is the same state."""
    state = keras_fam.load_state(fixture("state_v1.npz"))
    keras_fam.save_state(tmp_path / "state.npz", state)
    assert b"StreamState/2" in (tmp_path / "state.npz").read_bytes()
    for x, y in zip(keras.tree.flatten(keras_fam.load_state(tmp_path / "state.npz")), keras.tree.flatten(state)):
        np.testing.assert_array_equal(numpy(x), numpy(y))
