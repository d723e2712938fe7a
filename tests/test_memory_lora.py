"""LoRA that acts on FAM alone: `enable_lora(memory_only=True)`."""

import keras
import numpy as np
import pytest
from helpers.models import (
    FAMILIES,
    fam_backbone,
    forward,
    inputs,
    numpy,
    reference,
    token_ids,
    weights_by_path,
)

import keras_fam

RANK = 2


def adapted(family, seed=0, names=None, **options):
    """A backbone whose adapters have random values, which move outputs by tenths and more.

    At three times the size, half a float32 digit in each weight moves the reference's by as much as comparisons allow.
    """
    backbone = fam_backbone(family, seed=seed, memory_gate=0.0, sink_token_id=1, **options)
    backbone.enable_lora(RANK, names, memory_only=True)
    for index, variable in enumerate(adapters_of(backbone)):
        variable.assign(0.1 * np.random.default_rng([seed, index]).standard_normal(variable.shape))
    return backbone


def adapters_of(model):
    return [v for v in model.trainable_variables if v.name.startswith("lora_kernel")]


def weights_of_tokens(backbone):
    return {path: value for path, value in weights_by_path(backbone).items() if "/lora_kernel" not in path}


def merged(backbone):
    """The weights as FAM meets them: A B added to each kernel."""
    weights = weights_of_tokens(backbone)
    for layer in backbone.transformer_layers:
        for name, (projection, read, made) in layer.projections().items():
            if name in layer.memory_adapters:
                adapter = layer.memory_adapters[name]
                change = numpy(adapter.lora_kernel_a) @ numpy(adapter.lora_kernel_b)
                change, kernel = change.reshape(*read, *made), weights[projection.kernel.path]
                if change.shape != kernel.shape:  # Gemma's kernels are [heads, d, c].
                    change = change.transpose(1, 0, 2)
                weights[projection.kernel.path] = kernel + change
    return weights


def without_own_activation(backbone):
    """All projections but one whose activation is its own: an adapter is added behind that."""
    return [name for name in backbone.default_lora_layer_names() if name != "feedforward_intermediate_dense"]


@pytest.mark.parametrize("family", FAMILIES)
def test_fam_alone_is_adapted(family):
    names = without_own_activation(fam_backbone(family)) if family == "gpt2" else None
    backbone, ids = adapted(family, names=names), token_ids(2, 19)
    weights = weights_of_tokens(backbone)
    expected, _ = reference(backbone, ids, weights=weights, fam_weights=merged(backbone))
    hidden = forward(backbone, ids)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)
    plain, _ = reference(backbone, ids, weights=weights)
    assert np.abs(hidden - plain).max() > 0.01
    assert len(adapters_of(backbone)) == 2 * sum(len(x.memory_adapters) for x in backbone.transformer_layers) > 0


