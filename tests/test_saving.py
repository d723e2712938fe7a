"""Presets, model files, quantization, states and LoRA weights: what comes back is what was saved, or the old file."""

import os

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, forward, inputs, numpy, randomize, token_ids, weights_by_path
from helpers.presets import PRESETS, TEXT, gpt2_preset
from helpers.refusals import fail, files
from keras import ops

import keras_fam

pytestmark = pytest.mark.shared_out

SIZES = dict(block_size=4, memory_segments=1, fam_length=3)
IDS = token_ids(2, 10) % 40  # inside every tokenizer's vocabulary


def logits(lm):
    """As float32; by one compiled call on jax, like `forward`, which would call a language model's tokenizer."""
    if keras.config.backend() != "jax":
        return numpy(lm(inputs(IDS))).astype("float32")
    import jax

    call = jax.jit(lambda trained, others: lm.stateless_call(trained, others, inputs(IDS))[0])
    values = [v.value for v in lm.trainable_variables], [v.value for v in lm.non_trainable_variables]
    return np.asarray(call(*values)).astype("float32")


def small_lm(family="gpt2", **options):
    return keras_fam.FAMCausalLM(fam_backbone(family, **options))


# === Presets ===


@pytest.fixture(scope="module", params=PRESETS)
def stock_preset(request, tmp_path_factory):
    return PRESETS[request.param](tmp_path_factory.mktemp("stock") / request.param)


@pytest.fixture(scope="module")
def lm(stock_preset):
    """A language model from a stock preset, with random values in the prompt too."""
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, **SIZES)
    randomize(lm.backbone)
    return lm


@pytest.fixture(scope="module")
def lm_logits(lm):
    return logits(lm)


@pytest.fixture(scope="module")
def fam_preset(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("fam") / "preset"
    lm.save_to_preset(path)
    return str(path)


def test_a_stock_preset_brings_its_weights_and_tokenizer(stock_preset):
    stock = keras_hub.models.CausalLM.from_preset(stock_preset)
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, **SIZES)
    expected, weights = weights_by_path(stock.backbone), weights_by_path(lm.backbone)
    gates = {layer.memory_gate.path for layer in lm.backbone.transformer_layers}
    assert set(weights) - set(expected) == {"fam_prompt/embeddings", *gates} and len(gates) == 2
    assert all(np.array_equal(weights[path], value) for path, value in expected.items())
    assert type(lm.preprocessor) is type(stock.preprocessor)
    tokens = [preprocessor(TEXT)[0]["token_ids"] for preprocessor in (lm.preprocessor, stock.preprocessor)]
    np.testing.assert_array_equal(*(ops.convert_to_numpy(x) for x in tokens))
    random = weights_by_path(keras_fam.FAMBackbone.from_preset(stock_preset, load_weights=False, **SIZES))
    assert not any(np.array_equal(random[path], value) for path, value in expected.items())


def test_a_stock_preset_s_backbone_alone(stock_preset, lm):
    backbone = keras_fam.FAMBackbone.from_preset(stock_preset, **SIZES, truncate_bptt=2)
    assert (backbone.block_size, backbone.fam_length, backbone.truncate_bptt) == (4, 3, 2)
    backbone.fam_prompt.embeddings.assign(lm.backbone.fam_prompt.embeddings)
    assert set(weights_by_path(backbone)) == set(weights_by_path(lm.backbone))


@pytest.mark.parametrize("arguments", [{}, SIZES], ids=str)
def test_a_saved_preset_needs_no_arguments(lm, lm_logits, fam_preset, arguments):
    loaded = keras_fam.FAMCausalLM.from_preset(fam_preset, **arguments)
    assert loaded.backbone.get_config() == lm.backbone.get_config()
    np.testing.assert_array_equal(logits(loaded), lm_logits)


