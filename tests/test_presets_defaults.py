"""Defaults of `from_preset` on stock presets: a sink and a gate, and sizes that fit a table of learned positions."""

from pathlib import Path

import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone, forward, numpy, token_ids
from helpers.presets import PRESETS, gpt2_preset
from helpers.refusals import refused

import keras_fam
from keras_fam.models.presets import MEMORY_GATE

pytestmark = pytest.mark.shared_out

SIZES = dict(block_size=4, memory_segments=1, fam_length=3)


@pytest.fixture(scope="module", params=PRESETS)
def stock_preset(request, tmp_path_factory):
    return PRESETS[request.param](tmp_path_factory.mktemp("stock") / request.param)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """GPT-2 presets by the length of their tables of positions."""
    folder = tmp_path_factory.mktemp("tables")
    return {n: gpt2_preset(folder / str(n), max_sequence_length=n) for n in (24, 1024, 5000)}


def sizes(model):
    backbone = getattr(model, "backbone", model)
    return backbone.block_size, backbone.memory_segments, backbone.fam_length


def gates(backbone):
    return [
        None if layer.memory_gate is None else float(numpy(layer.memory_gate)) for layer in backbone.transformer_layers
    ]


# === Sink and gate ===


def test_a_language_model_takes_its_tokenizer_s_start_token_and_a_gate(stock_preset):
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, **SIZES)
    start = lm.preprocessor.tokenizer.start_token_id
    assert start is not None and lm.backbone.sink_token_id == start
    assert lm.backbone.memory_gate == MEMORY_GATE and gates(lm.backbone) == [MEMORY_GATE] * 2


def test_a_backbone_has_no_tokenizer_and_so_no_sink(stock_preset):
    backbone = keras_fam.FAMBackbone.from_preset(stock_preset, **SIZES)
    assert backbone.sink_token_id is None and gates(backbone) == [MEMORY_GATE] * 2
    assert keras_fam.FAMCausalLM.from_preset(stock_preset, preprocessor=None, **SIZES).backbone.sink_token_id is None


def test_the_preprocessor_that_is_given_says_the_start_token(stock_preset):
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(stock_preset)
    preprocessor.tokenizer.start_token_id = 5
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, preprocessor=preprocessor, **SIZES)
    assert lm.backbone.sink_token_id == 5
    preprocessor.tokenizer.start_token_id = None  # Qwen's tokenizers have none.
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, preprocessor=preprocessor, **SIZES)
    assert lm.backbone.sink_token_id is None


@pytest.mark.parametrize("sink, gate", [(None, None), (7, -1.5), (0, 0.0)])
@pytest.mark.parametrize("cls", [keras_fam.FAMBackbone, keras_fam.FAMCausalLM])
def test_what_is_given_wins(stock_preset, cls, sink, gate):
    model = cls.from_preset(stock_preset, **SIZES, sink_token_id=sink, memory_gate=gate)
    backbone = getattr(model, "backbone", model)
    assert (backbone.sink_token_id, backbone.memory_gate) == (sink, gate) and gates(backbone) == [gate] * 2


def test_block_attention_has_the_sink_and_no_gate(stock_preset):
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, block_size=4, memory_segments=1, fam_length=0)
    assert lm.backbone.sink_token_id == lm.preprocessor.tokenizer.start_token_id
    assert lm.backbone.memory_gate is None and gates(lm.backbone) == [None] * 2


def test_a_backbone_made_by_hand_is_the_paper_s():
    backbone = fam_backbone("gemma")
    assert (backbone.sink_token_id, backbone.memory_gate) == (None, None) and gates(backbone) == [None] * 2


def test_the_gate_is_nearly_shut(stock_preset):
    """By default FAM changes less than it does in the paper's form."""
    models = [keras_fam.FAMCausalLM.from_preset(stock_preset, **SIZES, **gate) for gate in ({}, {"memory_gate": 0.0})]
    bare = keras_fam.FAMCausalLM.from_preset(stock_preset, block_size=4, memory_segments=1, fam_length=0)
    prompt = numpy(models[0].backbone.fam_prompt.embeddings)
    models[1].backbone.fam_prompt.embeddings.assign(prompt.copy())
    ids = token_ids(2, 18) % 40
    off, gated, paper = (forward(model.backbone, ids) for model in (bare, *models))
    assert 0 < np.abs(gated - off).mean() < 0.5 * np.abs(paper - off).mean()


