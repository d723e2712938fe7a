"""The training options of the spec, each by what it does to gradients or to state."""

import keras
import numpy as np
import pytest
from helpers.gradients import loss_and_gradients
from helpers.models import EVERY_PART, FAMILIES, fam_backbone, inputs, numpy, reference, token_ids, weights_by_path
from keras import ops

import keras_fam

EMBEDDINGS = "token_embedding/embeddings"


def gradient_reaches(backbone, source_block, target_block, length=20):
    """Whether the loss on one block's outputs has a gradient in another block's tokens."""
    ids = np.arange(1, length + 1, dtype="int32")[None]  # Every token once, so that rows of the table are places.
    start = target_block * backbone.block_size
    head = np.random.default_rng(0).standard_normal((backbone.block_size, 16)).astype("float32")
    _, gradients = loss_and_gradients(
        backbone,
        inputs(ids),
        lambda hidden: ops.sum(hidden[0, start : start + backbone.block_size] * ops.convert_to_tensor(head)),
    )
    source = ids[0, source_block * backbone.block_size : (source_block + 1) * backbone.block_size]
    return bool(np.abs(gradients[EMBEDDINGS][source]).max() > 0)


ONE_LAYER = dict(stock={"num_layers": 1})


def test_gradient_flows_through_fam_and_through_memory():
    fam_only = fam_backbone("gemma", memory_segments=0, **ONE_LAYER)
    assert [gradient_reaches(fam_only, source, 4) for source in range(5)] == [True] * 5
    memory_only = fam_backbone("gemma", memory_segments=2, fam_length=0, **ONE_LAYER)
    assert [gradient_reaches(memory_only, source, 4) for source in range(5)] == [False, False, True, True, True]


def test_stop_gradient_memory_cuts_memory_segments_and_not_fam():
    memory_only = fam_backbone("gemma", memory_segments=2, fam_length=0, stop_gradient_memory=True, **ONE_LAYER)
    assert [gradient_reaches(memory_only, source, 4) for source in range(5)] == [False] * 4 + [True]
    with_fam = fam_backbone("gemma", memory_segments=2, stop_gradient_memory=True, **ONE_LAYER)
    assert [gradient_reaches(with_fam, source, 4) for source in range(5)] == [True] * 5


@pytest.mark.parametrize("every", [1, 2, 3])
def test_truncate_bptt_cuts_fam_every_k_blocks(every):
    backbone = fam_backbone("gemma", memory_segments=0, truncate_bptt=every, **ONE_LAYER)
    # Block 4 reads F_3; F_tau is cut where tau + 1 is a multiple of k.
    cuts = [tau for tau in range(4) if (tau + 1) % every == 0]
    first = max(cuts) + 1 if cuts else 0
    assert [gradient_reaches(backbone, source, 4) for source in range(5)] == [source >= first for source in range(5)]


@pytest.mark.parametrize("option", [{"stop_gradient_memory": True}, {"truncate_bptt": 1}])
def test_cutting_gradients_changes_no_output(option):
    ids = token_ids(2, 18)
    plain, cut = fam_backbone("gpt2")(inputs(ids)), fam_backbone("gpt2", **option)(inputs(ids))
    np.testing.assert_allclose(numpy(cut), numpy(plain), atol=1e-6)


def fit_once(backbone, ids, **options):
    """One training step at learning rate 0, through `fit`."""
    lm = keras_fam.FAMCausalLM(backbone)
    lm.compile(optimizer=keras.optimizers.SGD(0.0), **options)
    lm.fit(inputs(ids[:, :-1]), ids[:, 1:], batch_size=len(ids), verbose=0)
    return lm


def last_fams(backbone):
    return [numpy(layer.last_fam.value) for layer in backbone.transformer_layers]


NO_DROPOUT = {"dropout": 0.0}


@pytest.mark.parametrize("family, length", [("gemma", 19), ("gpt2", 16)])
def test_random_state_passing_keeps_row_0_s_last_fam_and_starts_from_it(family, length):
    backbone = fam_backbone(family, random_state_passing=1.0, stock=NO_DROPOUT)
    ids = token_ids(2, length + 1)
    lm = fit_once(backbone, ids)
    _, fams = reference(backbone, ids[:, :-1])
    for kept, expected in zip(last_fams(backbone), fams):
        np.testing.assert_allclose(kept, expected[0], rtol=1e-5, atol=1e-5)
    # The next step goes on from there, for all rows, and with its residual in the first block.
    start = [np.repeat(kept[None], 2, axis=0) for kept in last_fams(backbone)]
    lm.fit(inputs(ids[:, :-1]), ids[:, 1:], batch_size=2, verbose=0)
    _, fams = reference(backbone, ids[:, :-1], start=start)
    for kept, expected in zip(last_fams(backbone), fams):
        np.testing.assert_allclose(kept, expected[0], rtol=1e-5, atol=2e-5)
    # Outside training nothing is passed on.
    expected, _ = reference(backbone, ids)
    np.testing.assert_allclose(numpy(backbone(inputs(ids))), expected, rtol=1e-5, atol=1e-5)


