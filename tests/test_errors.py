"""Bad input: refused before any compute, by an error that names the argument, and with nothing changed."""

import keras
import keras_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from presets import gpt2_preset
from utils import FAMILIES, VOCABULARY, fam_backbone, inputs, numpy, stock_backbone, token_ids, weights_by_path

import keras_fam
from keras_fam.layers.state_passing import RandomStatePassing

BLOCK = dict(num_query_heads=4, num_key_value_heads=2, head_dim=6, intermediate_dim=12, block_size=4)


def refused(call, *words, error=(ValueError, TypeError)):
    """Asserts that `call()` raises a ValueError or TypeError that says `words` and what it received."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in (*words, "Received"):
        assert str(word) in message, message


def snapshot(model):
    """All that a refused call must leave as it was: values, dtypes and trainability, by path."""
    return {v.path: (numpy(v).tobytes(), v.dtype, v.trainable) for v in model.variables}


@pytest.fixture(scope="module")
def lm():
    return keras_fam.FAMCausalLM(fam_backbone("gpt2"))


@pytest.fixture
def unchanged(lm):
    """Holds that the shared model is, after the test, what it was before."""
    before = snapshot(lm)
    yield
    assert snapshot(lm) == before


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
        call = lambda cls=cls: cls.from_preset(stock_preset, **sizes, fam_lenght=3)  # noqa: E731
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
        ("random_state_passing", 0.0, 0.5),
        ("random_position_offset", False, True),
        ("stop_gradient_memory", False, True),
        ("truncate_bptt", None, 2),
    ],
)
@pytest.mark.parametrize("cls", [keras_fam.FAMBackbone, keras_fam.FAMCausalLM])
def test_arguments_that_disagree_with_a_saved_preset(saved_preset, cls, name, saved, value):
    refused(lambda: cls.from_preset(saved_preset, **{name: value}), name, repr(saved), repr(value))


def test_a_preset_that_is_not_there(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing_here"):
        keras_fam.FAMCausalLM.from_preset(str(tmp_path / "nothing_here"))


# === Token ids and masks ===

BAD_TOKENS = {
    "rank 1": ([1, 2, 3], ("rank 2", "(3,)")),
    "rank 3": (np.ones((1, 2, 3), "int32"), ("rank 2", "(1, 2, 3)")),
    "a number": (3, ("rank 2", "()")),
    "ragged": ([[1, 2], [3]], ("rank 2",)),
    "floats": ([[1.0, 2.0]], ("integers", "float")),
    "bools": ([[True, False]], ("integers", "bool")),
    "words": ([["the", "key"]], ("integers",)),
    "over the vocabulary": ([[1, VOCABULARY]], (f"0 to {VOCABULARY - 1}", VOCABULARY)),
    "negative": ([[1, -1]], (f"0 to {VOCABULARY - 1}", -1)),
}


def as_inputs(ids):
    """The dict of a model call, whatever the ids are."""
    return {"token_ids": ids, "padding_mask": ids}


@pytest.mark.parametrize("kind", BAD_TOKENS)
@pytest.mark.usefixtures("unchanged")
def test_token_ids(lm, kind):
    ids, words = BAD_TOKENS[kind]
    state = lm.initial_state(1)
    refused(lambda: lm.stream(ids, state), "token_ids", *words)
    refused(lambda: lm.backbone.stream({"token_ids": ids}, state), "token_ids", *words)
    refused(lambda: lm(as_inputs(ids)), "token_ids", *words)
    refused(lambda: lm.backbone(as_inputs(ids)), "token_ids", *words)
    refused(lambda: lm.generate(as_inputs(ids)), "token_ids", *words)
    refused(lambda: lm.score(ids), "token_ids", *words)


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (6,), (2, 6, 1)], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_a_mask_of_another_shape(lm, shape):
    chunk = inputs(token_ids(2, 6), np.ones(shape, "int32"))
    words = ("padding_mask", (2, 6), shape)
    refused(lambda: lm.stream(chunk, lm.initial_state(2)), *words)
    refused(lambda: lm(chunk), *words)
    refused(lambda: lm.backbone(chunk), *words)
    refused(lambda: lm.generate(chunk), *words)
    refused(lambda: lm.score(**chunk), *words)


@pytest.mark.usefixtures("unchanged")
def test_dicts_with_a_key_missing(lm):
    ids = token_ids(1, 6)
    refused(lambda: lm.stream({"ids": ids}, lm.initial_state(1)), "token_ids", "['ids']")
    refused(lambda: lm.generate({"token_ids": ids}), "padding_mask", "['token_ids']")


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (0, 0)], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_an_empty_chunk(lm, shape):
    refused(lambda: lm.stream(np.ones(shape, "int32"), lm.initial_state(1)), "token_ids", "empty", shape)
    refused(lambda: lm.stream([[]], lm.initial_state(1)), "token_ids", "empty")


@pytest.mark.usefixtures("unchanged")
def test_score(lm):
    ids = token_ids(2, 6)
    refused(lambda: lm.score(ids, scoring_mode="perplexity"), "scoring_mode", "perplexity")
    refused(lambda: lm.score(ids, scoring_mode="loss"), "target_ids", None)
    refused(lambda: lm.score(ids, scoring_mode="loss", target_ids=ids[:, 1:]), "target_ids", (2, 6), (2, 5))
    refused(lambda: lm.score(ids, scoring_mode="loss", target_ids=ids + VOCABULARY), "target_ids", VOCABULARY - 1)


# === States ===


def replace_layer(state, **changes):
    return state._replace(layers=(state.layers[0]._replace(**changes), *state.layers[1:]))


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, "1", None])
def test_batch_size(lm, batch_size):
    refused(lambda: lm.initial_state(batch_size), "batch_size", batch_size)


@pytest.mark.parametrize("change", [{"block_size": 6}, {"memory_segments": 0}, {"fam_length": 2}], ids=str)
def test_a_state_of_another_memory(lm, change):
    other = fam_backbone("gpt2", **change)
    refused(lambda: lm.stream(token_ids(1, 3), other.initial_state(1)), "state", "another model", "expected", "shape")


@pytest.mark.parametrize("family, change", [("gpt2", {"num_layers": 1}), ("gpt2", {"hidden_dim": 8}), ("gemma", {})])
def test_a_state_of_another_model(lm, family, change):
    other = fam_backbone(family, stock=change)
    refused(lambda: lm.stream(token_ids(1, 3), other.initial_state(1)), "state", "another model", "expected")


@pytest.mark.usefixtures("unchanged")
def test_a_state_of_another_batch_size_or_dtype(lm):
    state = lm.initial_state(2)
    before = [x.tobytes() for x in keras.tree.flatten(numpy(state))]
    refused(lambda: lm.stream(token_ids(3, 3), state), "state", "batch size", 3, 2)
    half = keras.ops.cast(state.layers[0].key, "bfloat16")
    refused(lambda: lm.stream(token_ids(2, 3), replace_layer(state, key=half)), "layers/0/key", "float32", "bfloat16")
    position = keras.ops.cast(state.position, "float32")
    refused(lambda: lm.stream(token_ids(2, 3), state._replace(position=position)), "position", "int32", "float32")
    assert [x.tobytes() for x in keras.tree.flatten(numpy(state))] == before


@pytest.mark.parametrize("state", [None, 0, "state.npz", (), {}, (1, 2, 3, 4)], ids=repr)
def test_no_state_at_all(lm, state, tmp_path):
    refused(lambda: lm.stream(token_ids(1, 3), state), "state", "StreamState", type(state).__name__)
    refused(lambda: keras_fam.save_state(tmp_path / "state.npz", state), "state", "StreamState", type(state).__name__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"layers": None}, {"layers": (1, 2)}, {"valid": None}, {"position": 3}], ids=str)
def test_a_state_with_parts_missing(lm, change, tmp_path):
    state = lm.initial_state(1)._replace(**change)
    refused(lambda: lm.stream(token_ids(1, 3), state), "state")
    refused(lambda: keras_fam.save_state(tmp_path / "state.npz", state), "state")
    assert list(tmp_path.iterdir()) == []


# === State files ===


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    """The bytes of a small state file."""
    backbone = fam_backbone("gpt2", block_size=1, memory_segments=0, fam_length=1, stock={"num_layers": 1})
    path = tmp_path_factory.mktemp("state") / "state.npz"
    keras_fam.save_state(path, backbone.initial_state(1))
    return path.read_bytes()


def loads(path, content):
    path.write_bytes(content)
    try:
        return keras_fam.load_state(path)
    finally:
        assert path.read_bytes() == content


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`.*nothing.npz"):
        keras_fam.load_state(tmp_path / "nothing.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"no state file", b"\x80\x04N."], ids=repr)
def test_files_that_hold_no_state(tmp_path, content):
    refused(lambda: loads(tmp_path / "state.npz", content), "path", "save_state", "state.npz", error=ValueError)


def test_other_numpy_files_and_folders(tmp_path):
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    np.savez(tmp_path / "header.npz", header=np.frombuffer(b'{"format": "other"}', "uint8"))
    np.savez(tmp_path / "short.npz", header=np.frombuffer(b'{"format": "keras_fam.StreamState/1"}', "uint8"))
    (tmp_path / "folder").mkdir()
    for path in sorted(tmp_path.iterdir()):
        refused(lambda path=path: keras_fam.load_state(path), "path", path.name, error=ValueError)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_truncated_state_files(share, tmp_path_factory, state_file):
    path = tmp_path_factory.getbasetemp() / "truncated.npz"
    content = state_file[: int(share * len(state_file))]
    refused(lambda: loads(path, content), "path", "truncated", error=ValueError)


@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_damaged_state_files(share, flip, tmp_path_factory, state_file):
    """One wrong byte: either it does not matter (a date, say), or it is a ValueError, and never another error."""
    content = bytearray(state_file)
    content[int(share * len(content))] ^= flip
    try:
        state = loads(tmp_path_factory.getbasetemp() / "damaged.npz", bytes(content))
    except ValueError as error:
        assert "`path`" in str(error)
    else:
        assert isinstance(state, keras_fam.StreamState)


# === LoRA ===


@pytest.mark.parametrize("rank", [0, -1, 2.0, "2", None])
@pytest.mark.usefixtures("unchanged")
def test_lora_rank(lm, rank):
    refused(lambda: lm.enable_lora(rank), "rank", rank)


@pytest.mark.parametrize("names", [[], ["query", "keys"], "query", ["layer_norm"], [3]], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_lora_targets(lm, names):
    refused(lambda: lm.enable_lora(2, names), "target_layer_names")


def test_enable_lora_twice():
    for backbone in (fam_backbone("gpt2"), fam_backbone("gemma")):
        backbone.enable_lora(2)
        before = snapshot(backbone)
        refused(lambda backbone=backbone: backbone.enable_lora(2), "enable_lora", "once", "rank 2")
        assert snapshot(backbone) == before


def test_enable_lora_on_a_backbone_that_came_with_it():
    stock = stock_backbone("gpt2")
    stock.enable_lora(2)
    backbone = keras_fam.FAMBackbone(stock, 4, 1, 3)
    before = snapshot(backbone)
    refused(lambda: backbone.enable_lora(2), "enable_lora")
    assert snapshot(backbone) == before


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory):
    backbone = fam_backbone("gpt2")
    backbone.enable_lora(2)
    path = tmp_path_factory.mktemp("lora") / "weights.lora.h5"
    backbone.save_lora_weights(path)
    return path


@pytest.mark.usefixtures("unchanged")
def test_saving_lora_weights(lm, tmp_path):
    refused(lambda: lm.save_lora_weights(tmp_path / "weights.lora.h5"), "enable_lora")
    backbone = fam_backbone("gpt2")
    backbone.enable_lora(2)
    refused(lambda: backbone.save_lora_weights(tmp_path / "weights.h5"), "filepath", ".lora.h5", "weights.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchanged")
def test_lora_files_that_are_none(lm, lora_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="`filepath`.*nothing.lora.h5"):
        lm.load_lora_weights(tmp_path / "nothing.lora.h5")
    whole = lora_file.read_bytes()
    for content in (b"", b"no LoRA file", whole[: len(whole) // 2], whole[:-1]):
        path = tmp_path / "bad.lora.h5"
        path.write_bytes(content)
        refused(lambda path=path: lm.load_lora_weights(path), "filepath", "bad.lora.h5", error=ValueError)
        assert path.read_bytes() == content
    lm.backbone.save_weights(tmp_path / "other.weights.h5")
    refused(lambda: lm.load_lora_weights(tmp_path / "other.weights.h5"), "filepath", "other", error=ValueError)


@pytest.mark.parametrize(
    "family, options",
    [("gpt2", {"fam_length": 2}), ("gpt2", {"stock": {"num_layers": 1}}), ("gpt2", {"fam_length": 0}), ("gemma", {})],
)
def test_lora_weights_of_another_model(lora_file, family, options):
    backbone = fam_backbone(family, **options)
    before = snapshot(backbone)
    refused(lambda: backbone.load_lora_weights(lora_file), "filepath", lora_file, error=ValueError)
    assert snapshot(backbone) == before and not backbone.lora_enabled


def test_lora_weights_of_another_rank_or_target(lora_file):
    for rank, names in ((3, None), (2, ["query"])):
        backbone = fam_backbone("gpt2")
        backbone.enable_lora(rank, names)
        before = weights_by_path(backbone)
        refused(lambda backbone=backbone: backbone.load_lora_weights(lora_file), "filepath", "rank 2", error=ValueError)
        assert all(np.array_equal(before[path], value) for path, value in weights_by_path(backbone).items())


def test_every_family_is_named():
    """The table of supported families that messages and this file go by."""
    assert {cls.__name__ for cls, _ in FAMILIES.values()} == {"GemmaBackbone", "GPT2Backbone"}
