"""What was compiled before a model changed is not used after: LoRA, quantization, what is trained."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, inputs, numpy, token_ids
from keras import ops

import keras_fam

IDS = token_ids(2, 6)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def language_model(optimizer="sgd", layers=1):
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"dropout": 0.0, "num_layers": layers}))
    lm.compile(optimizer, LOSS, sampler="greedy")
    return lm


def outputs(lm):
    """What every way into a model gives that compiles something."""
    backbone = lm.backbone
    layer, x = backbone.transformer_layers[0], np.random.default_rng(0).standard_normal((1, 5, 16)).astype("float32")
    prompt = {"token_ids": IDS, "padding_mask": np.arange(6)[None] < [[3], [5]]}
    return {
        "generate": lm.generate(prompt, stop_token_ids=None)["token_ids"],
        "predict": lm.predict_on_batch(inputs(IDS)),
        "evaluate": lm.test_on_batch(inputs(IDS), IDS)[:1],
        "backbone": backbone.predict_on_batch(inputs(IDS)),
        "stream": numpy(lm.stream(IDS, lm.initial_state(2))[0]),
        "layer": numpy(layer.read(ops.convert_to_tensor(x), layer.initial_state(1))[0]),
    }


def random_lora(layer):
    for seed, name in enumerate(("lora_kernel_a", "lora_kernel_b")):
        weight = getattr(layer, name)
        weight.assign(np.random.default_rng(seed).standard_normal(weight.shape))


def enable_lora(lm, _):
    lm.enable_lora(2)
    for layer in lm.backbone._flatten_layers(include_self=False):
        if getattr(layer, "lora_enabled", False):
            random_lora(layer)


def one_layer(lm, _):
    dense = lm.backbone.transformer_layers[0].parts.query
    dense.enable_lora(2)
    random_lora(dense)


CHANGES = {
    "enable_lora of one layer": one_layer,
    "load_lora_weights": lambda lm, folder: lm.load_lora_weights(folder / "a.lora.h5"),
    "quantize": lambda lm, _: lm.backbone.quantize("int8"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, lm = tmp_path_factory.mktemp("weights"), language_model()
    enable_lora(lm, None)
    lm.save_lora_weights(folder / "a.lora.h5")
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_used_before_is_like_one_that_was_not(change, folder):
    new, used = language_model(), language_model()
    before = outputs(used)
    for lm in (new, used):
        CHANGES[change](lm, folder)
    expected, after = outputs(new), outputs(used)
    for name in expected:
        np.testing.assert_allclose(after[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert np.abs(after["predict"] - before["predict"]).max() > 1e-3


def step(lm):
    """One training step, and the variables that it moved."""
    before = {v.path: numpy(v) for v in lm.variables}
    lm.fit(inputs(IDS), IDS, verbose=0)
    return {v.path for v in lm.variables if v.path in before and (numpy(v) != before[v.path]).any()}


def test_lora_after_training_wants_compile():
    lm = language_model("adam")
    assert "token_embedding/embeddings" in step(lm)
    lm.enable_lora(2)
    with pytest.raises(ValueError, match="`compile` must be called again"):
        step(lm)
    lm.compile(keras.optimizers.SGD(0.5), LOSS)
    moved = step(lm)
    assert moved and moved <= {v.path for v in lm.trainable_variables}
    assert any("lora" in path for path in moved)


def test_lora_before_any_training_wants_none():
    lm = language_model(keras.optimizers.SGD(0.5))
    lm.predict(inputs(IDS), verbose=0)
    lm.enable_lora(2)
    moved = step(lm)
    assert moved and moved <= {v.path for v in lm.trainable_variables}


def test_what_is_frozen_stays():
    """tensorflow and torch go on; jax hands all variables to the optimizer, and Keras wants `compile`."""
    lm = language_model()
    assert "layer_norm/gamma" in step(lm) and "token_embedding/embeddings" in step(lm)
    lm.backbone.token_embedding.trainable = False
    if keras.config.backend() == "jax":
        with pytest.raises(ValueError, match="`compile` must be called again"):
            step(lm)
        lm.compile("sgd", LOSS)
    moved = step(lm)
    assert "layer_norm/gamma" in moved and "token_embedding/embeddings" not in moved


def test_what_is_thawed_wants_compile():
    """As many variables of the same shapes train after as before."""
    lm = language_model("adam", layers=2)
    first, second = lm.backbone.transformer_layers
    first.trainable = False
    assert any("transformer_layer_1" in path for path in step(lm))
    first.trainable, second.trainable = True, False
    with pytest.raises(ValueError, match="`compile` must be called again"):
        step(lm)
    lm.compile("adam", LOSS)
    moved = step(lm)
    assert any("transformer_layer_0" in path for path in moved)
    assert not any("transformer_layer_1" in path for path in moved)


def test_the_backbone_trains_alone_too():
    backbone = fam_backbone("gpt2", stock={"dropout": 0.0, "num_layers": 1})
    backbone.compile("sgd", "mse")
    targets = np.zeros((2, 6, 16), "float32")
    backbone.fit(inputs(IDS), targets, verbose=0)
    backbone.enable_lora(2)
    with pytest.raises(ValueError, match="`compile` must be called again"):
        backbone.fit(inputs(IDS), targets, verbose=0)


def test_nothing_is_compiled_twice_without_a_change():
    lm = language_model()
    outputs(lm), step(lm)
    names = ("train_function", "test_function", "predict_function", "generate_function")
    kept = [getattr(lm, name) for name in names] + [dict(lm.backbone._compiled)]
    assert all(kept)
    outputs(lm), step(lm)
    assert [getattr(lm, name) for name in names] + [dict(lm.backbone._compiled)] == kept


def test_a_frozen_model_trains_lora(folder):
    for enable in (lambda lm: lm.enable_lora(2), lambda lm: lm.load_lora_weights(folder / "a.lora.h5")):
        lm = language_model()
        lm.trainable = False
        enable(lm)
        assert {v.path for v in lm.trainable_variables} == {v.path for v in lm.backbone.trainable_variables}
        assert any("lora" in v.path for v in lm.trainable_variables)
    lm.compile(keras.optimizers.SGD(0.5), LOSS)
    assert any("lora" in path for path in step(lm))


def test_a_refused_enable_lora_leaves_a_frozen_model_frozen():
    lm = language_model()
    lm.trainable = False
    with pytest.raises(ValueError):
        lm.enable_lora(2, ["no_such_layer"])
    assert not lm.trainable and not lm.trainable_variables


def test_a_quantized_model_without_fam_streams():
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", fam_length=0, stock={"num_layers": 1}))
    lm.quantize("int8")
    logits, _ = lm.stream(IDS, lm.initial_state(2))
    assert np.isfinite(numpy(logits)).all()
