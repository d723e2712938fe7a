"""Evaluation that goes on from batch to batch, in a state of its own."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, inputs, numpy, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

BACKEND = keras.config.backend()
LENGTHS = {"training": (70, 50, 30), "validation": (45, 61, 9)}


def numbers(text):
    return [int(word) for word in text.split()]


@pytest.fixture
def streams(tmp_path):
    """Two streams, and the token ids of the second one's documents."""
    rng, made = np.random.default_rng(0), []
    for name, lengths in LENGTHS.items():
        documents = [rng.integers(0, 50, length) for length in lengths]
        for index, ids in enumerate(documents):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{index}.txt").write_text(" ".join(map(str, ids)))
        made.append(keras_fam.data.DocumentStream(tmp_path / name, numbers, batch_size=2, sequence_length=8))
    return *made, documents


def stateful(family="gemma", learning_rate=0.1, rows=2, **compiled):
    keras.utils.set_random_seed(0)
    stock = {"dropout": 0.0, "num_layers": 1}
    lm = keras_fam.FAMCausalLM(fam_backbone(family, stateful_batch_size=rows, stock=stock))
    lm.compile(keras.optimizers.SGD(learning_rate), **compiled)
    return lm


def values(lm):
    return {v.path: numpy(v) for v in lm.variables}


def assert_equal(left, right):
    for path, value in left.items():
        np.testing.assert_array_equal(value, right[path], err_msg=path)


# Keras refuses steps_per_execution on torch, and jit_compile=True takes it a minute there.
WAYS = [{}] if BACKEND == "torch" else [dict(jit_compile=True, steps_per_execution=3)]
MORE_WAYS = [dict(run_eagerly=True)] + ([] if BACKEND == "torch" else [dict(jit_compile=j) for j in (True, False)])
WAYS += [pytest.param(way, marks=pytest.mark.slow) for way in MORE_WAYS]
only_on_torch = pytest.mark.skipif(BACKEND != "torch", reason="what differs here does not depend on the backend")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_loss_is_that_of_whole_documents(streams, way):
    """And what training left is there as before, bit for bit."""
    training, validation, documents = streams
    lm = stateful(**way)
    lm.fit(training, shuffle=False, steps_per_epoch=3, verbose=0)
    before = values(lm)
    losses = [lm.evaluate(validation, verbose=0, return_dict=True)["loss"] for _ in range(2)]
    assert_equal(before, values(lm))
    assert np.any(before["carried_state/started"])
    expected = lm.perplexity(documents, page=8, verbose=0).nats
    np.testing.assert_allclose(losses, [expected, expected], rtol=1e-5)


@only_on_torch
def test_learned_positions_go_on_too(streams):
    _, validation, documents = streams
    lm = stateful("gpt2")
    loss = lm.evaluate(validation, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, lm.perplexity(documents, page=8, verbose=0).nats, rtol=1e-5)
    backbone = stateful("gpt2").backbone
    backbone.compile("sgd", "mse")
    x = {**inputs(token_ids(2, 8)), "document_start": np.ones(2, "int32")}
    for evaluate in (backbone.evaluate, backbone.test_on_batch):
        before = values(backbone)
        evaluate(x, np.zeros((2, 8, 16)))
        assert_equal(before, values(backbone))


def test_validation_data_changes_no_training(streams):
    training, validation, documents = streams
    lm, plain = stateful(), stateful()
    history = lm.fit(training, validation_data=validation, epochs=2, shuffle=False, verbose=0).history
    plain.fit(training, epochs=2, shuffle=False, verbose=0)
    assert_equal(values(plain), values(lm))
    np.testing.assert_allclose(history["val_loss"][-1], lm.perplexity(documents, page=8, verbose=0).nats, rtol=1e-5)
    assert history["val_loss"][0] != history["val_loss"][1]


@only_on_torch
@pytest.mark.parametrize("form", ["as_tf_data", "as_torch_loader"])
def test_other_forms_go_on_too(streams, form):
    _, validation, documents = streams
    lm = stateful()
    loss = lm.evaluate(getattr(validation, form)(), verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, lm.perplexity(documents, page=8, verbose=0).nats, rtol=1e-5)


