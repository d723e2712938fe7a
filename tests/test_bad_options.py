"""Bad options, backbones and presets: refused by an error that names the argument, with nothing changed."""

import functools

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone, stock_backbone, weights_by_path
from helpers.presets import gpt2_preset
from helpers.refusals import refused, snapshot

import keras_fam
from keras_fam.training.state_passing import RandomStatePassing

pytestmark = pytest.mark.shared_out

BLOCK = dict(num_query_heads=4, num_key_value_heads=2, head_dim=6, intermediate_dim=12, block_size=4)

# === Options ===

BAD_SIZES = [
    ("block_size", 0),
    ("block_size", -4),
    ("block_size", 4.0),
    ("block_size", "4"),
    ("block_size", None),
    ("block_size", True),
    ("memory_segments", -1),
    ("memory_segments", 1.5),
    ("memory_segments", None),
]
BAD_OPTIONS = [
    *BAD_SIZES,
    ("fam_length", -1),
    ("fam_length", 2.0),
    ("fam_length", "2"),
    ("fam_length", 5),  # more than block_size
    ("random_state_passing", 1.5),
    ("random_state_passing", -0.1),
    ("random_state_passing", float("nan")),
    ("random_state_passing", "0.8"),
    ("random_state_passing", None),
    ("random_position_offset", 1),
    ("stop_gradient_memory", "yes"),
    ("truncate_bptt", 0),
    ("truncate_bptt", 1.5),
]


@pytest.mark.parametrize("name, value", BAD_OPTIONS, ids=str)
def test_backbone_options(name, value):
    stock = stock_backbone("gpt2")
    before = snapshot(stock)
    options = dict(block_size=4, memory_segments=1, fam_length=3)
    refused(lambda: keras_fam.FAMBackbone(stock, **{**options, name: value}), name, value)
    assert snapshot(stock) == before


@pytest.mark.parametrize("name, value", BAD_OPTIONS, ids=str)
def test_from_preset_options(stock_preset, name, value):
    options = dict(block_size=4, memory_segments=1, fam_length=3)
    refused(lambda: keras_fam.FAMCausalLM.from_preset(stock_preset, **{**options, name: value}), name, value)


@pytest.mark.parametrize("name, value", [*BAD_SIZES, ("stop_gradient_memory", 1), ("truncate_bptt", 0)], ids=str)
@pytest.mark.parametrize("layer", [keras_fam.FeedbackAttention, keras_fam.FAMDecoderBlock])
def test_memory_options_of_layers(layer, name, value):
    options = {**BLOCK, name: value}
    if layer is keras_fam.FeedbackAttention:
        del options["intermediate_dim"]
    refused(lambda: layer(**options), name, value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_query_heads", 0),
        ("num_query_heads", 3),  # no multiple of num_key_value_heads
        ("num_query_heads", 4.0),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", None),
        ("head_dim", 0),
        ("head_dim", "6"),
        ("head_dim", 5),  # rotary positions turn pairs
        ("intermediate_dim", 0),
        ("intermediate_dim", 12.0),
        ("normalization", "batch_norm"),
        ("gated_feedforward", 1),
        ("use_bias", "no"),
        ("use_post_attention_norm", None),
        ("use_post_ffw_norm", 0),
        ("rope_max_wavelength", 0.0),
        ("rope_max_wavelength", "long"),
        ("logit_soft_cap", 0.0),
        ("logit_soft_cap", "soft"),
        ("sliding_window_size", 0),
        ("sliding_window_size", 2.5),
        ("layer_norm_epsilon", -1e-6),
        ("layer_norm_epsilon", None),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", "0.1"),
    ],
    ids=str,
)
def test_options_of_the_decoder_block(name, value):
    refused(lambda: keras_fam.FAMDecoderBlock(**{**BLOCK, name: value}), name, value)


@pytest.mark.parametrize("fam_length", [0, -1, 2.0, "2", None])
def test_prompt_length(fam_length):
    refused(lambda: keras_fam.FAMPrompt(fam_length), "fam_length", fam_length)


@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 2, 8), (1, 2, 6), (2, 8)], ids=str)
def test_a_fam_that_does_not_fit_the_layer(shape):
    """Longer than a block, of another batch size, another hidden dimension, or another rank; also symbolically."""
    x = np.ones((2, 9, 8), "float32")
    layer = keras_fam.FAMDecoderBlock(**BLOCK)
    refused(lambda: layer(x, np.ones(shape, "float32")), "fam", shape)
    refused(lambda: layer(keras.KerasTensor(x.shape), keras.KerasTensor(shape)), "fam", shape)
    layer(x, np.ones((1, 2, 8), "float32"))
    refused(lambda: layer(x, np.ones(shape, "float32")), "fam", shape)


def test_a_layer_s_inputs():
    attention = keras_fam.FeedbackAttention(num_query_heads=4, num_key_value_heads=2, head_dim=6, block_size=4)
    x = np.ones((2, 9, 8), "float32")
    refused(lambda: attention(x[0]), "inputs", (9, 8))
    refused(lambda: attention(x, inputs_mask=np.ones((2, 8), "bool")), "inputs_mask", (2, 8), (2, 9))


def test_more_memory_than_positions():
    """GPT-2's table has 24 places."""
    stock = stock_backbone("gpt2")
    keras_fam.FAMBackbone(stock, block_size=8, memory_segments=2, fam_length=0)
    refused(
        lambda: keras_fam.FAMBackbone(stock, block_size=8, memory_segments=3, fam_length=0),
        "(memory_segments + 1) * block_size",
        "max_sequence_length=24",
        "memory_segments=3, block_size=8",
    )
    refused(lambda: keras_fam.FAMBackbone(stock, block_size=25, memory_segments=0, fam_length=0), "24", "25")


