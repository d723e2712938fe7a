"""The properties of the paper's layers, of models of random families, sizes, options, paddings and chunkings."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from helpers.models import FAMILIES, VOCABULARY, fam_backbone, forward, inputs, numpy, reference, token_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_fam

TOLERANCE = 2e-4  # Of the largest value: soft caps before norms lose that much in float32.


class Case(NamedTuple):
    family: str
    layers: int
    block_size: int
    memory_segments: int
    fam_length: int
    options: dict
    ids: np.ndarray
    mask: np.ndarray
    cuts: tuple
    seed: int


@st.composite
def cases(draw):
    block_size = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8]))
    fam_length = draw(st.integers(0, block_size))
    options = {"sink_token_id": draw(st.sampled_from([None, 0, 3]))}
    if fam_length:
        options["memory_gate"] = draw(st.sampled_from([None, 0.0, -2.0]))
        options["memory_span"] = draw(st.sampled_from([None, 0.5, 4.0]))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2, 24))
    mask = np.stack([draw(paddings(length)) for _ in range(batch)])
    return Case(
        family=draw(st.sampled_from(sorted(FAMILIES))),
        layers=draw(st.integers(1, 2)),
        block_size=block_size,
        memory_segments=draw(st.integers(0, 4)),
        fam_length=fam_length,
        options=options,
        ids=token_ids(batch, length, seed=draw(st.integers(0, 99))),
        mask=mask,
        cuts=tuple(sorted(draw(st.sets(st.integers(1, length - 1), max_size=4)))),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def paddings(draw, length):
    """One row's mask: nothing is padded, the left, the right, holes, or all of it."""
    kind, first = draw(st.sampled_from(["none", "left", "right", "holes", "all"])), draw(st.integers(1, length))
    places = np.arange(length)
    holes = np.random.default_rng(first).random(length) < 0.7
    masks = {"none": places >= 0, "left": places >= first, "right": places < first, "holes": holes, "all": places < 0}
    return masks[kind].astype("int32")


def backbone_of(case):
    stock = {"num_layers": case.layers}
    if case.family == "gpt2":
        stock["max_sequence_length"] = 2 * (case.memory_segments + 1) * case.block_size
    sizes = case.block_size, case.memory_segments, case.fam_length
    return fam_backbone(case.family, *sizes, seed=case.seed, stock=stock, **case.options)


def close(made, expected, mask=None):
    made, expected = (x if mask is None else x[mask > 0] for x in (made, expected))
    if expected.size:
        np.testing.assert_allclose(made, expected, rtol=0, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


def rows_of(state, rows):
    rows = keras.ops.convert_to_tensor(rows)
    return keras.tree.map_structure(lambda x: keras.ops.take(x, rows, axis=0), state)


def streamed(backbone, case, path):
    """In chunks; after each the state goes through a file, and its rows change places."""
    state, parts = backbone.initial_state(len(case.ids)), []
    order = np.arange(len(case.ids))
    for first, last in zip((0, *case.cuts), (*case.cuts, case.ids.shape[1])):
        hidden, state = backbone.stream(inputs(case.ids[order, first:last], case.mask[order, first:last]), state)
        parts.append(numpy(hidden)[np.argsort(order)])
        keras_fam.save_state(path, state)
        turn = np.random.default_rng(first).permutation(len(order))
        state, order = rows_of(keras_fam.load_state(path), turn), order[turn]
    back = np.argsort(order)
    return np.concatenate(parts, axis=1), [numpy(layer.fam)[back] for layer in state.layers]


def holds(case, folder):
    backbone = backbone_of(case)
    whole = forward(backbone, case.ids, case.mask)
    # The reference, in float64, and any split of the text.
    expected, fams = reference(backbone, case.ids, case.mask)
    close(whole, expected, case.mask)
    made, states = streamed(backbone, case, folder / "state.npz")
    close(made, whole, case.mask)
    for state, fam in zip(states, fams if case.fam_length else []):
        close(state, fam)
    # Nothing looks ahead, at padding, or at another row.
    rng, length = np.random.default_rng(case.seed), case.ids.shape[1]
    others = rng.integers(0, VOCABULARY, case.ids.shape).astype("int32")
    middle = length // 2
    ahead = np.where(np.arange(length)[None] < middle, case.ids, others)
    close(forward(backbone, ahead, case.mask)[:, :middle], whole[:, :middle], case.mask[:, :middle])
    close(forward(backbone, np.where(case.mask > 0, case.ids, others), case.mask), whole, case.mask)
    others[0] = case.ids[0]
    close(forward(backbone, others, case.mask)[:1], whole[:1], case.mask[:1])


SETTINGS = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=3, derandomize=True, **SETTINGS)
@given(case=cases())
def test_a_few_models(case, tmp_path_factory):
    holds(case, tmp_path_factory.mktemp("case"))


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(case=cases())
def test_many_models(case, tmp_path_factory):
    holds(case, tmp_path_factory.mktemp("case"))