def test_keras_hub_finds_the_classes(lm, fam_preset):
    loaded = keras_hub.models.CausalLM.from_preset(fam_preset)
    assert type(loaded) is keras_fam.FAMCausalLM and type(loaded.preprocessor) is type(lm.preprocessor)
    backbone = keras_hub.models.Backbone.from_preset(fam_preset)
    assert type(backbone) is keras_fam.FAMBackbone
    expected = weights_by_path(lm.backbone)
    assert all(np.array_equal(expected[path], value) for path, value in weights_by_path(backbone).items())
    state = lm.initial_state(2)
    np.testing.assert_array_equal(numpy(loaded.stream(IDS, state)[0]), numpy(lm.stream(IDS, state)[0]))


def test_a_saved_preset_generates_from_strings(lm, fam_preset):
    """The tokenizer is saved too; nothing ends a text before `max_length`, so that all of it is compared."""
    loaded = keras_fam.FAMCausalLM.from_preset(fam_preset)
    for model in (lm, loaded):
        model.compile(sampler="greedy")
    prompts = ["the key", "a"]
    texts = loaded.generate(prompts, max_length=14, stop_token_ids=None)
    assert texts == lm.generate(prompts, max_length=14, stop_token_ids=None)
    assert all(text.startswith(prompt) and len(text) > len(prompt) for text, prompt in zip(texts, prompts))


def test_a_backbone_s_preset(lm, lm_logits, tmp_path):
    """Without a tokenizer in it, a language model has to be told to do without."""
    lm.backbone.save_to_preset(tmp_path / "backbone")
    loaded = keras_fam.FAMBackbone.from_preset(str(tmp_path / "backbone"))
    expected = weights_by_path(lm.backbone)
    assert all(np.array_equal(expected[path], value) for path, value in weights_by_path(loaded).items())
    bare = keras_fam.FAMCausalLM.from_preset(str(tmp_path / "backbone"), preprocessor=None)
    np.testing.assert_array_equal(logits(bare), lm_logits)


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "stock"])
def test_presets_in_bfloat16(stock_preset, fam_preset, lm, saved):
    preset, arguments = (fam_preset, {}) if saved else (stock_preset, SIZES)
    exact, loaded = (
        keras_fam.FAMCausalLM.from_preset(preset, dtype=dtype, **arguments) for dtype in ("float32", "bfloat16")
    )
    gates = {layer.memory_gate.path for layer in loaded.backbone.transformer_layers if layer.memory_gate is not None}
    dtypes = {v.path: v.dtype for v in loaded.weights if "float" in v.dtype}
    # One number a layer, that small steps have to move: it is float32.
    assert all(dtype == ("float32" if path in gates else "bfloat16") for path, dtype in dtypes.items())
    for model in (exact, loaded):
        model.backbone.fam_prompt.embeddings.assign(lm.backbone.fam_prompt.embeddings)
    exact = logits(exact)
    assert np.abs(logits(loaded) - exact).mean() < 0.05 * np.abs(exact).mean()
    state = loaded.initial_state(1)
    # F is a sum over all blocks: float32 whatever the layers compute in.
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in state.layers[0]]
    assert dtypes == ["float32"] + 4 * ["bfloat16"]


def test_all_options_are_saved(tmp_path):
    options = dict(SIZES, random_state_passing=0.5, stop_gradient_memory=True, truncate_bptt=2)
    backbone = fam_backbone("gpt2", random_position_offset=True, **options)
    backbone.random_state_passing = 0.25
    backbone.save_to_preset(tmp_path / "preset")
    loaded = keras_fam.FAMBackbone.from_preset(str(tmp_path / "preset"))
    saved = {name: getattr(loaded, name) for name in options}
    assert saved == {**options, "random_state_passing": 0.25} and loaded.random_position_offset
    assert loaded.get_config() == backbone.get_config()


# === Model files ===


@pytest.mark.parametrize("family", FAMILIES)
def test_model_files(family, tmp_path):
    lm = small_lm(family, stock={"num_layers": 1})
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert type(loaded) is keras_fam.FAMCausalLM
    np.testing.assert_array_equal(logits(loaded), logits(lm))


