"""Property 4: any split of a text, fed with state, equals one call; and the state is all there is."""

import keras
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, forward, inputs, numpy, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_fam
from keras_fam.layers.streams import spans as pieces

TOLERANCE = dict(rtol=1e-5, atol=1e-5)
LENGTH = 23


def stream(backbone, ids, chunks, mask=None, state=None):
    state = backbone.initial_state(ids.shape[0]) if state is None else state
    hidden, start = [], 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        chunk_inputs = ids[:, part] if mask is None else inputs(ids[:, part], mask[:, part])
        output, state = backbone.stream(chunk_inputs, state)
        hidden.append(numpy(output))
        start += chunk
    return np.concatenate(hidden, axis=1), state


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    backbone = fam_backbone(request.param)
    ids = token_ids(2, LENGTH)
    return backbone, ids, forward(backbone, ids)


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, LENGTH], ids=["token", "B-1", "B", "B+1", "whole"])
def test_equal_chunks(case, chunk):
    backbone, ids, whole = case
    chunks = [chunk] * (LENGTH // chunk) + [LENGTH % chunk] * bool(LENGTH % chunk)
    np.testing.assert_allclose(stream(backbone, ids, chunks)[0], whole, **TOLERANCE)


@pytest.mark.shared_out
@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, LENGTH - 1), max_size=6))
def test_ragged_chunks(case, cuts):
    backbone, ids, whole = case
    edges = [0, *sorted(cuts), LENGTH]
    np.testing.assert_allclose(stream(backbone, ids, np.diff(edges))[0], whole, **TOLERANCE)


@pytest.mark.shared_out
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_chunks(family):
    backbone, ids = fam_backbone(family), token_ids(3, LENGTH)
    mask = np.ones_like(ids)
    mask[0, 4:8] = 0
    mask[1, :6] = 0
    mask[2, 15:] = 0
    whole = forward(backbone, ids, mask)
    streamed, state = stream(backbone, ids, [3, 6, 1, 13], mask)
    np.testing.assert_allclose(streamed[mask > 0], whole[mask > 0], **TOLERANCE)
    assert numpy(state.started).tolist() == [True, True, True]


def test_a_row_of_padding_keeps_its_prompt():
    backbone, ids = fam_backbone("gemma"), token_ids(2, 4)
    start = backbone.initial_state(2)
    mask = np.array([[1, 1, 1, 1], [0, 0, 0, 0]])
    _, state = backbone.stream(inputs(ids, mask), start)
    assert numpy(state.started).tolist() == [True, False]
    for before, after in zip(start.layers, state.layers):
        np.testing.assert_array_equal(numpy(before.fam)[1], numpy(after.fam)[1])
        assert np.abs(numpy(before.fam)[0] - numpy(after.fam)[0]).max() > 0.01


@pytest.mark.shared_out
@pytest.mark.parametrize("memory_segments", [0, 2])
@pytest.mark.parametrize("fam_length", [0, 4])
def test_other_shapes(memory_segments, fam_length):
    backbone = fam_backbone("gemma2", 4, memory_segments, fam_length)
    ids = token_ids(1, 19)
    np.testing.assert_allclose(stream(backbone, ids, [7, 1, 11])[0], forward(backbone, ids), **TOLERANCE)


def test_the_state_has_a_fixed_size_and_is_not_written_into(case):
    backbone, ids, _ = case
    state = backbone.initial_state(2)
    shapes = keras.tree.map_structure(lambda x: (tuple(x.shape), str(x.dtype)), state)
    before = keras.tree.map_structure(np.copy, numpy(state))
    for _ in range(3):
        _, state_after = backbone.stream(ids, state)
        _, state_after = backbone.stream(ids[:, :5], state_after)
    assert keras.tree.map_structure(lambda x: (tuple(x.shape), str(x.dtype)), state_after) == shapes
    keras.tree.map_structure(np.testing.assert_array_equal, numpy(state), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_block_ten_million_is_as_exact_as_block_ten(family, dtype):
    """The same memory and tokens give the same output, to the bit, however much was read before."""
    backbone = fam_backbone(family, stock={"dtype": dtype})
    ids = token_ids(1, 16)
    _, state = backbone.stream(ids, backbone.initial_state(1))
    period = backbone.position_period
    blocks_later = 10_000_000 * backbone.block_size // period * period
    assert blocks_later % period == 0 and int(numpy(state.position)[0]) < period
    later = state._replace(position=(state.position + blocks_later) % period)
    near, far = (numpy(ops.cast(backbone.stream(ids, s)[0], "float32")) for s in (state, later))
    np.testing.assert_array_equal(near, far)
    # And the counter itself stays inside its period, so that it never overflows.
    for _ in range(8):
        _, state = backbone.stream(ids, state)
        assert 0 <= int(numpy(state.position)[0]) < period


def test_rotary_layers_depend_on_places_in_the_ring_alone():
    """A stream moved on by whole turns of the ring over padding sees the same memory at the same distances."""
    backbone = fam_backbone("gemma", block_size=4, memory_segments=0)
    ids = token_ids(1, 4)
    _, state = backbone.stream(ids, backbone.initial_state(1))
    expected = numpy(backbone.stream(ids, state)[0])
    _, moved = backbone.stream(inputs(token_ids(1, 400), np.zeros((1, 400), "int32")), state)
    np.testing.assert_array_equal(numpy(backbone.stream(ids, moved)[0]), expected)


def test_rows_can_be_selected_and_reordered(case):
    backbone, ids, _ = case
    _, state = backbone.stream(ids, backbone.initial_state(2))
    swapped = keras.tree.map_structure(lambda x: ops.take(x, [1, 0], axis=0), state)
    straight, _ = backbone.stream(ids, state)
    crossed, _ = backbone.stream(ids[::-1].copy(), swapped)
    np.testing.assert_allclose(numpy(crossed)[::-1], numpy(straight), **TOLERANCE)


@pytest.mark.shared_out
def test_logits_of_a_task(case):
    backbone, ids, whole = case
    lm = keras_fam.FAMCausalLM(backbone)
    state = lm.initial_state(batch_size=2)
    first, state = lm.stream(ids[:, :9], state)
    second, _ = lm.stream({"token_ids": ids[:, 9:], "padding_mask": np.ones((2, LENGTH - 9), "int32")}, state)
    expected = numpy(backbone.token_embedding(ops.convert_to_tensor(whole), reverse=True))
    np.testing.assert_allclose(np.concatenate([numpy(first), numpy(second)], axis=1), expected, **TOLERANCE)


@given(length=st.integers(1, 200), place=st.integers(0, 63), size=st.sampled_from([1, 5, 8, 64]))
def test_pieces_cover_the_chunk_and_stay_inside_blocks(length, place, size):
    place %= size
    spans = pieces(length, place, size)
    assert [start for start, _ in spans] == [0, *[stop for _, stop in spans[:-1]]] and spans[-1][1] == length
    for start, stop in spans:
        assert (place + start) // size == (place + stop - 1) // size
        assert stop - start == size or (stop - start).bit_count() == 1
