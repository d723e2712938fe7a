"""LoRA on models in bfloat16: what trains is float32, and moves."""

import keras
import ml_dtypes
import numpy as np
from helpers.models import fam_backbone, inputs, numpy, randomize, token_ids
from keras import ops

import keras_fam
from keras_fam.files import adapter_file


def language_model(dtype="bfloat16", quantize=None):
    stock = {"dtype": dtype, "dropout": 0.0, "num_layers": 1}
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", memory_gate=0.0, stock=stock))
    if quantize:
        lm.quantize(quantize)
    lm.enable_lora(2)
    randomize(lm, scale=0.1)
    return lm


def test_every_adapter_moves():
    lm = language_model()
    lm.compile(optimizer=keras.optimizers.Adam(1e-4))
    assert lm.backbone.compute_dtype == "bfloat16" and {v.dtype for v in lm.trainable_variables} == {"float32"}
    assert "bfloat16" in {v.dtype for v in lm.non_trainable_variables}
    kinds = {v.path.split("/")[-1] for v in lm.trainable_variables}
    assert kinds == {"lora_kernel_a", "lora_kernel_b", "bias", "embeddings", "memory_gate"}
    before = {v.path: numpy(v) for v in lm.trainable_variables}
    ids = token_ids(4, 13)
    lm.train_on_batch(inputs(ids[:, :-1]), ids[:, 1:])
    for variable in lm.trainable_variables:
        if not variable.path.endswith("key/bias"):  # No softmax sees it: its gradient is 0.
            # Adam's first step is the learning rate.
            moved = np.abs(numpy(variable) - before[variable.path])
            assert np.median(moved) > 0.9e-4, variable.path


def test_int8_below_lora():
    ids, losses = token_ids(4, 13), []
    for loss in ("chunked_crossentropy", keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
        lm = language_model(quantize="int8")
        assert {v.dtype for v in lm.trainable_variables} == {"float32"}
        lm.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss)
        losses.append(float(lm.train_on_batch(inputs(ids[:, :-1]), ids[:, 1:])[0]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_it_computes_in_bfloat16():
    parts = language_model().backbone.transformer_layers[0].parts
    x, heads = ops.ones((1, 3, 16), "bfloat16"), ops.ones((1, 3, 4, 4), "bfloat16")
    made = [parts.project_query(x), *parts.project_key_value(x), parts.project_output(heads)]
    assert {keras.backend.standardize_dtype(each.dtype) for each in made} == {"bfloat16"}


def test_adapters_of_bfloat16_and_back(tmp_path):
    lm = language_model()
    arrays = {v.path: numpy(v).astype(ml_dtypes.bfloat16) for v in lm.trainable_variables}
    names = lm.backbone.default_lora_layer_names()
    adapter_file.save(tmp_path / "old.lora.safetensors", arrays, 2, names)
    other = language_model()
    other.load_lora_weights(tmp_path / "old.lora.safetensors")
    other.save_lora_weights(tmp_path / "new.lora.safetensors")
    saved, *_ = adapter_file.load(tmp_path / "new.lora.safetensors")
    for path, array in arrays.items():
        assert saved[path].dtype == "float32"
        np.testing.assert_array_equal(saved[path], array.astype("float32"))


def test_weights_resume(tmp_path):
    lm, other = language_model(), language_model()
    randomize(lm, 7, 0.1)
    lm.save_weights(tmp_path / "lm.weights.h5")
    other.load_weights(tmp_path / "lm.weights.h5")
    for variable, loaded in zip(lm.trainable_variables, other.trainable_variables):
        np.testing.assert_array_equal(numpy(loaded), numpy(variable), err_msg=variable.path)