def test_a_model_file_keeps_the_tokenizer(lm, tmp_path):
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    tokens = [model.preprocessor(TEXT)[0]["token_ids"] for model in (lm, loaded)]
    np.testing.assert_array_equal(*(ops.convert_to_numpy(x) for x in tokens))


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_int8(family, tmp_path):
    """Quantized outputs are near, streaming agrees with them, and both kinds of file bring them back."""
    lm = small_lm(family, stock={"num_layers": 1})
    exact, streamed = logits(lm), numpy(lm.stream(IDS, lm.initial_state(2))[0])
    np.testing.assert_allclose(streamed, exact, rtol=1e-4, atol=1e-4)
    lm.quantize("int8")
    assert sum(v.dtype == "int8" for v in lm.weights) > 2 * lm.backbone.num_layers
    quantized = logits(lm)
    assert 0 < np.abs(quantized - exact).mean() < 0.1 * np.abs(exact).mean()
    np.testing.assert_allclose(numpy(lm.stream(IDS, lm.initial_state(2))[0]), quantized, rtol=1e-4, atol=1e-4)
    lm.save(tmp_path / "lm.keras")
    lm.backbone.save_to_preset(tmp_path / "preset")
    loaded = (
        keras.saving.load_model(tmp_path / "lm.keras"),
        keras_fam.FAMCausalLM.from_preset(str(tmp_path / "preset"), preprocessor=None),
    )
    expected = weights_by_path(lm)
    for model in loaded:
        weights = weights_by_path(model)
        assert set(weights) == set(expected)
        assert all(np.array_equal(weights[path], value) for path, value in expected.items())
    np.testing.assert_array_equal(logits(loaded[0]), quantized)


# === States ===


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_a_stream_goes_on_from_a_file(family, dtype, tmp_path):
    backbone = fam_backbone(family, stock={"dtype": dtype, "num_layers": 1})
    _, state = backbone.stream(IDS[:, :7], backbone.initial_state(2))
    keras_fam.save_state(tmp_path / "state.npz", state)
    loaded = keras_fam.load_state(tmp_path / "state.npz")
    assert isinstance(loaded, keras_fam.StreamState) and isinstance(loaded.layers[0], keras_fam.LayerState)
    for x, y in zip(keras.tree.flatten(loaded), keras.tree.flatten(state)):
        assert type(x) is type(y)
        assert keras.backend.standardize_dtype(x.dtype) == keras.backend.standardize_dtype(y.dtype)
        np.testing.assert_array_equal(ops.convert_to_numpy(x), ops.convert_to_numpy(y))
    after, after_loaded = backbone.stream(IDS[:, 7:], state), backbone.stream(IDS[:, 7:], loaded)
    for x, y in zip(keras.tree.flatten(numpy(after_loaded)), keras.tree.flatten(numpy(after))):
        np.testing.assert_array_equal(x, y)


def test_a_state_without_fam_and_a_path_as_str(tmp_path, monkeypatch):
    """No ending is added to the name, and a name without a folder is in the working one."""
    monkeypatch.chdir(tmp_path)
    backbone = fam_backbone("gemma", fam_length=0)
    _, state = backbone.stream(IDS, backbone.initial_state(2))
    keras_fam.save_state("conversation", state)
    assert os.listdir(tmp_path) == ["conversation"]
    assert numpy(keras_fam.load_state("conversation").position).tolist() == numpy(state.position).tolist()


def test_state_files_have_ordinary_permissions(tmp_path):
    keras_fam.save_state(tmp_path / "state.npz", fam_backbone("gpt2").initial_state(1))
    (tmp_path / "ordinary").write_bytes(b"")
    assert (tmp_path / "state.npz").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


# === LoRA weights ===


