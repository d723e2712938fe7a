"""Streams inside compiled functions: `jax.jit`, `tf.function`, and torch's functions as they are."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone, inputs, numpy, token_ids
from helpers.refusals import refused
from keras import ops

import keras_fam

TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def compiled(function):
    """`function` of structures of tensors, compiled by the backend; on torch as it is."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


@pytest.fixture(scope="module")
def lm():
    return keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1}))


def same_memory(model, made, expected):
    """The same, but for places of the ring behind the last token: nothing sees them, and the next tokens go there."""
    for name in ("started", "position", "tokens_read", "block_size"):
        np.testing.assert_array_equal(numpy(getattr(made, name)), numpy(getattr(expected, name)))
    for layer, wanted in zip(made.layers, expected.layers):
        np.testing.assert_allclose(numpy(layer.fam), numpy(wanted.fam), **TOLERANCE)
    ids = ops.convert_to_tensor(token_ids(made.position.shape[0], 13, seed=8))
    made, expected = (model.stream(ids, state)[0] for state in (made, expected))
    np.testing.assert_allclose(numpy(made), numpy(expected), **TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_chunks_of_any_length_at_any_place(family):
    """B = 4: a chunk that ends in its block, fills it, and goes on over several, from every place."""
    backbone = fam_backbone(family, stock={"num_layers": 1})
    ids = ops.convert_to_tensor(token_ids(2, 24))
    read = compiled(lambda chunk, state: backbone.stream(chunk, state))
    for length in (1, 2, 11):
        for place in (0, 1, 3):
            _, state = backbone.stream(ids[:, : 8 + place], backbone.initial_state(2))
            chunk = ids[:, 8 + place :][:, :length]
            (made, after), (expected, wanted) = read(chunk, state), backbone.stream(chunk, state)
            np.testing.assert_allclose(numpy(made), numpy(expected), **TOLERANCE)
            same_memory(backbone, after, wanted)


def test_padding_in_a_compiled_chunk(lm):
    ids = token_ids(2, 11)
    mask = np.ones_like(ids)
    mask[0, 3:9], mask[1, :2] = 0, 0
    _, state = lm.stream(token_ids(2, 6), lm.initial_state(2))
    chunk = keras.tree.map_structure(ops.convert_to_tensor, inputs(ids, mask))
    (made, after), (expected, wanted) = compiled(lm.stream)(chunk, state), lm.stream(chunk, state)
    np.testing.assert_allclose(numpy(made)[mask > 0], numpy(expected)[mask > 0], **TOLERANCE)
    same_memory(lm, after, wanted)


def test_a_loop_of_ones_own(lm):
    """Greedy decoding, token by token, in one compiled function that goes over block boundaries."""
    steps = 9

    def decode(token, state):
        def step(index, token, tokens, state):
            logits, state = lm.stream(token, state)
            token = ops.cast(ops.argmax(logits[:, -1:], axis=-1), "int32")
            return index + 1, token, ops.slice_update(tokens, [0, index], token), state

        start = (ops.convert_to_tensor(0, "int32"), token, ops.zeros((1, steps), "int32"), state)
        _, _, tokens, state = ops.while_loop(lambda index, *_: index < steps, step, start)
        return tokens, state

    _, state = lm.stream([[1, 2, 3, 4, 5]], lm.initial_state(1))
    tokens, after = compiled(decode)(ops.convert_to_tensor([[7]], "int32"), state)
    expected = list(lm_pieces(lm, [[7]], state, steps))
    assert numpy(tokens)[0].tolist() == expected
    assert after.tokens == [5 + steps]


def lm_pieces(lm, prompt, state, count):
    lm.compile(sampler="greedy")
    return lm.generate_stream(prompt, state=state, max_new_tokens=count, stop_token_ids=None)


class Streaming(keras_hub.samplers.GreedySampler):
    """A sampler of one's own that looks ahead: it reads each token it draws by `stream`."""

    def __init__(self, lm):
        super().__init__()
        self.lm = [lm]  # In a list: samplers are no layers.

    def get_next_token(self, probabilities):
        token = super().get_next_token(probabilities)
        logits, _ = self.lm[0].stream(token[:, None], self.lm[0].backbone.begin(token.shape[0]))
        return token + 0 * ops.cast(ops.argmax(logits[:, 0], axis=-1), token.dtype)


def test_a_sampler_of_ones_own(lm):
    given = {"token_ids": token_ids(2, 9), "padding_mask": np.arange(9)[None].repeat(2, 0) < 3}
    lm.compile(sampler="greedy")
    expected = lm.generate(dict(given), stop_token_ids=None)["token_ids"]
    lm.compile(sampler=Streaming(lm))
    np.testing.assert_array_equal(lm.generate(dict(given), stop_token_ids=None)["token_ids"], expected)


def test_shapes_and_dtypes_are_checked_while_tracing(lm):
    read = compiled(lm.stream)
    ids = ops.convert_to_tensor(token_ids(2, 3))
    refused(lambda: read(ids, lm.initial_state(1)), "state", "batch size")
    refused(lambda: read(ops.cast(ids, "float32"), lm.initial_state(2)), "token_ids", "integers")
    half = lm.initial_state(2)._replace(valid=ops.zeros((2, 8), "int32"))
    refused(lambda: read(ids, half), "valid", "bool", "int32")


def test_tensorflow_traces_any_length(lm):
    if keras.config.backend() != "tensorflow":
        pytest.skip("a dynamic length is tensorflow's alone")
    import tensorflow as tf

    _, state = lm.stream(token_ids(1, 6), lm.initial_state(1))
    spec = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), state)
    read = tf.function(lm.stream, input_signature=[tf.TensorSpec((1, None), "int32"), spec])
    for length in (1, 2, 9):
        chunk = tf.constant(token_ids(1, length))
        (made, after), (expected, wanted) = read(chunk, state), lm.stream(chunk, state)
        np.testing.assert_allclose(numpy(made), numpy(expected), **TOLERANCE)
        same_memory(lm, after, wanted)