def test_a_saved_preset_keeps_what_it_was_saved_with(stock_preset, tmp_path):
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, **SIZES)
    lm.save_to_preset(tmp_path / "saved")
    loaded = keras_fam.FAMCausalLM.from_preset(str(tmp_path / "saved"))
    assert loaded.backbone.get_config() == lm.backbone.get_config()
    ids = token_ids(1, 11) % 40
    np.testing.assert_array_equal(forward(loaded.backbone, ids), forward(lm.backbone, ids))
    refused(
        lambda: keras_fam.FAMCausalLM.from_preset(str(tmp_path / "saved"), sink_token_id=None), "sink_token_id", "None"
    )


def test_a_preset_of_version_0_1_has_neither():
    folder = Path(__file__).parent / "fixtures" / "preset_v1"
    backbone = keras_fam.FAMCausalLM.from_preset(str(folder)).backbone
    assert backbone.sink_token_id is None and set(gates(backbone)) == {None}


# === Sizes ===


@pytest.mark.parametrize(
    "length, given, expected",
    [
        (24, {}, (6, 3, 6)),
        (24, {"memory_segments": 1}, (12, 1, 12)),
        (24, {"memory_segments": 0}, (24, 0, 24)),
        (24, {"block_size": 8}, (8, 2, 8)),
        (24, {"block_size": 5}, (5, 3, 5)),
        (24, {"block_size": 24}, (24, 0, 24)),
        (24, {"fam_length": 2}, (6, 3, 2)),
        (24, {"fam_length": 0}, (6, 3, 0)),
        (1024, {}, (256, 3, 64)),
        (1024, {"block_size": 512}, (512, 1, 64)),
        (1024, {"memory_segments": 7}, (128, 7, 64)),
        (5000, {}, (1024, 3, 64)),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [keras_fam.FAMBackbone, keras_fam.FAMCausalLM])
def test_sizes_fit_a_table_of_positions(tables, cls, length, given, expected):
    assert sizes(cls.from_preset(tables[length], load_weights=False, **given)) == expected


def test_sizes_without_a_table(stock_preset):
    lm = keras_fam.FAMCausalLM.from_preset(stock_preset, load_weights=False, block_size=16)
    assert sizes(lm) == ((16, 0, 16) if "gpt2" in stock_preset else (16, 3, 16))
    if "gemma" in stock_preset:
        assert sizes(keras_fam.FAMCausalLM.from_preset(stock_preset, load_weights=False)) == (1024, 3, 64)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"block_size": 25}, ("max_sequence_length=24", "block_size=25")),
        ({"memory_segments": 24}, ("max_sequence_length=24", "memory_segments=24")),
        ({"block_size": 8, "memory_segments": 3}, ("max_sequence_length=24", "memory_segments=3", "block_size=8")),
        ({"fam_length": 7}, ("fam_length", "7")),
        ({"block_size": 0}, ("block_size", "0")),
        ({"block_size": "8"}, ("block_size", "'8'")),
        ({"memory_segments": -1}, ("memory_segments", "-1")),
    ],
    ids=str,
)
def test_what_is_given_and_does_not_fit_is_refused(tables, given, words):
    for cls in (keras_fam.FAMBackbone, keras_fam.FAMCausalLM):
        refused(lambda cls=cls: cls.from_preset(tables[24], **given), *words)


def test_defaults_of_a_table_read_generate_and_stream(tables):
    lm = keras_fam.FAMCausalLM.from_preset(tables[24])
    lm.compile(sampler="greedy")
    text = lm.generate("the key", max_length=40, stop_token_ids=None)
    assert text.startswith("the key") and len(text) > len("the key")
    ids = token_ids(1, 60) % 30
    whole, state = forward(lm.backbone, ids), lm.initial_state(1)
    hidden, state = lm.backbone.stream(ids, state)
    np.testing.assert_allclose(numpy(hidden), whole, atol=1e-5)