def trained(family, seed=0, rank=2, names=None):
    """A model after "fine-tuning": random values in all that LoRA trains."""
    backbone = fam_backbone(family)
    backbone.enable_lora(rank, names)
    for index, variable in enumerate(backbone.trainable_variables):
        variable.assign(variable + 0.3 * np.random.default_rng([seed, index]).standard_normal(variable.shape))
    return backbone


@pytest.mark.parametrize("family, names", [("gemma2", None), ("gpt2", None), ("gpt2", ["query", "value"])], ids=str)
def test_lora_weights_restore_the_fine_tuned_model(family, names, tmp_path):
    """Into a freshly converted model, whether LoRA is enabled there or not: kernels, biases and the prompt."""
    path = tmp_path / "weights.lora.h5"
    backbone = trained(family, names=names)
    backbone.save_lora_weights(path)
    expected = forward(backbone, IDS)
    assert np.abs(forward(fam_backbone(family), IDS) - expected).max() > 0.01
    for enable in (False, True):
        fresh = fam_backbone(family)
        fresh.fam_prompt.embeddings.assign(fresh.fam_prompt.embeddings + 1.0)
        if enable:
            fresh.enable_lora(2, names)
        fresh.load_lora_weights(path)
        assert [v.path for v in fresh.trainable_variables] == [v.path for v in backbone.trainable_variables]
        restored = weights_by_path(fresh)
        assert all(np.array_equal(restored[path], value) for path, value in weights_by_path(backbone).items())
    np.testing.assert_array_equal(forward(fresh, IDS), expected)


def test_what_is_in_a_lora_file(tmp_path):
    """Everything that trained and nothing else, by path: a fraction of the model."""
    backbone = trained("gpt2")
    backbone.save_lora_weights(tmp_path / "weights.lora.h5")
    stored = {}
    with h5py.File(tmp_path / "weights.lora.h5") as file:
        file.visititems(lambda path, item: stored.update({path: item[()]}) if hasattr(item, "shape") else None)
    assert set(stored) == {v.path for v in backbone.trainable_variables}
    assert {"fam_prompt/embeddings", "transformer_layer_1/self_attention/query/bias"} <= set(stored)
    assert all(np.array_equal(stored[v.path], numpy(v)) for v in backbone.trainable_variables)


def test_lora_weights_survive_another_order_of_layers(tmp_path, monkeypatch):
    """keras_hub stores by the place in a list of layers; here that list is turned round, with one more layer in it."""
    backbone = trained("gpt2")
    backbone.save_lora_weights(tmp_path / "weights.lora.h5")
    fresh = fam_backbone("gpt2")
    flatten = fresh._flatten_layers

    def reordered(*arguments, **options):
        layers = list(flatten(*arguments, **options))
        return [keras.layers.Dense(3, name="extra"), *reversed(layers)]

    monkeypatch.setattr(fresh, "_flatten_layers", reordered)
    fresh.load_lora_weights(tmp_path / "weights.lora.h5")
    expected = weights_by_path(backbone)
    assert all(np.array_equal(expected[path], value) for path, value in weights_by_path(fresh).items())


def test_lora_weights_in_bfloat16(tmp_path):
    backbone = fam_backbone("gpt2", stock={"dtype": "bfloat16"})
    backbone.enable_lora(2)
    randomize(backbone, seed=4)
    backbone.save_lora_weights(tmp_path / "weights.lora.h5")
    fresh = fam_backbone("gpt2", stock={"dtype": "bfloat16"})
    fresh.load_lora_weights(tmp_path / "weights.lora.h5")
    expected = weights_by_path(backbone)
    trained_paths = [v.path for v in fresh.trainable_variables]
    assert all(np.array_equal(expected[path], weights_by_path(fresh)[path]) for path in trained_paths)


