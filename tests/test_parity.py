"""Properties 1 and 2: equal to the stock model where it should be, and to the float64 reference everywhere."""

import sys

import keras
import numpy as np
import pytest
from helpers.models import (
    FAMILIES,
    VOCABULARY,
    fam_backbone,
    forward,
    inputs,
    randomize,
    reference,
    stock_backbone,
    token_ids,
    weights_by_path,
)
from keras import ops

import keras_fam

TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def padded_mask(batch, length):
    """Right padding of another length in every row; the first row has none."""
    return (np.arange(length)[None] < length - 5 * np.arange(batch)[:, None]).astype("int32")


def assert_equals_reference(backbone, ids, mask=None, **options):
    hidden = forward(backbone, ids, mask)
    expected, _ = reference(backbone, ids, mask, **options)
    real = np.ones(ids.shape, "bool") if mask is None else mask.astype("bool")
    np.testing.assert_allclose(hidden[real], expected[real], **TOLERANCE)


@pytest.mark.parametrize("length", [1, 24])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_without_fam_is_the_stock_backbone(family, length):
    stock = stock_backbone(family)
    ids, mask = token_ids(3, length), np.maximum(padded_mask(3, length), np.arange(length) == 0).astype("int32")
    expected = forward(stock, ids, mask)
    backbone = keras_fam.FAMBackbone(stock, block_size=24, memory_segments=0, fam_length=0)
    real = mask.astype("bool")
    np.testing.assert_allclose(forward(backbone, ids, mask)[real], expected[real], **TOLERANCE)


def backbone_layers(stock):
    return stock.transformer_layers


@pytest.mark.parametrize("memory_segments", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_fam_the_stock_layers_under_the_dense_block_mask(family, memory_segments, monkeypatch):
    """The stock backbone itself, with nothing but its causal mask exchanged for the block sliding window."""
    block_size, length = 4, 22
    stock = stock_backbone(family)
    place = np.arange(length)
    blocks_back = place[:, None] // block_size - place[None] // block_size
    dense = (place[:, None] >= place[None]) & (blocks_back <= memory_segments)

    def block_mask(batch_size, input_length, output_length, cache_index=0):
        return ops.broadcast_to(ops.convert_to_tensor(dense)[None], (batch_size, length, length))

    module = sys.modules[type(backbone_layers(stock)[0]).__module__]
    monkeypatch.setattr(module, "compute_causal_mask", block_mask)
    ids = token_ids(2, length)
    expected = forward(stock, ids)
    backbone = keras_fam.FAMBackbone(stock, block_size, memory_segments, fam_length=0)
    np.testing.assert_allclose(forward(backbone, ids), expected, **TOLERANCE)


@pytest.mark.shared_out
@pytest.mark.parametrize("block_size, memory_segments, fam_length", [(4, 0, 2), (3, 2, 3), (6, 3, 6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_reference(family, block_size, memory_segments, fam_length):
    ids = token_ids(2, 21)
    assert_equals_reference(fam_backbone(family, block_size, memory_segments, fam_length), ids)


@pytest.mark.shared_out
@pytest.mark.parametrize("length", [3, 4, 5, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_reference_at_the_edges_of_blocks(family, length):
    assert_equals_reference(fam_backbone(family), token_ids(2, length))


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_with_padding(family):
    """Right padding, a block of nothing but padding in the middle, padding inside a block and at the start."""
    ids = token_ids(4, 22)
    mask = padded_mask(4, 22)
    mask[1, 4:8] = 0
    mask[2, 9:11] = 0
    mask[3, :5] = 0
    assert_equals_reference(fam_backbone(family), ids, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_with_lora(family):
    backbone = fam_backbone(family)
    backbone.enable_lora(rank=2)
    randomize(backbone, seed=3, scale=0.15)
    assert_equals_reference(backbone, token_ids(2, 18))


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_gradients_are_the_reference_s_derivatives(family):
    """Along a random direction in all weights at once: backpropagation against the float64 central difference."""
    from helpers.gradients import loss_and_gradients

    backbone = fam_backbone(family)
    ids, direction_rng = token_ids(1, 14), np.random.default_rng(5)
    head = direction_rng.standard_normal((1, 14, 16))
    _, gradients = loss_and_gradients(
        backbone, inputs(ids), lambda hidden: ops.sum(hidden * ops.convert_to_tensor(head.astype("float32")))
    )
    weights = weights_by_path(backbone)
    direction = {path: direction_rng.standard_normal(value.shape) for path, value in weights.items()}
    analytic = sum(float(np.sum(gradients[path] * direction[path])) for path in gradients)

    def reference_loss(step):
        moved = {path: value.astype("float64") + step * direction[path] for path, value in weights.items()}
        hidden, _ = reference(backbone, ids, weights=moved)
        return float(np.sum(hidden * head))

    numeric = (reference_loss(1e-5) - reference_loss(-1e-5)) / 2e-5
    assert analytic == pytest.approx(numeric, rel=1e-3)
    assert set(gradients) == set(weights)


def test_bfloat16_agrees_with_float32_within_its_precision():
    ids = token_ids(2, 21)
    for family in FAMILIES:
        exact = forward(fam_backbone(family), ids)
        rough = forward(fam_backbone(family, stock={"dtype": "bfloat16"}), ids).astype("float32")
        assert np.abs(rough - exact).mean() < 0.03 * np.abs(exact).mean() + 0.02, family


def test_keras_nlp_is_the_same_library():
    import keras_nlp

    stock = keras_nlp.models.GPT2Backbone(**FAMILIES["gpt2"][1])
    randomize(stock)
    backbone = keras_fam.FAMBackbone(stock, block_size=4, memory_segments=1, fam_length=3)
    backbone.tests_family = "gpt2"
    assert isinstance(backbone, keras_nlp.models.Backbone)
    assert_equals_reference(backbone, token_ids(2, 18))
    lm = keras_fam.FAMCausalLM(backbone)
    lm.compile(sampler=keras_nlp.samplers.TopKSampler(k=3))
    ids = np.zeros((1, 12), "int32")
    ids[0, :3] = [1, 2, 3]
    mask = np.arange(12)[None] < 3
    generated = lm.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)["token_ids"]
    assert generated.shape == (1, 12) and generated.max() < VOCABULARY
    assert keras_nlp.models.CausalLM in type(lm).__mro__
    assert keras.saving.get_registered_name(type(lm)) == "keras_fam>FAMCausalLM"
