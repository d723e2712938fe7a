"""The small functions that everything stands on: loops, rotations, blocks, masks, and what a text passes on."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_fam.backend import buffers
from keras_fam.backend.loops import scan
from keras_fam.backend.random import seeded_dropout, spread_seed
from keras_fam.memory.blocks import merge_blocks, split_blocks, token_mask
from keras_fam.memory.options import MemoryOptions, ModelOptions, position_period
from keras_fam.memory.rotary import block_rotations, rotation, turn
from keras_fam.memory.state import position_after, started_after

pytestmark = pytest.mark.shared_out

# === Loops ===


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan_is_a_loop(length, axis):
    """A recurrence over one axis, with more rows than steps, and everything on the way kept."""
    xs = np.random.default_rng(0).standard_normal((5, 5, 2)).astype("float32")
    start = np.ones((5, 2), "float32")

    def step(carry, x):
        return {"a": carry["a"] * 0.5 + x["x"], "count": carry["count"] + 1}

    carry = {"a": ops.convert_to_tensor(start), "count": ops.convert_to_tensor(0)}
    last, seen = scan(step, lambda carry: carry["a"], carry, {"x": ops.convert_to_tensor(xs)}, length, {"x": axis})
    expected = [start]
    for index in range(length):
        expected.append(expected[-1] * 0.5 + np.take(xs, index, axis))
    np.testing.assert_allclose(numpy(seen), np.stack(expected), rtol=1e-6)
    np.testing.assert_allclose(numpy(last["a"]), expected[-1], rtol=1e-6)
    assert int(numpy(last["count"])) == length


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only tensorflow has lengths that are not known")
def test_scan_of_an_unknown_length():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def cumulated(xs):
        return scan(lambda c, x: c + x["x"], lambda c: c, tf.zeros(2), {"x": xs}, tf.shape(xs)[0] - 1)[1]

    for rows in (1, 2, 5):
        xs = np.random.default_rng(rows).standard_normal((rows, 2)).astype("float32")
        expected = np.concatenate([np.zeros((1, 2)), np.cumsum(xs[:-1], axis=0)])
        np.testing.assert_allclose(cumulated(xs).numpy(), expected, rtol=1e-5, atol=1e-6)


# === Buffers and seeds ===


def test_pieces_are_cut_and_joined():
    x = np.arange(24).reshape(2, 12).astype("float32")
    parts = [buffers.cut(ops.convert_to_tensor(x), start, stop) for start, stop in ((0, 5), (5, 6), (6, 12))]
    np.testing.assert_array_equal(numpy(buffers.join(parts)), x)


def test_a_write_leaves_what_was_there_unless_told_otherwise():
    buffer = ops.zeros((2, 6, 3))
    written = buffers.write(buffer, ops.convert_to_tensor(2), ops.ones((2, 2, 3)))
    assert numpy(buffer).sum() == 0
    expected = np.zeros((2, 6, 3))
    expected[:, 2:4] = 1
    np.testing.assert_array_equal(numpy(written), expected)


def test_values_of_several_tensors_on_the_host():
    ids, mask = np.arange(6).reshape(2, 3), np.array([True, False])
    first, second = buffers.to_host(ops.convert_to_tensor(ids), ops.convert_to_tensor(mask))
    np.testing.assert_array_equal(first, ids)
    np.testing.assert_array_equal(second, mask)


def test_dropout_is_a_function_of_its_seed():
    seed = keras.random.SeedGenerator(3).next()
    x = ops.ones((50, 50))
    first, second = (numpy(seeded_dropout(x, 0.4, seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0.5 < (first > 0).mean() < 0.7 and abs(first.mean() - 1) < 0.1
    other = numpy(seeded_dropout(x, 0.4, spread_seed(seed, 3)[1]))
    assert (first != other).mean() > 0.2
    assert seeded_dropout(x, 0.4, None) is x


# === Blocks and masks ===


@given(length=st.integers(1, 30), size=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_blocks_are_split_and_merged(length, size):
    x = np.random.default_rng(0).standard_normal((2, length, 3)).astype("float32")
    blocks = split_blocks(ops.convert_to_tensor(x), size, length)
    assert tuple(blocks.shape) == (2, -(-length // size), size, 3)
    np.testing.assert_array_equal(numpy(merge_blocks(blocks, length)), x)
    assert not numpy(merge_blocks(blocks, blocks.shape[1] * size))[:, length:].any()


@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_token_sees_itself_and_what_its_window_holds(window):
    seen = numpy(token_mask(ops.arange(4), ops.arange(-4, 4), window))
    for query in range(4):
        for index, key in enumerate(range(-4, 4)):
            assert seen[query, index] == (0 <= query - key < (window or 100))


# === Rotations ===


@pytest.mark.parametrize("options", [{}, dict(scaling_factor=4.0), dict(rope_type="yarn", scaling_factor=4.0)], ids=str)
def test_turns_of_blocks_are_turns_of_places(options):
    """Place tau * B + i, turned as i and then tau times by B, is what the stock layer makes of the whole place."""
    rope = keras_hub.layers.RotaryEmbedding(**options)
    size, blocks, dim = 5, 4, 8
    one = rotation(rope, ops.convert_to_tensor([size], "int32"), dim)
    turns = block_rotations(one, rotation(rope, ops.arange(size), dim), blocks)
    x = np.random.default_rng(0).standard_normal((1, size * (blocks + 1), 2, dim)).astype("float32")
    expected = numpy(rope(ops.convert_to_tensor(x)))  # row tau of `turns` is block tau - 1: places from -B on
    made = turn(ops.reshape(ops.convert_to_tensor(x), (1, blocks + 1, size, 2, dim)), turns)
    np.testing.assert_allclose(numpy(made).reshape(x.shape), expected, rtol=1e-4, atol=1e-4)


def test_a_turn_by_nothing_is_nothing():
    x = ops.ones((1, 2, 1, 4))
    assert turn(x, None) is x


# === Options and state ===


def test_started_and_position():
    started = ops.convert_to_tensor([False, True, False])
    valid = ops.convert_to_tensor([[False, False], [False, False], [False, True]])
    assert numpy(started_after(started, valid)).tolist() == [False, True, True]
    assert numpy(position_after(ops.convert_to_tensor([5, 11], "int32"), 3, 12)).tolist() == [8, 2]


def test_options_know_their_defaults_and_their_layers():
    options = ModelOptions(block_size=8, memory_segments=2, fam_length=4, memory_span=[1, 2, 3, 4])
    assert options.slots == 24 and options.memory_span == (1.0, 2.0, 3.0, 4.0)
    layer = options.for_layers()
    assert type(layer) is MemoryOptions and layer.memory_span == options.memory_span
    assert MemoryOptions(**layer.get_config()) == layer and ModelOptions(**options.get_config()) == options
    assert position_period([24, 16], 10) == 240
