"""Stateful training: steps that go on from the state of the step before, row by row."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, inputs, numpy, token_ids
from helpers.training import train_forward
from keras import ops

import keras_fam

pytestmark = pytest.mark.shared_out

BACKEND = keras.config.backend()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def stateful(family, rows=2, **options):
    return fam_backbone(family, stateful_batch_size=rows, stock={"dropout": 0.0}, **options)


# family, memory segments, FAM vectors, sink: every pair for gemma; for the others, where they differ from it.
SIZES = [("gemma", m, n, None) for m in (0, 1, 2) for n in (0, 3)] + [("gemma", 2, 0, 3), ("gemma", 1, 3, 3)]
SIZES += [(family, m, n, None) for family in ("gemma2", "gpt2") for m, n in ((0, 3), (1, 0), (1, 3), (2, 3))]
SIZES += [("gemma2", 2, 3, 3), ("gpt2", 2, 3, 3)]


@pytest.mark.parametrize("family, memory_segments, fam_length, sink_token_id", SIZES)
def test_steps_of_parts_of_a_text_are_one_pass_over_the_whole(family, memory_segments, fam_length, sink_token_id):
    options = dict(memory_segments=memory_segments, fam_length=fam_length, sink_token_id=sink_token_id)
    ids = token_ids(2, 40)
    mask = np.ones_like(ids)
    mask[1, 5:14] = 0  # a whole block of padding and parts of two others
    whole = train_forward(stateful(family, **options), ids, [1, 1], mask)
    model = stateful(family, **options)
    parts = [
        train_forward(model, ids[:, a:b], [a == 0] * 2, mask[:, a:b]) for a, b in ((0, 4), (4, 20), (20, 32), (32, 40))
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sink_token_id", [None, 3])
@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_the_whole_is_what_the_model_computes_outside_training(family, sink_token_id):
    model = stateful(family, memory_segments=2, sink_token_id=sink_token_id)
    ids = token_ids(2, 24)
    trained = train_forward(model, ids, [1, 1])
    np.testing.assert_allclose(trained, np.asarray(model.predict_on_batch(inputs(ids))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_a_row_that_starts_a_document_forgets_and_the_other_does_not(family):
    first, second = token_ids(2, 12), token_ids(2, 8, seed=1)

    def after(starts, first=first):
        model = stateful(family)
        train_forward(model, first, [1, 1])
        return train_forward(model, second, starts)

    fresh, carried, mixed = after([1, 1]), after([0, 0]), after([0, 1])
    assert np.abs(fresh - carried).max(axis=(1, 2)).min() > 1e-3
    np.testing.assert_allclose(mixed[0], carried[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mixed[1], fresh[1], rtol=1e-5, atol=1e-5)
    # What row 1 read before its document began leaves no trace.
    other = first.copy()
    other[1] = (other[1] + 7) % 50
    np.testing.assert_allclose(after([0, 1], other), mixed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gpt2"])
def test_how_long_carried_fam_is_matters_only_to_what_is_added_to_it(family):
    """Every layer reads F through a norm: a longer F reads the same, and turns less."""

    def after(factor):
        model = stateful(family)
        train_forward(model, token_ids(2, 12), [1, 1])
        for layer in model.transformer_layers:
            fam = layer.carried_state[0]
            assert fam.name == "carried_fam"
            fam.assign(fam * factor)
        outputs = train_forward(model, token_ids(2, 8, seed=1), [0, 0])
        return outputs[:, : model.block_size], outputs[:, model.block_size :]

    (read, later), (read_longer, later_longer) = after(1.0), after(7.0)
    np.testing.assert_allclose(read_longer, read, rtol=1e-3, atol=1e-4)  # The norms' epsilon weighs less.
    assert np.abs(later_longer - later).max() > 1e-2


def test_nothing_is_kept_outside_training():
    model = stateful("gemma")
    ids = token_ids(2, 8)
    train_forward(model, ids, [1, 1])
    before = [numpy(v) for v in model.non_trainable_variables]
    first = np.asarray(model.predict_on_batch(inputs(token_ids(3, 10, seed=2))))  # other rows, no whole blocks
    again = np.asarray(model.predict_on_batch(inputs(token_ids(3, 10, seed=2))))
    np.testing.assert_array_equal(first, again)
    for value, variable in zip(before, model.non_trainable_variables):
        np.testing.assert_array_equal(value, numpy(variable))


@pytest.mark.parametrize("jit_compile", {"jax": [True], "tensorflow": [False, True], "torch": [False]}[BACKEND])
def test_fit_on_a_stream_carries_state(tmp_path, jit_compile):
    """With a learning rate of 0, the losses of `fit` are those of one pass over each document."""
    rng = np.random.default_rng(0)
    paths = []
    for index, length in enumerate((70, 50, 30)):
        paths.append(tmp_path / f"{index}.txt")
        paths[-1].write_text(" ".join(str(n) for n in rng.integers(0, 50, length)))

    def tokenize(text):
        return [int(word) for word in text.split()]

    stream = keras_fam.data.DocumentStream(paths, tokenize, batch_size=2, sequence_length=8)
    lm = keras_fam.FAMCausalLM(stateful("gemma"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    lm.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss, jit_compile=jit_compile)
    history = lm.fit(stream, epochs=2, shuffle=False, verbose=0)

    total = 0.0
    for path in paths:
        ids = np.array([tokenize(path.read_text())])
        logits = lm.stream(ids, lm.initial_state(1))[0]
        losses = keras.losses.sparse_categorical_crossentropy(ids[:, 1:], logits[:, :-1], from_logits=True)
        total += float(ops.sum(losses))
    batches = len(list(stream))
    # The second epoch starts anew.
    np.testing.assert_allclose(np.array(history.history["loss"]) * batches, [total, total], rtol=1e-4)


def test_tf_data_and_loader_train_too(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3 4 5 6 7 8 9 10 " * 8)
    stream = keras_fam.data.DocumentStream([tmp_path / "a.txt"], lambda t: [int(w) for w in t.split()], 2, 8)
    for batches in (stream.as_tf_data(), stream.as_torch_loader()):
        lm = keras_fam.FAMCausalLM(stateful("gemma"))
        lm.compile(optimizer=keras.optimizers.SGD(0.1), loss=LOSS)
        before = numpy(lm.backbone.fam_prompt.embeddings)
        history = lm.fit(batches, verbose=0)
        assert np.isfinite(history.history["loss"][0])
        assert np.abs(numpy(lm.backbone.fam_prompt.embeddings) - before).max() > 0
        assert np.isfinite(lm.evaluate(batches, verbose=0, return_dict=True)["loss"])


def test_a_model_without_state_trains_on_streams(tmp_path):
    """It takes no notice of `document_start`: every step starts anew."""
    (tmp_path / "a.txt").write_text("1 2 3 4 5 6 7 8 9 10 " * 8)
    stream = keras_fam.data.DocumentStream([tmp_path / "a.txt"], lambda t: [int(w) for w in t.split()], 2, 8)
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma"))
    lm.compile(optimizer=keras.optimizers.SGD(0.0), loss=LOSS, weighted_metrics=[])
    losses = lm.fit(stream, shuffle=False, verbose=0).history["loss"]
    batches = list(stream)
    expected = [lm.test_on_batch({k: x[k] for k in ("token_ids", "padding_mask")}, y, w) for x, y, w in batches]
    np.testing.assert_allclose(losses[0], np.mean(expected), rtol=1e-4)


def test_saving_keeps_the_option(tmp_path):
    lm = keras_fam.FAMCausalLM(stateful("gpt2"))
    lm.save(tmp_path / "lm.keras")
    revived = keras.saving.load_model(tmp_path / "lm.keras")
    assert revived.backbone.stateful_batch_size == 2
    ids = token_ids(2, 8)
    np.testing.assert_allclose(
        revived.predict_on_batch(inputs(ids)), lm.predict_on_batch(inputs(ids)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "options, error, match",
    [
        (dict(stateful_batch_size=0), ValueError, "stateful_batch_size"),
        (dict(stateful_batch_size=2.0), TypeError, "stateful_batch_size"),
        (dict(stateful_batch_size=2, random_state_passing=0.5), ValueError, "stateful_batch_size.*0.5"),
        (dict(stateful_batch_size=2, random_position_offset=True), ValueError, "stateful_batch_size.*True"),
    ],
)
def test_options_that_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        fam_backbone("gpt2", **options)


@pytest.mark.parametrize("rows, length, starts", [(3, 8, 3), (2, 9, 2), (2, 8, 3)])
def test_batches_that_are_refused(rows, length, starts):
    model = stateful("gemma")
    x = {**inputs(token_ids(rows, length)), "document_start": np.ones(starts, "int32")}
    name = "document_start" if starts != rows else "token_ids"
    with pytest.raises(ValueError, match=name):
        model(x, training=True)
