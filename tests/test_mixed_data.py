"""Texts and token ids in any mixture: each argument of fit, evaluate and predict is preprocessed if it is texts."""

import importlib.util

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone
from helpers.presets import TEXT, gpt2_tokenizer
from helpers.refusals import refused, snapshot

import keras_fam

pytestmark = pytest.mark.shared_out

TEXTS = [*TEXT, TEXT[0]]
LENGTH = 8


class Batches(keras.utils.PyDataset):
    """A `PyDataset` of two batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def torch_loader(batches):
    import torch

    class Loader(torch.utils.data.DataLoader):
        """A subclass, as libraries of data have them."""

    return Loader(batches, batch_size=None, shuffle=False)


def tf_data(batches):
    import tensorflow as tf

    if isinstance(batches[0], list):  # Texts without labels.
        return tf.data.Dataset.from_tensor_slices(np.concatenate(batches)).batch(2)
    whole = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *batches)
    return tf.data.Dataset.from_tensor_slices(whole).batch(2)


def grain_data(batches):
    import grain

    return grain.MapDataset.source([(batch,) if isinstance(batch, list) else batch for batch in batches])


def generator(batches):
    return (batch for batch in batches)


FORMS = {"pydataset": Batches, "loader": torch_loader, "tf.data": tf_data, "generator": generator, "grain": grain_data}
if importlib.util.find_spec("grain") is None:
    del FORMS["grain"]


@pytest.fixture(scope="module")
def lm():
    tokenizer = gpt2_tokenizer()
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=LENGTH)
    stock = {"dropout": 0.0, "num_layers": 1, "vocabulary_size": tokenizer.vocabulary_size()}
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock=stock), preprocessor)
    lm.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    return lm


@pytest.fixture(scope="module")
def lesson(lm):
    """`TEXTS` as the preprocessor makes ids of them: x, y and sample weights."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, lm.preprocessor(TEXTS))


@pytest.fixture(scope="module")
def expected(lm):
    """The loss of `TEXTS`."""
    return lm.evaluate(TEXTS, batch_size=2, verbose=0)


def rows(data, start):
    return keras.tree.map_structure(lambda array: array[start : start + 2], data)


def arguments(form, kind, lesson):
    """What `evaluate` and `fit` are given."""
    if form == "plain":
        return dict(zip(("x", "y", "sample_weight"), lesson if kind == "ids" else (TEXTS,)), batch_size=2)
    batches = [rows(lesson, start) if kind == "ids" else TEXTS[start : start + 2] for start in (0, 2)]
    return {"x": FORMS[form](batches)}


def validation(form, kind, lesson):
    """The same as validation data."""
    if form == "plain":
        return lesson if kind == "ids" else (TEXTS, None)
    return arguments(form, kind, lesson)["x"]


def losses(history):
    return [history.history[name][-1] for name in ("loss", "val_loss")]


@pytest.mark.parametrize("form", ["plain", *FORMS])
@pytest.mark.parametrize("kind", ["ids", "texts"])
def test_every_form_beside_texts_and_ids(lm, lesson, expected, form, kind):
    assert lm.evaluate(**arguments(form, kind, lesson), verbose=0) == pytest.approx(expected, rel=1e-5)
    plain, given = ("plain", "texts" if kind == "ids" else "ids"), (form, kind)
    for trained, validated in ((given, plain), (plain, given)):
        history = lm.fit(**arguments(*trained, lesson), validation_data=validation(*validated, lesson), verbose=0)
        assert losses(history) == pytest.approx([expected, expected], rel=1e-5)


@pytest.mark.parametrize("form", ["plain", *FORMS])
@pytest.mark.parametrize("kind", ["ids", "texts"])
def test_predictions(lm, lesson, form, kind):
    """Also from ids alone, which is what one has to predict from."""
    ids, *_ = lesson
    expected = lm.predict_on_batch(ids)
    if form == "plain":
        given = ids if kind == "ids" else TEXTS
    else:
        given = arguments(form, kind, (ids,))["x"]
        if form == "generator" and kind == "ids":
            given = (batch for (batch,) in given)
    predicted = lm.predict(given, verbose=0, **(dict(batch_size=2) if form == "plain" else {}))
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)


def test_epochs_over_a_generator(lm, lesson, expected):
    """Four batches of the generator in two epochs; those of the validation data come anew in each."""
    batches = [TEXTS[:2], rows(lesson, 2)]
    history = lm.fit(
        generator(2 * batches), epochs=2, steps_per_epoch=2, validation_data=Batches(batches), verbose=0
    ).history
    assert history["loss"] == history["val_loss"] == pytest.approx([expected, expected], rel=1e-5)


