"""Texts and token ids in any mixture: each argument of fit, evaluate and predict is preprocessed if it is texts."""

import importlib.util

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone
from helpers.presets import TEXT, gpt2_tokenizer

import keras_fam

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
def test_every_form_beside_texts_and_ids(lm, lesson, form, kind):
    expected = lm.evaluate(TEXTS, batch_size=2, verbose=0)
    assert lm.evaluate(**arguments(form, kind, lesson), verbose=0) == pytest.approx(expected, rel=1e-5)
    pairs = [((form, kind), ("plain", "texts") if kind == "ids" else ("plain", "ids"))]
    for trained, validated in pairs:
        history = lm.fit(**arguments(*trained, lesson), validation_data=validation(*validated, lesson), verbose=0)
        assert losses(history) == pytest.approx([expected, expected], rel=1e-5)


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