def test_lora_through_the_language_model_and_a_preset(tmp_path):
    """A saved preset has LoRA merged into its kernels: the same outputs without LoRA."""
    lm = keras_fam.FAMCausalLM(trained("gemma"))
    lm.save_lora_weights(tmp_path / "weights.lora.h5")
    fresh = small_lm("gemma")
    fresh.load_lora_weights(tmp_path / "weights.lora.h5")
    np.testing.assert_array_equal(logits(fresh), logits(lm))
    lm.backbone.save_to_preset(tmp_path / "preset")
    merged = keras_fam.FAMBackbone.from_preset(str(tmp_path / "preset"))
    assert not merged.lora_enabled
    np.testing.assert_allclose(forward(merged, IDS), forward(lm.backbone, IDS), rtol=1e-4, atol=1e-4)


# === A failure in the middle ===


def test_a_state_file_stays_whole(tmp_path, monkeypatch):
    backbone = fam_backbone("gpt2")
    keras_fam.save_state(tmp_path / "state.npz", backbone.initial_state(1))
    before, savez = files(tmp_path), np.savez

    def half(file, **arrays):
        savez(file, **dict(list(arrays.items())[:2]))
        fail()

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space"):
        keras_fam.save_state(tmp_path / "state.npz", backbone.initial_state(2))
    assert files(tmp_path) == before
    with pytest.raises(OSError, match="No space"):
        keras_fam.save_state(tmp_path / "new.npz", backbone.initial_state(2))
    assert files(tmp_path) == before


def test_a_lora_file_stays_whole(tmp_path, monkeypatch):
    backbone = trained("gpt2")
    backbone.save_lora_weights(tmp_path / "weights.lora.h5")
    before, create, written = files(tmp_path), h5py.Group.__setitem__, []

    def half(group, path, value):
        create(group, path, value)
        written.append(path)
        if len(written) == 3:
            fail()

    monkeypatch.setattr(h5py.Group, "__setitem__", half)
    with pytest.raises(OSError, match="No space"):
        trained("gpt2", seed=1).save_lora_weights(tmp_path / "weights.lora.h5")
    assert len(written) == 3 and files(tmp_path) == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_preset_folder_stays_whole(exists, tmp_path, monkeypatch):
    """The configuration is written before the weights: a failure there must not leave the new one with the old ones."""
    lm, path = keras_fam.FAMCausalLM.from_preset(gpt2_preset(tmp_path / "stock"), **SIZES), tmp_path / "preset"
    if exists:
        lm.save_to_preset(path)
    before = files(tmp_path)
    other = keras_fam.FAMCausalLM.from_preset(str(tmp_path / "stock"), block_size=2, memory_segments=0, fam_length=1)
    monkeypatch.setattr(keras_fam.FAMBackbone, "save_weights", fail)
    for model in (other, other.backbone):
        with pytest.raises(OSError, match="No space"):
            model.save_to_preset(path)
    assert files(tmp_path) == before
    monkeypatch.undo()
    other.save_to_preset(path)
    assert keras_fam.FAMBackbone.from_preset(str(path)).block_size == 2
    assert sorted(os.listdir(tmp_path)) == ["preset", "stock"]


def test_a_model_file_stays_whole(tmp_path, monkeypatch):
    lm = small_lm()
    lm.save(tmp_path / "lm.keras")
    before = files(tmp_path)
    from keras.src.saving import saving_lib

    monkeypatch.setattr(saving_lib, "_save_state", fail)
    with pytest.raises(OSError, match="No space"):
        lm.save(tmp_path / "lm.keras")
    assert files(tmp_path) == before


def test_a_lora_file_that_does_not_fit_changes_nothing(tmp_path):
    trained("gpt2").save_lora_weights(tmp_path / "weights.lora.h5")
    other = fam_backbone("gpt2", stock={"intermediate_dim": 16})
    before = weights_by_path(other)
    with pytest.raises(ValueError, match="filepath"):
        other.load_lora_weights(tmp_path / "weights.lora.h5")
    assert list(before) == list(weights_by_path(other))
    assert all(np.array_equal(before[path], value) for path, value in weights_by_path(other).items())