class Counted(Batches):
    """Counts epochs, and says how many batches it has in its own way."""

    epochs = 0

    def __len__(self):
        raise AssertionError("num_batches says it")

    @property
    def num_batches(self):
        return 2

    def on_epoch_end(self):
        self.epochs += 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dataset_keeps_its_ways(lm, lesson, expected, workers):
    dataset = Counted([TEXTS[:2], rows(lesson, 2)])
    dataset.workers = workers
    assert lm.evaluate(dataset, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert dataset.epochs


def test_loaders_collate_and_may_be_read_once(lm, expected):
    torch = pytest.importorskip("torch", reason="the data comes in a torch DataLoader")

    class Once(torch.utils.data.IterableDataset):
        texts = iter(TEXTS)

        def __iter__(self):
            return self.texts

    loaders = [torch.utils.data.DataLoader(TEXTS, batch_size=2)]
    if keras.config.backend() != "tensorflow":  # There Keras reads a loader's first batches twice.
        loaders.append(torch.utils.data.DataLoader(Once(), batch_size=2))
    labelled = [(text, 0) for text in TEXTS]  # A language model makes its own labels; those given are left.
    loaders.append(torch.utils.data.DataLoader(labelled, batch_size=2))
    for loader in loaders:
        assert lm.evaluate(loader, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_single_batches(lm, lesson):
    ids, targets, weights = lesson
    for method in (lm.train_on_batch, lm.test_on_batch):
        assert method(TEXTS) == pytest.approx(method(ids, targets, weights), rel=1e-5)
    np.testing.assert_allclose(lm.predict_on_batch(TEXTS), lm.predict_on_batch(ids), rtol=1e-5, atol=1e-6)


def test_validation_split(lm, lesson):
    ids, targets, _ = lesson
    history = lm.fit(ids, targets, batch_size=2, validation_split=0.5, verbose=0)
    expected = [lm.evaluate(rows(ids, start), rows(targets, start), verbose=0) for start in (0, 2)]
    assert losses(history) == pytest.approx(expected, rel=1e-5)


def test_labels_beside_batches_are_refused_by_keras(lm, lesson):
    ids, targets, _ = lesson
    dataset = Batches([rows(lesson, 0)])
    for call in (lambda: lm.fit(dataset, targets), lambda: lm.evaluate(dataset, targets)):
        with pytest.raises(ValueError, match="`y`"):
            call()


def test_a_model_without_preprocessor(lesson):
    ids, targets, weights = lesson
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"dropout": 0.0, "num_layers": 1}))
    lm.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    expected = lm.evaluate(ids, targets, sample_weight=weights, batch_size=2, verbose=0)
    for form in FORMS.values():
        dataset = form([rows(lesson, start) for start in (0, 2)])
        assert lm.evaluate(dataset, verbose=0) == pytest.approx(expected, rel=1e-5)
        with pytest.raises(ValueError, match="`x` must be a dict of 'token_ids'.*preprocessor"):
            lm.evaluate(form([TEXTS[:2], TEXTS[2:]]), verbose=0)
    for call in (lm.evaluate, lm.fit, lm.predict, lm.train_on_batch, lm.test_on_batch, lm.predict_on_batch):
        refused(lambda call=call: call(TEXTS), "x", "preprocessor")


@pytest.mark.parametrize("form", [Batches, generator, torch_loader])
def test_what_cannot_be_learned_from_is_refused(lm, lesson, form):
    """Keras trains on them until every weight is NaN, or takes another token for the one that does not exist."""
    ids, targets, weights = lesson
    nan = np.where(np.arange(weights.shape[1]) == 1, np.nan, weights)
    high, half = targets.astype("int64") + 2**40, targets + 0.5
    before = snapshot(lm)
    for batch, name in (
        ((ids, targets, nan), "sample_weight"),
        ((ids, high, weights), "y"),
        ((ids, half, weights), "y"),
    ):
        for method in (lm.fit, lm.evaluate):
            refused(lambda method=method, batch=batch: method(*batch[:2], sample_weight=batch[2], verbose=0), name)
            refused(lambda method=method, batch=batch: method(form([batch]), verbose=0), name)
        refused(lambda batch=batch: lm.fit(*lesson[:2], validation_data=batch, verbose=0), "validation_data")
    assert snapshot(lm) == before


def test_validation_texts(lm, lesson, expected):
    """Texts alone are no tuple of `x` and `y`."""
    history = lm.fit(TEXTS, batch_size=2, validation_data=TEXTS, verbose=0)
    assert losses(history) == pytest.approx([expected, expected], rel=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_an_error_in_the_data_leaves_the_model_as_it_was(lesson, method):
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"dropout": 0.0, "num_layers": 1}))
    lm.compile("adam", weighted_metrics=[])
    for run in (lm.predict, lm.evaluate, lm.fit):  # Compiled, with a state of the optimizer.
        run(lesson[0], *lesson[1:2] * (run != lm.predict), verbose=0)
    before, bad = snapshot(lm), dict(lesson[0], padding_mask=np.ones((4, 3), "int32"))
    with pytest.raises(ValueError, match="padding_mask"):
        getattr(lm, method)(Batches([(bad, lesson[1])]), verbose=0)
    assert snapshot(lm) == before
    with pytest.raises(ValueError, match="padding_mask"):
        lm.backbone.predict(bad, verbose=0)
    assert snapshot(lm) == before
    assert np.isfinite(lm.evaluate(*lesson[:2], verbose=0))