def test_options_that_need_another_model():
    refused(
        lambda: keras_fam.FAMBackbone(stock_backbone("gemma"), 4, 1, 3, random_position_offset=True),
        "random_position_offset",
        "True",
    )
    refused(
        lambda: keras_fam.FAMBackbone(stock_backbone("gemma"), 4, 1, 0, random_state_passing=0.5),
        "random_state_passing=0.5",
        "fam_length=0",
    )
    refused(lambda: setattr(fam_backbone("gpt2"), "random_state_passing", 0.5), "random_state_passing", 0.5)


def test_random_state_passing_outside_its_range():
    for value in (1.5, -0.5, "1"):
        refused(lambda value=value: RandomStatePassing(value), value)
    backbone = fam_backbone("gpt2", random_state_passing=0.5)
    refused(lambda: setattr(backbone, "random_state_passing", 1.5), "random_state_passing", 1.5)
    assert backbone.random_state_passing == 0.5
    refused(lambda: keras_fam.RandomStatePassingSchedule(0.5), "schedule", 0.5)
    callback = keras_fam.RandomStatePassingSchedule(lambda step: 2.0)
    callback.set_model(backbone)
    refused(lambda: callback.on_train_batch_begin(0), "schedule", 2.0)
    assert backbone.random_state_passing == 0.5


# === Backbones and presets ===


def bert():
    return keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=16
    )


def test_unsupported_families():
    words = ("backbone", "GemmaBackbone", "GPT2Backbone", "BertBackbone", "register_family")
    refused(lambda: keras_fam.FAMBackbone(bert(), 4, 1, 3), *words)
    refused(lambda: keras_fam.FAMBackbone("gpt2_base_en", 4, 1, 3), "backbone", "GPT2Backbone", "str")
    refused(lambda: keras_fam.FAMBackbone(None, 4, 1, 3), "backbone", "NoneType")


def test_an_unsupported_preset(tmp_path):
    bert().save_to_preset(str(tmp_path / "bert"))
    for cls in (keras_fam.FAMBackbone, keras_fam.FAMCausalLM):
        refused(
            lambda cls=cls: cls.from_preset(str(tmp_path / "bert")), "BertBackbone", "GemmaBackbone", "GPT2Backbone"
        )


def test_an_already_converted_backbone():
    backbone = fam_backbone("gpt2")
    refused(lambda: keras_fam.FAMBackbone(backbone, 8, 1, 3), "backbone", "already a FAMBackbone")
    refused(lambda: keras_fam.FAMCausalLM(stock_backbone("gpt2")), "backbone", "FAMBackbone", "GPT2Backbone")
    refused(lambda: keras_fam.FAMCausalLM(backbone, block_size=8), "backbone", "block_size=8")


def test_arguments_that_do_not_exist(stock_preset):
    """Keras would ignore a slip of the pen."""
    sizes = dict(block_size=4, memory_segments=1, fam_length=3)
    backbone = keras_fam.FAMBackbone(stock_backbone("gpt2"), **sizes)
    refused(lambda: keras_fam.FAMBackbone(stock_backbone("gpt2"), **sizes, fam_lenght=3), "fam_length", "fam_lenght=3")
    refused(lambda: keras_fam.FAMCausalLM(backbone, preprocesor=None), "preprocessor", "preprocesor=None")
    for cls in (keras_fam.FAMBackbone, keras_fam.FAMCausalLM):
        call = functools.partial(cls.from_preset, stock_preset, **sizes, fam_lenght=3)
        refused(call, "fam_length", "fam_lenght=3")


@pytest.fixture(scope="module")
def stock_preset(tmp_path_factory):
    return gpt2_preset(tmp_path_factory.mktemp("presets") / "gpt2")


@pytest.fixture(scope="module")
def saved_preset(tmp_path_factory, lm):
    path = str(tmp_path_factory.mktemp("presets") / "fam")
    lm.save_to_preset(path)
    return path


@pytest.mark.parametrize(
    "name, saved, value",
    [
        ("block_size", 4, 8),
        ("memory_segments", 1, 0),
        ("fam_length", 3, 0),
        ("sink_token_id", None, 1),
        ("memory_gate", None, -2.0),
    ],
)
@pytest.mark.parametrize("cls", [keras_fam.FAMBackbone, keras_fam.FAMCausalLM])
def test_arguments_that_disagree_with_a_saved_preset(saved_preset, cls, name, saved, value):
    refused(lambda: cls.from_preset(saved_preset, **{name: value}), name, repr(saved), repr(value))


@pytest.mark.parametrize(
    "options",
    [
        dict(random_state_passing=0.5),
        dict(random_position_offset=True, stop_gradient_memory=True),
        dict(truncate_bptt=2, memory_span=4.0),
        dict(stateful_batch_size=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [keras_fam.FAMBackbone, keras_fam.FAMCausalLM])
def test_options_of_a_run_may_differ_from_a_saved_preset_s(saved_preset, lm, cls, options):
    loaded = cls.from_preset(
        saved_preset, **({"preprocessor": None} if cls is keras_fam.FAMCausalLM else {}), **options
    )
    backbone = getattr(loaded, "backbone", loaded)
    config = backbone.get_config()
    assert all(config[name] == value for name, value in options.items())
    weights = weights_by_path(backbone)
    assert all(np.array_equal(weights[path], value) for path, value in weights_by_path(lm.backbone).items())


def test_a_preset_that_is_not_there(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing_here"):
        keras_fam.FAMCausalLM.from_preset(str(tmp_path / "nothing_here"))
