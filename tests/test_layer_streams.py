"""Streams through layers of a model of one's own, without `FAMBackbone`."""

import keras
import numpy as np
import pytest
from helpers.models import GEMMA2_LIKE, GPT2_LIKE, fam_backbone, forward, numpy, randomize, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

TOLERANCE = dict(rtol=1e-5, atol=1e-5)
LIKE = {
    "gemma2": GEMMA2_LIKE,
    "gpt2": {**GPT2_LIKE, "dropout": 0.0},
    "bounded": dict(memory_span=0.5, memory_gate=-0.5),
}


def own_model(fam_length=2, **changes):
    """Embedding, two blocks with memory, and a head, in the functional API."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(50, 16, name="embedding")(ids)
    fam = keras_fam.FAMPrompt(fam_length=fam_length, name="prompt")(x) if fam_length else None
    for _ in range(2):
        options = dict(num_query_heads=4, num_key_value_heads=2, head_dim=4, intermediate_dim=32)
        outputs = keras_fam.FAMDecoderBlock(**{**options, "block_size": 4, "memory_segments": 1, **changes})(x, fam)
        x, fam = outputs if fam_length else (outputs, None)
    model = keras.Model(ids, keras.layers.Dense(50, name="head")(x))
    randomize(model)
    return model


def blocks_of(model):
    return [layer for layer in model.layers if isinstance(layer, keras_fam.FAMDecoderBlock)]


def start(model, batch_size, fam_length=2):
    fam, states = model.get_layer("prompt")(None) if fam_length else None, []
    for block in blocks_of(model):
        states.append(block.initial_state(batch_size, fam))
        fam = block.lift_prompt(fam) if fam_length else None
    return states


def read(model, chunk, states, mask=None):
    x, later = model.get_layer("embedding")(chunk), []
    for block, state in zip(blocks_of(model), states):
        x, state = block.read(x, state, mask)
        later.append(state)
    return numpy(model.get_layer("head")(x)), later


@pytest.mark.parametrize("like", LIKE)
def test_any_split_is_one_call(like):
    model, ids = own_model(**LIKE[like]), token_ids(2, 23)
    expected = model.predict_on_batch(ids)
    for chunks in ([23], [1] * 5 + [18], [3, 4, 5, 11], [7, 1, 15]):
        states, made, position = start(model, 2), [], 0
        for chunk in chunks:
            logits, states = read(model, ids[:, position : position + chunk], states)
            made.append(logits)
            position += chunk
        np.testing.assert_allclose(np.concatenate(made, axis=1), expected, **TOLERANCE)
    assert [int(numpy(state.position)[0]) for state in states] == [23 % 8] * 2


def test_without_fam_and_with_padding():
    model, ids = own_model(fam_length=0), token_ids(2, 11)
    expected = model.predict_on_batch(ids)
    states = start(model, 2, 0)
    first, states = read(model, ids[:, :6], states)
    second, _ = read(model, ids[:, 6:], states)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), expected, **TOLERANCE)
    # A row of padding reads nothing.
    model = own_model()
    block, x = blocks_of(model)[0], np.random.default_rng(0).standard_normal((2, 4, 16)).astype("float32")
    before = start(model, 2)[0]
    _, after = block.read(x, before, np.array([[1, 1, 1, 1], [0, 0, 0, 0]]))
    assert numpy(after.started).tolist() == [True, False]
    np.testing.assert_array_equal(numpy(after.layers[0].fam)[1], numpy(before.layers[0].fam)[1])


def test_states_of_a_layer_are_saved_and_not_written_into(tmp_path):
    model, ids = own_model(), token_ids(1, 12)
    _, states = read(model, ids[:, :6], start(model, 1))
    before = keras.tree.map_structure(lambda x: numpy(x).copy(), states[0])
    keras_fam.save_state(tmp_path / "layer.npz", states[0])
    expected, _ = read(model, ids[:, 6:], states)
    keras.tree.map_structure(np.testing.assert_array_equal, numpy(states[0]), before)
    again, _ = read(model, ids[:, 6:], [keras_fam.load_state(tmp_path / "layer.npz"), states[1]])
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("family", ["gemma2", "llama3"])
def test_a_converted_layer_streams_alone_too(family):
    """Layer by layer it reads what the whole model reads, with a sink."""
    backbone = fam_backbone(family, sink_token_id=3)
    ids = token_ids(1, 14)
    expected = forward(backbone, ids)
    memory, x = backbone.start_of_memory(), backbone.family.embed(ids, None)
    for layer in backbone.transformer_layers:
        state = layer.initial_state(1, **memory)
        first, state = layer.read(x[:, :5], state)
        second, state = layer.read(x[:, 5:], state)
        x = np.concatenate([numpy(first), numpy(second)], axis=1)
        lift = {"fam": layer.lift_prompt, "sink": layer.lift_sink}
        memory = {name: lift[name](value) for name, value in memory.items()}
    np.testing.assert_allclose(numpy(backbone.layer_norm(x)), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda block, state: block.read(np.ones((1, 4, 9), "float32"), state), "16"),
        (lambda block, state: block.read(np.ones((2, 4, 16), "float32"), state), "another batch size"),
        (lambda block, state: block.read(np.ones((1, 0, 16), "float32"), state), "at least one"),
        (lambda block, state: block.read(np.ones((1, 4, 16), "float32"), 3), "StreamState"),
        (lambda block, state: block.read(np.ones((1, 4, 16), "float32"), state, np.ones((1, 3))), "inputs_mask"),
        (lambda block, state: block.read(np.ones((1, 2, 16), "float32"), state, [[1, 0.5]]), "0.5"),
        (lambda block, state: block.initial_state(0), "`batch_size`"),
    ],
)
def test_refused(call, match):
    model = own_model()
    with pytest.raises((TypeError, ValueError), match=match):
        call(blocks_of(model)[0], start(model, 1)[0])