def test_a_projection_with_its_own_activation():
    backbone = adapted("gpt2", names=["feedforward_intermediate_dense"])
    layer = backbone.transformer_layers[0]
    x = keras.random.normal((1, 3, 16), seed=0)
    adapter = layer.memory_adapters["up"]
    expected = numpy(layer.parts.up(x)) + numpy(x) @ numpy(adapter.lora_kernel_a) @ numpy(adapter.lora_kernel_b)
    np.testing.assert_allclose(numpy(layer.core.fam_parts._dense("up", x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_hidden_memory_leaves_the_stock_model(family):
    """With a gate that hides FAM, what adapters do to it changes nothing, to the last bit."""
    backbone, ids = adapted(family), token_ids(2, 19)
    for layer in backbone.transformer_layers:
        layer.memory_gate.assign(-1e9)
    before = forward(backbone, ids)
    for variable in adapters_of(backbone):
        variable.assign(variable + 1.0)
    np.testing.assert_array_equal(forward(backbone, ids), before)


def test_nothing_changes_before_training():
    backbone, ids = fam_backbone("gemma2"), token_ids(2, 19)
    before = forward(backbone, ids)
    backbone.enable_lora(RANK, memory_only=True)
    np.testing.assert_allclose(forward(backbone, ids), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gemma2", "llama3", "gpt2"])
def test_streams_are_the_whole_text(family):
    backbone, ids = adapted(family, memory_span=1.0), token_ids(2, 19)
    state, parts = backbone.initial_state(2), []
    for start, stop in ((0, 3), (3, 4), (4, 13), (13, 19)):
        hidden, state = backbone.stream(inputs(ids[:, start:stop]), state)
        parts.append(numpy(hidden))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), forward(backbone, ids), rtol=1e-5, atol=1e-5)


def language_model(seed=0, dtype="float32", quantize=None):
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma2", memory_gate=0.0, sink_token_id=1, stock={"dtype": dtype}))
    if quantize:
        lm.quantize(quantize)
    lm.enable_lora(RANK, memory_only=True)
    for index, variable in enumerate(adapters_of(lm)):
        variable.assign(0.1 * np.random.default_rng([seed, index]).standard_normal(variable.shape))
    return lm


@pytest.mark.parametrize("dtype, quantize", [("float32", None), ("bfloat16", None), ("float32", "int8")])
def test_what_trains(dtype, quantize):
    lm = language_model(dtype=dtype, quantize=quantize)
    trained = {v.path: numpy(v) for v in lm.trainable_variables}
    frozen = {v.path: numpy(v) for v in lm.non_trainable_variables}
    assert {v.dtype for v in lm.trainable_variables} == {"float32"}
    assert {path.split("/")[-1] for path in trained} == {"lora_kernel_a", "lora_kernel_b", "embeddings", "memory_gate"}
    lm.compile(optimizer=keras.optimizers.Adam(1e-3))
    ids = token_ids(4, 13)
    lm.fit(inputs(ids[:, :-1]), ids[:, 1:], batch_size=2, epochs=1, verbose=0)
    for variable in lm.trainable_variables:
        assert np.abs(numpy(variable) - trained[variable.path]).max() > 1e-4, variable.path
    for variable in lm.non_trainable_variables:
        if variable.path in frozen and "seed" not in variable.path:
            np.testing.assert_array_equal(numpy(variable), frozen[variable.path], err_msg=variable.path)


@pytest.mark.parametrize("ending", [".lora.safetensors", ".lora.h5"])
def test_an_adapter_file(ending, tmp_path):
    lm, ids = language_model(), token_ids(2, 19)
    randomize_prompt_and_gates(lm)
    expected = numpy(lm(inputs(ids)))
    lm.save_lora_weights(tmp_path / f"memory{ending}")
    new = keras_fam.FAMCausalLM(fam_backbone("gemma2", memory_gate=0.0, sink_token_id=1))
    assert not new.backbone.lora_memory_only
    new.load_lora_weights(tmp_path / f"memory{ending}")
    assert new.backbone.lora_enabled and new.backbone.lora_memory_only
    np.testing.assert_allclose(numpy(new(inputs(ids))), expected, rtol=1e-5, atol=1e-5)
    again = language_model(seed=3)
    again.load_lora_weights(tmp_path / f"memory{ending}")
    np.testing.assert_allclose(numpy(again(inputs(ids))), expected, rtol=1e-5, atol=1e-5)
    other = keras_fam.FAMCausalLM(fam_backbone("gemma2", memory_gate=0.0, sink_token_id=1))
    other.enable_lora(RANK)
    with pytest.raises(ValueError, match=r"rank 2 on .* of FAM alone"):
        other.load_lora_weights(tmp_path / f"memory{ending}")
    other.save_lora_weights(tmp_path / f"all{ending}")
    with pytest.raises(ValueError, match="of FAM alone. Received"):
        lm.load_lora_weights(tmp_path / f"all{ending}")
    narrow = keras_fam.FAMCausalLM(fam_backbone("gemma", memory_gate=0.0, stock={"hidden_dim": 8}))
    with pytest.raises(ValueError, match="must hold the variables that LoRA trains"):
        narrow.load_lora_weights(tmp_path / f"memory{ending}")
    assert not narrow.backbone.lora_enabled


def randomize_prompt_and_gates(lm):
    for index, variable in enumerate(v for v in lm.trainable_variables if "lora_kernel" not in v.name):
        variable.assign(0.3 * np.random.default_rng([5, index]).standard_normal(variable.shape))


def test_presets_and_files_keep_it(tmp_path):
    lm, ids = language_model(), token_ids(2, 19)
    expected = numpy(lm(inputs(ids)))
    lm.save_to_preset(tmp_path / "preset")
    lm.save(tmp_path / "lm.keras")
    for loaded in (
        keras_fam.FAMCausalLM.from_preset(str(tmp_path / "preset")),
        keras.models.load_model(tmp_path / "lm.keras"),
    ):
        assert loaded.backbone.lora_memory_only
        np.testing.assert_allclose(numpy(loaded(inputs(ids))), expected, rtol=1e-5, atol=1e-5)
        assert len(loaded.trainable_variables) == len(lm.trainable_variables)
    lm.save_weights(tmp_path / "lm.weights.h5")
    other = language_model(seed=3)
    other.load_weights(tmp_path / "lm.weights.h5")
    np.testing.assert_allclose(numpy(other(inputs(ids))), expected, rtol=1e-5, atol=1e-5)
    plain = keras_fam.FAMCausalLM(fam_backbone("gemma2", memory_gate=0.0, sink_token_id=1))
    with pytest.raises(ValueError, match=r"enable_lora\(2, memory_only=True\)"):
        plain.load_weights(tmp_path / "lm.weights.h5")


def test_bad_input():
    without_fam = fam_backbone("gemma", fam_length=0)
    with pytest.raises(ValueError, match="`memory_only` must be False without FAM"):
        without_fam.enable_lora(RANK, memory_only=True)
    assert not without_fam.lora_enabled and len(without_fam.trainable_variables) == len(without_fam.weights)
    backbone = fam_backbone("gemma")
    with pytest.raises(TypeError, match="`memory_only` must be True or False"):
        backbone.enable_lora(RANK, memory_only=1)
    with pytest.raises(ValueError, match="must name layers of this model"):
        backbone.enable_lora(RANK, ["token_embedding"], memory_only=True)
    backbone.enable_lora(RANK, memory_only=True)
    for again in (True, False):
        with pytest.raises(ValueError, match="can be called once.*rank 2"):
            backbone.enable_lora(3, memory_only=again)
