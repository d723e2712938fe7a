"""The look inside: attention maps agree with the model and with the reference, pictures hold what they should."""

import keras
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, forward, numpy, token_ids
from keras import ops

import keras_fam
from keras_fam.memory.maps import attention_maps
from keras_fam.memory.sequence import attend_sequence
from keras_fam.memory.state import Beginning
from keras_fam.plots.attention import attention_map
from keras_fam.plots.loss import loss_by_position

pytestmark = pytest.mark.shared_out


@pytest.mark.parametrize(
    "family, fam_length",
    [*((family, 3) for family in FAMILIES), *((family, 0) for family in ("gemma", "gemma2", "gpt2"))],
)
def test_attention_map_rows(family, fam_length):
    backbone = fam_backbone(family, fam_length=fam_length, stock={"dropout": 0.0})
    weights, marks = attention_map(backbone, token_ids(1, 14)[0], layer=1, head=2)
    size, stride = 4, 4 + fam_length
    assert weights.shape == (14 + 4 * fam_length,) * 2 if fam_length else (14, 14)
    assert marks == ([(7 * tau, 7 * tau + 3) for tau in range(4)] if fam_length else [])
    np.testing.assert_allclose(weights[fam_length:].sum(axis=1), 1.0, atol=1e-5)
    assert not weights[:fam_length].any()
    seen = weights > 0
    for tau in range(4):
        own = fam_length + tau * stride
        rows = slice(own, min(own + size, len(weights)))
        block = seen[rows]
        oldest = fam_length + max(0, tau - 1) * stride
        # Nothing after the token, no block but the memory segment, the last FAM alone and whole.
        assert not np.triu(block[:, own : own + size], 1).any()
        assert block[:, own - fam_length : own].all()
        segment = [c for c in range(len(weights)) if oldest <= c < oldest + size]
        others = set(range(len(weights))) - {*segment, *range(own - fam_length, own + size)}
        assert not block[:, sorted(others)].any()
        if family not in ("gemma2", "gemma3", "mistral") and tau:
            assert block[:, segment].all()
    for tau in range(3 if fam_length else 0):
        update = seen[fam_length + tau * stride + size : fam_length + (tau + 1) * stride]
        start = tau * stride
        assert update[:, start : start + fam_length + size].all() and update.sum() == fam_length * (fam_length + size)


@pytest.mark.parametrize("sink_token_id", [None, 3])
@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_attention_map_is_what_the_layer_does(family, sink_token_id):
    """The weights, times values, through the output projection, are the layer's own attention, block after block."""
    backbone = fam_backbone(family, sink_token_id=sink_token_id, stock={"dropout": 0.0, "num_layers": 1})
    blocks, size, fam_length = 3, backbone.block_size, backbone.fam_length
    ids, sinks = token_ids(1, blocks * size), int(sink_token_id is not None)
    layer = backbone.transformer_layers[0]
    parts, start = layer.parts, backbone.start_of_memory()
    hidden = backbone.family.embed(ops.convert_to_tensor(ids), ops.arange(ids.shape[1])[None])
    expected, _ = attend_sequence(layer.core, hidden, Beginning(start["fam"], sink=start.get("sink")))
    beginning = Beginning(start["fam"], sink=start.get("sink"))
    weights, _ = attention_maps(layer.core, hidden, beginning, range(parts.num_query_heads))
    value = numpy(parts.project_key_value(parts.normalize(hidden))[1])[0]
    for tau in range(blocks):
        # The values of FAM that the block sees, the sink's before them, are in the state of a stream that came here.
        state = backbone.initial_state(1)
        state = backbone.stream(ids[:, : tau * size], state)[1] if tau else state
        own = sinks + fam_length + tau * (size + fam_length)
        seen = np.zeros((len(weights[0]), *value.shape[1:]))
        seen[np.r_[0:sinks, own - fam_length : own]] = numpy(state.layers[0].fam_value)[0]
        for past in range(max(0, tau - backbone.memory_segments), tau + 1):
            first = sinks + fam_length + past * (size + fam_length)
            seen[first : first + size] = value[past * size : (past + 1) * size]
        seen = np.repeat(seen, parts.num_query_heads // parts.num_key_value_heads, axis=1)
        attended = [weights[head][own : own + size] @ seen[:, head] for head in range(parts.num_query_heads)]
        made = numpy(parts.output(ops.convert_to_tensor(np.stack(attended, axis=1)[None], "float32")))[0]
        np.testing.assert_allclose(made, numpy(expected)[0, tau * size : (tau + 1) * size], rtol=1e-4, atol=1e-5)


def test_plot_attention_marks_fam():
    figure = keras_fam.plot_attention(fam_backbone("gemma"), token_ids(1, 14), layer=0, head=1)
    axes = figure.axes[0]
    assert axes.images[0].get_array().shape == (26, 26)
    assert len(axes.patches) == 2 * 4
    assert "layer 0, head 1" in axes.get_title()


def test_loss_by_position_and_its_plot():
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma"))
    ids = token_ids(3, 21)
    losses = loss_by_position(lm, ids)
    logits = forward(lm, ids)
    expected = keras.losses.sparse_categorical_crossentropy(ids[:, 1:], logits[:, :-1], from_logits=True)
    np.testing.assert_allclose(losses, numpy(expected), rtol=1e-4, atol=1e-4)
    figure = keras_fam.plot_loss_by_position({"one": lm, "two": lm}, ids, bin_size=5)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["one", "two"]
    np.testing.assert_allclose(lines[0].get_xdata(), [2.5, 7.5, 12.5, 17.5])
    np.testing.assert_allclose(lines[0].get_ydata(), losses.mean(axis=0).reshape(4, 5).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        (dict(layer=2), ValueError, "`layer`.*Received: layer=2"),
        (dict(head=4), ValueError, "`head`.*Received: head=4"),
        (dict(head=0.5), TypeError, "`head`"),
        (dict(tokens=[[1, 2], [3, 4]]), ValueError, "`tokens`.*one text"),
        (dict(tokens=[[1, 50]]), ValueError, "`tokens`.*50"),
    ],
)
def test_plot_attention_refuses(arguments, error, match):
    with pytest.raises(error, match=match):
        keras_fam.plot_attention(fam_backbone("gemma"), **{**dict(tokens=[[1, 2]], layer=0, head=0), **arguments})


def test_plot_loss_by_position_refuses():
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma"))
    with pytest.raises(TypeError, match="FAMBackbone"):
        keras_fam.plot_loss_by_position(lm.backbone, token_ids(1, 5))
    with pytest.raises(ValueError, match="`models`"):
        keras_fam.plot_loss_by_position({}, token_ids(1, 5))
    with pytest.raises(ValueError, match="`bin_size`.*5"):
        keras_fam.plot_loss_by_position(lm, token_ids(1, 5), bin_size=5)
