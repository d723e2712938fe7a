"""What memory adds, in numbers: against a brute count, states as they are, and the reach that changes show."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, forward, numpy, token_ids
from helpers.refusals import refused

import keras_fam

pytestmark = pytest.mark.shared_out


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_bytes_are_those_of_a_state(family):
    backbone = fam_backbone(family, sink_token_id=2)
    made, state = keras_fam.summary(backbone), numpy(backbone.initial_state(1))
    for layer, layer_state in zip(made.layers, state.layers, strict=True):
        assert layer.stream_bytes == sum(x.nbytes for x in layer_state)
    assert made.total.stream_bytes == sum(x.nbytes for x in keras.tree.flatten(state))


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "mistral"])
def test_reach_is_what_a_change_reaches(family):
    """Without FAM: the last token of a block changes with the token `reach - 1` back, and not with one further back."""
    backbone = fam_backbone(family, block_size=4, memory_segments=1, fam_length=0)
    made = keras_fam.summary(backbone)
    ids = token_ids(1, 24)
    last = 23
    base = forward(backbone, ids)[0, last]
    for back, changes in ((made.total.reach - 1, True), (made.total.reach, False)):
        other = ids.copy()
        other[0, last - back] = (other[0, last - back] + 1) % 50
        assert (np.abs(forward(backbone, other)[0, last] - base).max() > 1e-6) == changes, back
    windows = [layer.window for layer in made.layers]
    assert windows == [layer.parts.sliding_window for layer in backbone.transformer_layers]


def test_multiplications_of_the_benchmark():
    """README, "Speed and memory": FAM / BSWA by arithmetic 1.05, and stock / FAM 1.58, at 8,192 tokens."""
    stock = keras_hub.models.GPT2Backbone(
        vocabulary_size=50, num_layers=1, num_heads=8, hidden_dim=512, intermediate_dim=2048, max_sequence_length=8192
    )
    total = keras_fam.summary(keras_fam.FAMBackbone(stock, 1024, 3, 64)).total
    assert abs(total.against_bswa - 1.05) < 0.02
    assert abs(1 / total.against_stock - 1.58) < 0.1


@pytest.mark.parametrize("length", [3, 8, 13])
def test_multiplications_are_counted_one_by_one(length):
    backbone = fam_backbone("llama", block_size=4, memory_segments=1, fam_length=3, sink_token_id=2)
    made = keras_fam.summary(backbone, length=length).layers[0]
    config = FAMILIES["llama"][1]
    heads, groups, dim, inner = config["num_query_heads"], config["num_key_value_heads"], 16, 24
    size = dim // heads
    projections = dim * size * (2 * heads + 2 * groups) + 3 * dim * inner
    bswa = memory = 0
    for token in range(length):
        block = token // 4
        keys = min(4, length - 4 * block) + 4 * min(block, 1)
        bswa += projections + 2 * heads * size * keys
        memory += 2 * heads * size * (3 + 1)
    for _ in range(length // 4):
        memory += 3 * (projections + 2 * heads * size * (3 + 1 + 4))
    assert made.multiplications == bswa + memory
    np.testing.assert_allclose(made.against_bswa, (bswa + memory) / bswa)
    stock = length * projections + length * length * 2 * heads * size
    np.testing.assert_allclose(made.against_stock, (bswa + memory) / stock)


def test_a_table_and_what_is_refused():
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma2"))
    lines = repr(keras_fam.summary(lm, length=100)).splitlines()
    assert len(lines) == 1 + 1 + 2 + 1 + 1 + 1 and "bytes a stream" in lines[0] and "100 tokens" in lines[-1]
    assert lm.backbone.transformer_layers[0].name in lines[2] and "2 layers" in lines[-2]
    refused(lambda: keras_fam.summary(lm.backbone.family.backbone), "lm", "GemmaBackbone")
    for length in (0, 2.5, "8"):
        refused(lambda length=length: keras_fam.summary(lm, length=length), "length", length)
