"""Bad token ids, masks and states: refused by an error that names the argument, with nothing changed."""

import keras
import numpy as np
import pytest
from helpers.models import VOCABULARY, fam_backbone, inputs, numpy, token_ids
from helpers.refusals import refused

import keras_fam

pytestmark = pytest.mark.shared_out

# === Token ids and masks ===

BAD_TOKENS = {
    "rank 1": ([1, 2, 3], ("rank 2", "(3,)")),
    "rank 3": (np.ones((1, 2, 3), "int32"), ("rank 2", "(1, 2, 3)")),
    "a number": (3, ("rank 2", "()")),
    "ragged": ([[1, 2], [3]], ("rank 2",)),
    "floats": ([[1.0, 2.0]], ("integers", "float")),
    "bools": ([[True, False]], ("integers", "bool")),
    "words": ([["the", "key"]], ("integers",)),
    "over the vocabulary": ([[1, VOCABULARY]], (f"0 to {VOCABULARY - 1}", VOCABULARY)),
    "negative": ([[1, -1]], (f"0 to {VOCABULARY - 1}", -1)),
}


def as_inputs(ids):
    """The dict of a model call, whatever the ids are."""
    return {"token_ids": ids, "padding_mask": ids}


@pytest.mark.parametrize("kind", BAD_TOKENS)
@pytest.mark.usefixtures("unchanged")
def test_token_ids(lm, kind):
    ids, words = BAD_TOKENS[kind]
    state = lm.initial_state(1)
    refused(lambda: lm.stream(ids, state), "token_ids", *words)
    refused(lambda: lm.backbone.stream({"token_ids": ids}, state), "token_ids", *words)
    refused(lambda: lm(as_inputs(ids)), "token_ids", *words)
    refused(lambda: lm.backbone(as_inputs(ids)), "token_ids", *words)
    refused(lambda: lm.generate(as_inputs(ids)), "token_ids", *words)
    refused(lambda: lm.score(ids), "token_ids", *words)


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (6,), (2, 6, 1)], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_a_mask_of_another_shape(lm, shape):
    chunk = inputs(token_ids(2, 6), np.ones(shape, "int32"))
    words = ("padding_mask", (2, 6), shape)
    refused(lambda: lm.stream(chunk, lm.initial_state(2)), *words)
    refused(lambda: lm(chunk), *words)
    refused(lambda: lm.backbone(chunk), *words)
    refused(lambda: lm.generate(chunk), *words)
    refused(lambda: lm.score(**chunk), *words)


@pytest.mark.usefixtures("unchanged")
def test_dicts_with_a_key_missing(lm):
    ids = token_ids(1, 6)
    refused(lambda: lm.stream({"ids": ids}, lm.initial_state(1)), "token_ids", "['ids']")
    refused(lambda: lm.generate({"token_ids": ids}), "padding_mask", "['token_ids']")


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (0, 0)], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_an_empty_chunk(lm, shape):
    refused(lambda: lm.stream(np.ones(shape, "int32"), lm.initial_state(1)), "token_ids", "empty", shape)
    refused(lambda: lm.stream([[]], lm.initial_state(1)), "token_ids", "empty")


@pytest.mark.usefixtures("unchanged")
def test_score(lm):
    ids = token_ids(2, 6)
    refused(lambda: lm.score(ids, scoring_mode="perplexity"), "scoring_mode", "perplexity")
    refused(lambda: lm.score(ids, scoring_mode="loss"), "target_ids", None)
    refused(lambda: lm.score(ids, scoring_mode="loss", target_ids=ids[:, 1:]), "target_ids", (2, 6), (2, 5))
    refused(lambda: lm.score(ids, scoring_mode="loss", target_ids=ids + VOCABULARY), "target_ids", VOCABULARY - 1)


# === States ===


def replace_layer(state, **changes):
    return state._replace(layers=(state.layers[0]._replace(**changes), *state.layers[1:]))


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, "1", None])
def test_batch_size(lm, batch_size):
    refused(lambda: lm.initial_state(batch_size), "batch_size", batch_size)


@pytest.mark.parametrize("change", [{"block_size": 6}, {"memory_segments": 0}, {"fam_length": 2}], ids=str)
def test_a_state_of_another_memory(lm, change):
    other = fam_backbone("gpt2", **change)
    refused(lambda: lm.stream(token_ids(1, 3), other.initial_state(1)), "state", "another model", "expected", "shape")


@pytest.mark.parametrize("family, change", [("gpt2", {"num_layers": 1}), ("gpt2", {"hidden_dim": 8}), ("gemma", {})])
def test_a_state_of_another_model(lm, family, change):
    other = fam_backbone(family, stock=change)
    refused(lambda: lm.stream(token_ids(1, 3), other.initial_state(1)), "state", "another model", "expected")


@pytest.mark.usefixtures("unchanged")
def test_a_state_of_another_batch_size_or_dtype(lm):
    state = lm.initial_state(2)
    before = [x.tobytes() for x in keras.tree.flatten(numpy(state))]
    refused(lambda: lm.stream(token_ids(3, 3), state), "state", "batch size", 3, 2)
    half = keras.ops.cast(state.layers[0].key, "bfloat16")
    refused(lambda: lm.stream(token_ids(2, 3), replace_layer(state, key=half)), "layers/0/key", "float32", "bfloat16")
    position = keras.ops.cast(state.position, "float32")
    refused(lambda: lm.stream(token_ids(2, 3), state._replace(position=position)), "position", "int32", "float32")
    assert [x.tobytes() for x in keras.tree.flatten(numpy(state))] == before


@pytest.mark.parametrize("state", [None, 0, "state.npz", (), {}, (1, 2, 3, 4)], ids=repr)
def test_no_state_at_all(lm, state, tmp_path):
    refused(lambda: lm.stream(token_ids(1, 3), state), "state", "StreamState", type(state).__name__)
    refused(lambda: keras_fam.save_state(tmp_path / "state.npz", state), "state", "StreamState", type(state).__name__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"layers": None}, {"layers": (1, 2)}, {"valid": None}, {"position": 3}], ids=str)
def test_a_state_with_parts_missing(lm, change, tmp_path):
    state = lm.initial_state(1)._replace(**change)
    refused(lambda: lm.stream(token_ids(1, 3), state), "state")
    refused(lambda: keras_fam.save_state(tmp_path / "state.npz", state), "state")
    assert list(tmp_path.iterdir()) == []