def test_the_probability_of_state_passing_can_change_during_fit():
    backbone = fam_backbone("gemma", random_state_passing=1.0)
    ids, seen = token_ids(2, 17), []
    lm = keras_fam.FAMCausalLM(backbone)
    lm.compile(optimizer=keras.optimizers.SGD(0.0))
    schedule = keras_fam.RandomStatePassingSchedule(lambda step: 0.0 if step < 3 else 1.0)

    def look(batch, logs):
        if keras.config.backend() == "jax":
            lm.jax_state_sync()
        seen.append((backbone.random_state_passing, last_fams(backbone)[0]))

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    five = np.tile(ids, (5, 1))  # The same batch in every step.
    lm.fit(inputs(five[:, :-1]), five[:, 1:], batch_size=2, shuffle=False, callbacks=[schedule, watch], verbose=0)
    assert [probability for probability, _ in seen] == [0, 0, 0, 1, 1]
    kept = [fam for _, fam in seen]
    # From the prompt every step ends alike; once passed on, the memory moves.
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-6)
    np.testing.assert_allclose(kept[2], kept[0], atol=1e-6)
    assert np.abs(kept[3] - kept[2]).max() > 1e-3 and np.abs(kept[4] - kept[3]).max() > 1e-3


def test_random_position_offset():
    backbone = fam_backbone("gpt2", random_position_offset=True)
    places = backbone.learned_places
    ids = token_ids(200, 6)
    drawn = numpy(places(ids, training=True))
    offsets = drawn[:, 0]
    np.testing.assert_array_equal(drawn, (offsets[:, None] + np.arange(6)) % 24)
    assert 0.4 < (offsets == 0).mean() < 0.65 and len(np.unique(offsets)) > 15
    np.testing.assert_array_equal(numpy(places(ids))[0], np.arange(6))


def test_random_position_offset_trains_and_only_trains():
    backbone = fam_backbone("gpt2", random_position_offset=True, stock=NO_DROPOUT)
    ids = token_ids(2, 18)
    expected, _ = reference(backbone, ids)
    np.testing.assert_allclose(numpy(backbone(inputs(ids))), expected, rtol=1e-5, atol=1e-5)
    keras.utils.set_random_seed(3)
    outputs = [numpy(backbone(inputs(ids), training=True)) for _ in range(8)]
    shifted = [np.abs(output - expected).max(axis=(1, 2)) > 1e-3 for output in outputs]
    assert any(row.any() for row in shifted) and any((~row).any() for row in shifted)
    # Each row is the reference's at some offset.
    row = next((i, j) for i, rows in enumerate(shifted) for j in range(2) if rows[j])
    distances = [
        np.abs(outputs[row[0]][row[1]] - reference(backbone, ids, position_offset=np.full(2, offset))[0][row[1]]).max()
        for offset in range(24)
    ]
    assert min(distances) < 2e-5


def test_dropout_is_active_in_training_alone_and_differs_between_steps():
    backbone = fam_backbone("gpt2", stock={"dropout": 0.3})
    ids = token_ids(2, 18)
    expected, _ = reference(backbone, ids)
    np.testing.assert_allclose(numpy(backbone(inputs(ids))), expected, rtol=1e-5, atol=1e-5)
    first, second = (numpy(backbone(inputs(ids), training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.01 and np.abs(first - expected).max() > 0.01


def test_dropout_reaches_the_fam_of_every_block():
    """The mean over many draws of the last FAM's effect differs from draw to draw, block by block."""
    backbone = fam_backbone("gpt2", random_state_passing=1e-9, stock={"dropout": 0.5})
    ids = token_ids(1, 17)
    fams = []
    lm = fit_once(backbone, ids)
    for _ in range(2):
        fams.append(last_fams(backbone)[0])
        lm.fit(inputs(ids[:, :-1]), ids[:, 1:], batch_size=1, verbose=0)
    assert np.abs(fams[0] - fams[1]).max() > 0.01


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="XLA on request is tensorflow's alone")
@pytest.mark.parametrize(  # Some 15 s each.
    "family", [pytest.param(family, marks=() if family in EVERY_PART else pytest.mark.slow) for family in FAMILIES]
)
def test_tensorflow_with_jit_compile(family):
    """XLA compiles the whole training step and prediction, and its gradients are those of eager mode."""
    ids = token_ids(2, 14)
    stock = NO_DROPOUT if family == "gpt2" else {"num_layers": 1}
    results = []
    for jit_compile in (True, False):
        backbone = fam_backbone(family, stock=stock)
        lm = keras_fam.FAMCausalLM(backbone)
        lm.compile(
            optimizer=keras.optimizers.SGD(1.0), jit_compile=jit_compile, run_eagerly=not jit_compile, sampler="greedy"
        )
        before = weights_by_path(lm)
        loss = lm.train_on_batch(inputs(ids[:, :-1]), ids[:, 1:])[0]
        after = weights_by_path(lm)
        logits = lm.predict_on_batch(inputs(ids))
        generated = lm.generate(
            {"token_ids": ids, "padding_mask": np.arange(14)[None] < [[3], [9]]}, stop_token_ids=None
        )
        gradients = {path: before[path] - after[path] for path in before}
        results.append((float(loss), gradients, np.asarray(logits), generated["token_ids"]))
    (loss, gradients, logits, tokens), (eager_loss, eager_gradients, eager_logits, eager_tokens) = results
    assert loss == pytest.approx(eager_loss, rel=1e-5)
    for path, gradient in eager_gradients.items():
        np.testing.assert_allclose(gradients[path], gradient, rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_allclose(logits, eager_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(tokens, eager_tokens)