# === The line that a state prints ===


def test_a_state_prints_on_one_line(lm):
    _, state = lm.stream(token_ids(2, 1234), lm.initial_state(2))
    size = sum(x.nbytes for x in keras.tree.flatten(numpy(state)))
    line = f"StreamState(1 layer, 2 streams, B=4, m=1, N=3, {size:,} bytes, 1,234 tokens read)"
    assert repr(state) == line and f"{state}" == line
    padding = inputs(token_ids(2, 3), np.array([[1, 1, 0], [0, 0, 0]]))
    assert "1,234 to 1,236 tokens read" in repr(lm.stream(padding, state)[1])
    row = keras.tree.map_structure(lambda x: x[:1], state)
    assert "1 stream," in repr(row) and row.tokens == [1234]
    assert "not counted" in repr(state._replace(tokens_read=(), block_size=())) and "B=8" in repr(
        state._replace(tokens_read=(), block_size=())
    )
    assert (
        repr(state._replace(layers=None))
        == "StreamState(NoneType, " + ", ".join([type(state.valid).__name__] * 5) + ")"
    )
    assert repr(lm.backbone.state_spec(1)).startswith("StreamState(1 layer, 1 stream, (m + 1) * B=8")


def test_tokens_are_counted_beyond_two_to_the_thirty(lm):
    state = lm.initial_state(1)
    near = ops.convert_to_tensor([[3, 2**30 - 2]], "int32")
    _, state = lm.stream(token_ids(1, 5), state._replace(tokens_read=near))
    assert state.tokens == [3 * 2**30 + 2**30 + 3]
    assert numpy(state.tokens_read).tolist() == [[4, 3]]


def test_a_state_is_seen_while_a_function_is_traced(lm):
    seen = []

    def look(state):
        seen.append(repr(state))
        return state.position

    compiled(look)(lm.initial_state(1))
    assert seen[0].startswith("StreamState(1 layer, 1 stream")