def test_a_document_begins_anew(streams):
    """The second half of a batch's rows begins a document: what was read before leaves no trace there."""
    lm = stateful()
    first, second = token_ids(2, 8), token_ids(2, 8, seed=1)

    def loss(starts, first=first):
        def batches():
            yield {**inputs(first), "document_start": np.ones(2, "int32")}, first, np.zeros((2, 8), "float32")
            yield {**inputs(second), "document_start": np.array(starts, "int32")}, second, np.array([[0.0], [1.0]])

        return lm.evaluate(batches(), verbose=0, return_dict=True)["loss"]

    other = (first + 7) % 50
    assert loss([0, 1]) == loss([1, 1]) == loss([0, 1], other)
    assert abs(loss([0, 0]) - loss([0, 1])) > 1e-3 < abs(loss([0, 0], other) - loss([0, 0]))
    before = values(lm)  # Alone, a batch begins with nothing, whatever it says.
    x = {**inputs(second), "document_start": np.array([0, 1], "int32")}
    alone = [lm.test_on_batch(x | {"document_start": np.array(s, "int32")}, second)[0] for s in ([0, 0], [1, 1])]
    assert alone[0] == alone[1]
    assert_equal(before, values(lm))


def test_batches_without_documents_are_of_any_size():
    lm = stateful()
    ids = token_ids(3, 10)
    lm.fit({**inputs(ids[:2, :8]), "document_start": np.ones(2, "int32")}, ids[:2, :8], batch_size=2, verbose=0)
    before = values(lm)
    assert np.isfinite(lm.evaluate(inputs(ids), ids, verbose=0)).all()
    assert_equal(before, values(lm))


@pytest.mark.parametrize("way", ["arrays", "generator", "validation"])
def test_other_numbers_of_rows_are_refused(way):
    lm = stateful()
    before = values(lm)
    ids = token_ids(3, 8)
    x = {**inputs(ids), "document_start": np.ones(3, "int32")}
    two = ({name: value[:2] for name, value in x.items()}, ids[:2])
    calls = {
        "arrays": lambda: lm.evaluate(x, ids, batch_size=3, verbose=0),
        "generator": lambda: lm.evaluate((batch for batch in [two, (x, ids)]), verbose=0),
        "validation": lambda: lm.fit(*two, batch_size=2, validation_data=(x, ids), verbose=0),
    }
    with pytest.raises(ValueError, match="stateful_batch_size=2 .*Received: .*x of 3 rows"):
        calls[way]()
    assert_equal(before, values(lm))


def test_parts_of_blocks_are_refused():
    lm = stateful()
    before = values(lm)
    ids = token_ids(2, 9)
    x = {**inputs(ids), "document_start": np.ones(2, "int32")}
    with pytest.raises(ValueError, match=r"stateful_batch_size=2 rows.*block_size=4.*Received.*2?, 9\)"):
        lm.evaluate(x, ids, batch_size=2, verbose=0)
    assert_equal(before, values(lm))


def test_an_error_in_the_data_leaves_the_state(streams):
    training, validation, _ = streams
    lm = stateful()
    lm.fit(training, shuffle=False, steps_per_epoch=3, verbose=0)
    before = values(lm)

    def broken():
        yield validation[0]
        raise RuntimeError("no more data")

    with pytest.raises(RuntimeError, match="no more data"):
        lm.evaluate(broken(), verbose=0)
    assert_equal(before, values(lm))


def test_random_state_passing_is_off_in_evaluation():
    keras.utils.set_random_seed(0)
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", random_state_passing=1.0, stock={"dropout": 0.0, "num_layers": 1}))
    lm.compile(keras.optimizers.SGD(0.0))
    ids = token_ids(2, 8)
    first = lm.evaluate(inputs(ids), ids, verbose=0)
    for _ in range(2):
        lm.train_on_batch(inputs(token_ids(2, 8, seed=1)), ids)
    before = values(lm)
    assert np.any([value for path, value in before.items() if path.endswith("last_fam")])
    assert lm.evaluate(inputs(ids), ids, verbose=0) == first
    assert_equal(before, values(lm))
