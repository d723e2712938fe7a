"""Property 7: the stock backbone's variables, adopted and not copied, plus one prompt table; and what LoRA trains."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, forward, numpy, randomize, stock_backbone, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_the_only_new_variable(family):
    stock = stock_backbone(family)
    before = {v.path: v for v in stock.variables}
    backbone = keras_fam.FAMBackbone(stock, 4, 1, 3)
    after = {v.path: v for v in backbone.variables}
    assert set(after) - set(before) == {"fam_prompt/embeddings"}
    assert set(before) <= set(after)
    # Adopted, not copied: the very same variable objects.
    assert all(after[path] is variable for path, variable in before.items())
    assert backbone.fam_prompt.embeddings.shape == (3, 16)
    bswa = keras_fam.FAMBackbone(stock_backbone(family), 4, 1, 0)
    assert {v.path for v in bswa.weights} == {v.path for v in stock.weights}
    assert len(bswa.variables) == len(before)


def test_random_state_passing_s_variables():
    plain = {v.path for v in fam_backbone("gemma").variables}
    passing = {v.path for v in fam_backbone("gemma", random_state_passing=0.5).variables}
    added = sorted(passing - plain)
    assert [path.split("/")[-1] for path in added] == [
        "last_fam",
        "last_fam",
        "probability",
        "ready",
        "seed_generator_state",
    ]


def test_the_prompt_starts_as_rows_of_the_vocabulary():
    stock = stock_backbone("gemma")
    backbone = keras_fam.FAMBackbone(stock, 4, 1, 3)
    table = numpy(stock.token_embedding.embeddings)
    for row in numpy(backbone.fam_prompt.embeddings):
        assert np.abs(table - row).max(axis=1).min() == 0


def test_stock_layer_names_stay_and_layouts_match():
    stock = stock_backbone("gemma")
    # Every layer with variables of its own; what holds no more than other layers has no name that matters.
    names = [layer.name for layer in stock._flatten_layers() if layer._trainable_variables and layer is not stock]
    assert {"query", "attention_output", "ffw_gating", "pre_attention_norm", "token_embedding"} <= set(names)
    backbone = keras_fam.FAMBackbone(stock, 4, 1, 3)
    kept = [layer.name for layer in backbone._flatten_layers()]
    assert set(names) <= set(kept)

    devices = np.array(["cpu:0"])
    mesh = keras.distribution.DeviceMesh(shape=(1, 1), axis_names=("batch", "model"), devices=devices)
    layouts = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    matched = {v.path for v in backbone.variables if layouts[v.path] is not None}
    assert len(matched) == 1 + 2 * 7  # The token embedding, and seven kernels in each of two layers.


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_attention_feed_forward_and_the_prompt(family):
    backbone = fam_backbone(family)
    lm = keras_fam.FAMCausalLM(backbone)
    ids = token_ids(1, 9)
    before = forward(lm, ids)
    lm.enable_lora(rank=2)
    trained = {v.path for v in lm.trainable_variables}
    allowed = (
        ("lora_kernel_a", "lora_kernel_b", "bias") if family in ("gpt2", "qwen") else ("lora_kernel_a", "lora_kernel_b")
    )
    assert "fam_prompt/embeddings" in trained
    assert all(path.endswith(allowed) for path in trained - {"fam_prompt/embeddings"})
    assert {path.split("/")[-2] for path in trained if "lora" in path} == set(backbone.default_lora_layer_names())
    lora_paths = [path for path in trained if path.endswith("lora_kernel_a")]
    assert len(lora_paths) == 2 * len(backbone.default_lora_layer_names())
    # LoRA starts as nothing.
    lm.compile()
    np.testing.assert_allclose(forward(lm, ids), before, atol=1e-6)


def test_lora_on_chosen_layers():
    backbone = fam_backbone("gemma")
    backbone.enable_lora(3, target_layer_names=["query", "value"])
    assert {v.path.split("/")[-2] for v in backbone.trainable_variables} == {"query", "value", "fam_prompt"}
    assert all(v.shape[-1] == 3 for v in backbone.trainable_variables if v.path.endswith("lora_kernel_a"))


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_fine_tuning_with_lora_changes_only_what_it_should(family):
    lm = keras_fam.FAMCausalLM(fam_backbone(family))
    lm.enable_lora(rank=2)
    lm.compile(optimizer=keras.optimizers.Adam(0.01))
    frozen = {v.path: numpy(v.value) for v in lm.non_trainable_variables if "seed" not in v.path}
    trained = {v.path: numpy(v.value) for v in lm.trainable_variables}
    ids = token_ids(4, 21)
    x = {"token_ids": ids[:, :-1], "padding_mask": np.ones((4, 20), "int32")}
    history = lm.fit(x, ids[:, 1:], batch_size=2, epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    for variable in lm.non_trainable_variables:
        if variable.path in frozen:
            np.testing.assert_array_equal(numpy(variable.value), frozen[variable.path])
    still = [v.path for v in lm.trainable_variables if np.array_equal(numpy(v.value), trained[v.path])]
    assert still == []


def test_int8_then_lora():
    backbone = fam_backbone("gemma")
    lm = keras_fam.FAMCausalLM(backbone)
    ids = token_ids(1, 9)
    exact = forward(lm, ids)
    lm.quantize("int8")
    lm.compile()
    quantized = forward(lm, ids)
    assert 0 < np.abs(quantized - exact).mean() < 0.3 * np.abs(exact).mean()
    lm.enable_lora(rank=2)
    randomize_lora = [v for v in lm.trainable_variables if "lora" in v.path]
    assert randomize_lora
    lm.compile()
    np.testing.assert_allclose(forward(lm, ids), quantized, atol=1e-5)


def test_registered_families_are_found(monkeypatch):
    from keras_fam import families
    from keras_fam.families.gemma import GemmaFamily

    monkeypatch.setattr(families, "_FAMILIES", [*families._FAMILIES])

    class OwnBackbone(keras_hub.models.GemmaBackbone):
        pass

    class OwnFamily(GemmaFamily):
        backbone_cls = OwnBackbone

    stock = OwnBackbone(**FAMILIES["gemma"][1])
    randomize(stock)
    with pytest.raises(ValueError, match="register_family"):
        keras_fam.FAMBackbone(stock, 4, 1, 3)
    keras_fam.register_family(OwnFamily)
    assert keras_fam.FAMBackbone(stock, 4, 1, 3).family.__class__ is OwnFamily
