"""The properties of the paper's layers, of models of random families, sizes, options, paddings and chunkings."""

from typing import NamedTuple

import numpy as np
import pytest
from helpers.models import FAMILIES, VOCABULARY, fam_backbone, forward, inputs, numpy, reference, token_ids
from helpers.training import train_forward
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops, tree

import keras_fam

# Of the largest value: soft caps before norms lose that much.
TOLERANCE = {"float32": 2e-4, "float16": 0.05, "bfloat16": 0.3}


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
    dtype: str
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
        dtype=draw(st.sampled_from(["float32", "float32", "float16", "bfloat16"])),
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


def backbone_of(case, **options):
    stock = {"num_layers": case.layers, "dropout": 0.0, "dtype": case.dtype}
    if case.family == "gpt2":
        stock["max_sequence_length"] = 2 * (case.memory_segments + 1) * case.block_size
    sizes = case.block_size, case.memory_segments, case.fam_length
    return fam_backbone(case.family, *sizes, seed=case.seed, stock=stock, **case.options, **options)


def close(made, expected, dtype, mask=None):
    made, expected = (x.astype("float64") if mask is None else x.astype("float64")[mask > 0] for x in (made, expected))
    if expected.size:
        tolerance = TOLERANCE[dtype] * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(made, expected, rtol=0, atol=tolerance)


def rows_of(state, rows):
    rows = ops.convert_to_tensor(rows)
    return tree.map_structure(lambda x: ops.take(x, rows, axis=0), state)


def streamed(backbone, case, path):
    """In chunks: after each the state goes through a file, and its rows change places. The last is read row by row."""
    state, parts = backbone.initial_state(len(case.ids)), []
    order = np.arange(len(case.ids))
    for first, last in zip((0, *case.cuts), (*case.cuts, case.ids.shape[1])):
        if last < case.ids.shape[1]:
            hidden, state = backbone.stream(inputs(case.ids[order, first:last], case.mask[order, first:last]), state)
        else:
            alone = [
                backbone.stream(inputs(case.ids[[row], first:], case.mask[[row], first:]), rows_of(state, [place]))
                for place, row in enumerate(order)
            ]
            hidden, state = tree.map_structure(lambda *rows: ops.concatenate(rows, axis=0), *alone)
        parts.append(numpy(hidden)[np.argsort(order)])
        keras_fam.save_state(path, state)
        turn = np.random.default_rng(first).permutation(len(order))
        state, order = rows_of(keras_fam.load_state(path), turn), order[turn]
    back = np.argsort(order)
    return np.concatenate(parts, axis=1), [numpy(layer.fam)[back] for layer in state.layers]


def carried(case):
    """In two steps of training of whole blocks, the second of which goes on from the first."""
    backbone = backbone_of(case, stateful_batch_size=len(case.ids))
    blocks = case.ids.shape[1] // case.block_size
    cuts = sorted({0, *(cut // case.block_size for cut in case.cuts[-1:]), blocks})
    spans = [slice(first * case.block_size, last * case.block_size) for first, last in zip(cuts, cuts[1:])]
    starts = [[span.start == 0] * len(case.ids) for span in spans]
    return [train_forward(backbone, case.ids[:, span], start, case.mask[:, span]) for span, start in zip(spans, starts)]


def holds(case, folder):
    backbone = backbone_of(case)
    whole = forward(backbone, case.ids, case.mask)
    # The reference, in float64, and any split of the text.
    expected, fams = reference(backbone, case.ids, case.mask)
    close(whole, expected, case.dtype, case.mask)
    made, states = streamed(backbone, case, folder / "state.npz")
    close(made, whole, case.dtype, case.mask)
    for state, fam in zip(states, fams if case.fam_length else []):
        close(state, fam, case.dtype)
    if steps := carried(case):
        made = np.concatenate(steps, axis=1)
        close(made, whole[:, : made.shape[1]], case.dtype, case.mask[:, : made.shape[1]])
    # Nothing looks ahead, at padding, or at another row: the same operations, whatever they round to.
    rng, length = np.random.default_rng(case.seed), case.ids.shape[1]
    others = rng.integers(0, VOCABULARY, case.ids.shape).astype("int32")
    middle = length // 2
    ahead = np.where(np.arange(length)[None] < middle, case.ids, others)
    close(forward(backbone, ahead, case.mask)[:, :middle], whole[:, :middle], "float32", case.mask[:, :middle])
    close(forward(backbone, np.where(case.mask > 0, case.ids, others), case.mask), whole, "float32", case.mask)
    others[0] = case.ids[0]
    close(forward(backbone, others, case.mask)[:1], whole[:1], "float32", case.mask[:1])


def holds_in_use(case, folder):
    """What a language model says is what its logits say, however it is asked, also when it comes from a preset."""
    backbone = backbone_of(case._replace(dtype="float32"))
    lm = keras_fam.FAMCausalLM(backbone)
    lm.compile(sampler="greedy")
    logits = logits_of(lm, case.ids, np.ones_like(case.mask))
    losses = -np.take_along_axis(numpy(ops.log_softmax(logits))[:, :-1], case.ids[:, 1:, None], axis=2)
    found = lm.perplexity([row.tolist() for row in case.ids], verbose=0)
    np.testing.assert_allclose(found.nats, losses.mean(), atol=1e-3)
    found = lm.evaluate(inputs(case.ids[:, :-1]), case.ids[:, 1:], batch_size=len(case.ids), verbose=0)
    np.testing.assert_allclose(tree.flatten(found)[0], losses.mean(), atol=1e-3)
    # Each new token is the likeliest, if by more than rounding, in one masked call on the finished text.
    rows = case.mask.any(axis=1)
    if rows.any():
        prompts = inputs(case.ids[rows], case.mask[rows])
        finished = lm.generate(prompts, max_new_tokens=3, stop_token_ids=None)
        ids, mask = (finished[name].astype("int32") for name in ("token_ids", "padding_mask"))
        logits = logits_of(lm, ids, mask)[:, :-1]
        first, second = np.moveaxis(np.sort(logits, axis=2)[..., :-3:-1], 2, 0)
        sure = first - second > 1e-3
        ends = case.ids.shape[1] - np.argmax(case.mask[rows][:, ::-1], axis=1)
        made = (np.arange(1, ids.shape[1]) >= ends[:, None]) & (mask[:, 1:] > 0)
        np.testing.assert_array_equal(made.sum(axis=1), ends.max() + 3 - ends)  # All rows are as long in the end.
        np.testing.assert_array_equal(ids[:, 1:][made & sure], logits.argmax(axis=2)[made & sure])
    backbone.save_to_preset(folder / "preset")
    loaded = keras_fam.FAMBackbone.from_preset(str(folder / "preset"))
    assert loaded.options == backbone.options
    np.testing.assert_array_equal(forward(loaded, case.ids, case.mask), forward(backbone, case.ids, case.mask))


def logits_of(lm, ids, mask):
    return numpy(lm.backbone.logits(ops.convert_to_tensor(forward(lm.backbone, ids, mask)))).astype("float64")


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


@pytest.mark.slow
@settings(max_examples=60, **SETTINGS)
@given(case=cases())
def test_many_models_in_use(case, tmp_path_factory):
    holds_in_use(case, tmp_path_factory.mktemp("case"))
