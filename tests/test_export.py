"""Export: what a stock model exports, one with memory exports too, and the file gives the same numbers."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import GPT2, fam_backbone, inputs, numpy, token_ids

import keras_fam

IDS = token_ids(2, 10)
BACKEND = keras.config.backend()


def signature(rows, length):
    return [{name: keras.InputSpec(shape=(rows, length), dtype="int32", name=name) for name in inputs(IDS)}]


def models():
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1, "dropout": 0.0}, sink_token_id=1))
    stock = keras_hub.models.GPT2CausalLM(keras_hub.models.GPT2Backbone(**GPT2))
    return {"lm": lm, "backbone": lm.backbone, "stock": stock}


@pytest.mark.skipif(BACKEND != "torch", reason="Keras exports to torch's format on torch alone")
class TestTorch:
    def exported(self, model, path, **options):
        import torch

        options = {"input_signature": signature(*IDS.shape), **options}
        model.export(path / "model.pt2", format="torch", verbose=False, **options)
        program = torch.export.load(path / "model.pt2").module()

        def call(ids, mask=None):
            return numpy(program({name: torch.tensor(x) for name, x in inputs(ids, mask).items()}))

        return call

    @pytest.mark.parametrize("name", ["lm", "backbone", "stock"])
    def test_the_same_numbers(self, name, tmp_path):
        model, mask = models()[name], (np.arange(10)[None] < np.array([[10], [3]])).astype("int32")
        call = self.exported(model, tmp_path)
        for given in (None, mask):
            real = np.ones(IDS.shape, "bool") if given is None else given.astype("bool")
            expected = numpy(model(inputs(IDS, given)))
            np.testing.assert_allclose(call(IDS, given)[real], expected[real], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["lm", "stock"])
    def test_any_number_of_rows(self, name, tmp_path):
        import torch

        model, rows = models()[name], {0: torch.export.Dim("rows", min=1, max=8)}
        call = self.exported(model, tmp_path, dynamic_shapes=[(dict.fromkeys(inputs(IDS), rows),)])
        ids = token_ids(3, 10, seed=1)
        np.testing.assert_allclose(call(ids), numpy(model(inputs(ids))), rtol=1e-5, atol=1e-5)

    def test_a_length_that_is_not_known_is_refused(self, tmp_path):
        import torch

        length = {1: torch.export.Dim("length", min=2, max=16)}
        with pytest.raises(RuntimeError, match="known length.*input_signature"):
            self.exported(models()["lm"], tmp_path, dynamic_shapes=[(dict.fromkeys(inputs(IDS), length),)])


@pytest.mark.skipif(BACKEND == "torch", reason="Keras needs torch_xla to make a SavedModel of a torch model")
class TestSavedModel:
    def exported(self, model, path, **options):
        tf = pytest.importorskip("tensorflow", reason="SavedModels are written and read by tensorflow")
        model.export(path / "model", format="tf_saved_model", verbose=False, **options)
        program = tf.saved_model.load(path / "model")
        return lambda ids: np.asarray(program.serve(inputs(ids)))

    @pytest.mark.parametrize("name", ["lm", "backbone", "stock"])
    def test_the_same_numbers(self, name, tmp_path):
        model = models()[name]
        call = self.exported(model, tmp_path, input_signature=signature(None, 10))
        for ids in (IDS, token_ids(3, 10, seed=1)):
            expected = numpy(model.predict_on_batch(inputs(ids)))
            np.testing.assert_allclose(call(ids), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="jax refuses a length that is not known: the next test")
    def test_any_length(self, tmp_path):
        model = models()["lm"]
        call = self.exported(model, tmp_path)
        for ids in (IDS, token_ids(1, 21, seed=1), token_ids(3, 3, seed=2)):
            expected = numpy(model.predict_on_batch(inputs(ids)))
            np.testing.assert_allclose(call(ids), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.skipif(BACKEND != "jax", reason="tensorflow takes any length: the test before")
    def test_a_length_that_is_not_known_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="known length.*input_signature"):
            self.exported(models()["lm"], tmp_path)
