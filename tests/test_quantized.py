"""LoRA on an int8 model learns what it learns on the exact one."""

import keras
import numpy as np
import pytest
from helpers.gradients import loss_and_gradients
from helpers.models import fam_backbone, inputs, randomize, stock_backbone, token_ids
from helpers.presets import gpt2_preset
from keras import ops

import keras_fam

pytestmark = pytest.mark.shared_out

IDS = token_ids(2, 20)
SMALL = {"num_layers": 1}


def gradients(backbone, logits, quantized):
    """Of the adapters' first kernels and second ones, by path; the same adapters whether quantized or not."""
    if quantized:
        backbone.quantize("int8")
    backbone.enable_lora(2)
    adapters = sorted((v for v in backbone.trainable_variables if "lora" in v.path), key=lambda v: v.path)
    rng = np.random.default_rng(1)
    for variable in adapters:
        variable.assign(rng.normal(size=variable.shape) * 0.02)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    targets = ops.convert_to_tensor(np.roll(IDS, -1, axis=1))
    found = loss_and_gradients(backbone, inputs(IDS), lambda hidden: loss(targets, logits(backbone, hidden)))[1]
    return np.concatenate([found[variable.path].ravel() for variable in adapters])


def cosine(make, logits):
    exact, rounded = (gradients(make(), logits, quantized) for quantized in (False, True))
    return exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)


@pytest.mark.parametrize("family", ["gemma", "gpt2", "llama"])  # Tied and untied heads.
def test_adapters_get_the_gradient_of_the_exact_model(family):
    assert cosine(lambda: fam_backbone(family, stock=SMALL), lambda backbone, hidden: backbone.logits(hidden)) > 0.9


def test_stock_still_has_no_gradient_through_an_int8_head():
    """Where this fails, Keras has mended it and `keep_gradient` can go."""

    def head(backbone, hidden):
        return backbone.token_embedding(hidden, reverse=True)

    assert cosine(lambda: stock_backbone("gemma", **SMALL), head) < 0.5


def test_a_quantized_preset_gets_it_too(tmp_path):
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", stock=SMALL))
    randomize(lm)
    lm.quantize("int8")
    lm.backbone.save_to_preset(tmp_path / "preset")
    loaded = keras_fam.FAMBackbone.from_preset(str(tmp_path / "preset"))
    assert loaded.token_embedding.quantization_mode == "int8" and loaded.token_embedding.inputs_quantizer is None


def test_a_model_with_a_tokenizer_keeps_it(tmp_path):
    lm = keras_fam.FAMCausalLM.from_preset(gpt2_preset(tmp_path / "preset"), block_size=4, memory_segments=1)
    preprocessor = lm.preprocessor
    lm.quantize("int8")
    assert lm.preprocessor is preprocessor
    assert lm.generate("the ", max_length=8).startswith("the ")
