"""Layers with a sliding window of their own keep and attend to no more than the window sees, exactly."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, forward, numpy, reference, token_ids
from keras import ops

from keras_fam.memory.core import Core
from keras_fam.memory.options import MemoryOptions
from keras_fam.memory.state import StreamState

pytestmark = pytest.mark.shared_out

TOLERANCE = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "window, block_size, segments",
    [(None, 4, 3), (1, 4, 0), (2, 4, 1), (5, 4, 1), (6, 4, 2), (9, 4, 2), (10, 4, 3), (100, 4, 3), (4, 1, 3)],
)
def test_segments_of_a_window(window, block_size, segments):
    """min(m, ceil((w - 1) / B)) with m = 3."""

    class Parts:
        sliding_window = window

    assert Core(Parts(), MemoryOptions(block_size, 3)).segments == segments


@pytest.mark.parametrize(
    "family, window", [*(("gemma2", window) for window in (1, 4, 5, 6, 9, 13)), ("mistral", 5), ("mistral", 6)]
)
def test_windows_at_the_edges_of_blocks(family, window):
    """Whole and streamed, over several turns of rings of different lengths."""
    stock = {"sliding_window" if family == "mistral" else "sliding_window_size": window}
    backbone = fam_backbone(family, block_size=4, memory_segments=3, fam_length=2, stock=stock)
    assert backbone.transformer_layers[0].ring_slots == 4 * (1 + min(3, -(-(window - 1) // 4)))
    ids = token_ids(2, 37)
    mask = np.ones_like(ids)
    mask[1, 6:15] = 0
    expected, _ = reference(backbone, ids, mask)
    real = mask > 0
    np.testing.assert_allclose(forward(backbone, ids, mask)[real], expected[real], **TOLERANCE)
    state, parts = backbone.initial_state(2), []
    for start in range(0, 37, 7):
        chunk = {"token_ids": ids[:, start : start + 7], "padding_mask": mask[:, start : start + 7]}
        hidden, state = backbone.stream(chunk, state)
        parts.append(numpy(hidden))
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[real], expected[real], **TOLERANCE)


@pytest.mark.parametrize("family, stock", [
    ("gemma3", dict(num_layers=7, sliding_window_size=6)),
    ("qwen", dict(use_sliding_window_attention=True, sliding_window_size=6)),
    ("qwen3", dict(sliding_window_size=6)),
])  # fmt: skip
def test_windows_that_stock_forgets_and_global_layers(family, stock):
    """Gemma 3's sixth layer is global, with a wavelength of its own. Qwen's fused attention forgets its window."""
    backbone = fam_backbone(family, block_size=4, memory_segments=3, fam_length=2, stock=stock)
    ids = token_ids(1, 21)
    expected, _ = reference(backbone, ids)
    np.testing.assert_allclose(forward(backbone, ids), expected, rtol=3e-5, atol=3e-5)
    state = backbone.initial_state(1)
    rings = [layer.key.shape[1] for layer in state.layers]
    assert rings == ([12] * 5 + [16, 12] if family == "gemma3" else [12] * 2)
    first, state = backbone.stream(ids[:, :9], state)
    second, _ = backbone.stream(ids[:, 9:], state)
    made = np.concatenate([numpy(first), numpy(second)], axis=1)
    np.testing.assert_allclose(made, expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("length", [3, 9, 22, 30])
def test_states_with_long_rings_are_taken_and_shortened(length):
    """States that an earlier version saved hold all m segments in every layer, and F in the compute dtype."""
    backbone = fam_backbone("gemma2", block_size=4, memory_segments=3, fam_length=2)
    ids = token_ids(2, length + 9)
    state = backbone.initial_state(2)
    _, state = backbone.stream(ids[:, :length], state)
    expected, _ = backbone.stream(ids[:, length:], state)

    ring = backbone.options.slots
    position = int(numpy(state.position)[0])

    def lengthened(short):
        """The same keys in a ring of m+1 blocks; what the window does not see is rubbish."""
        blocks = short.shape[1] // 4
        old, long = numpy(short), np.full((2, ring, *short.shape[2:]), 7.0, "float32")
        for age in range(blocks):
            block = position // 4 - age
            long[:, block % 4 * 4 :][:, :4] = old[:, block % blocks * 4 :][:, :4]
        return ops.convert_to_tensor(long)

    layers = tuple(layer._replace(key=lengthened(layer.key), value=lengthened(layer.value)) for layer in state.layers)
    made, _ = backbone.stream(ids[:, length:], StreamState(layers, *state[1:]))
    np.testing.assert_allclose(numpy(made), numpy(expected), **TOLERANCE)


def test_half_precision_states_of_earlier_versions_are_taken():
    backbone = fam_backbone("gpt2", stock={"dtype": "bfloat16"})
    state = backbone.initial_state(1)
    layers = tuple(layer._replace(fam=ops.cast(layer.fam, "bfloat16")) for layer in state.layers)
    _, after = backbone.stream(token_ids(1, 5), state._replace(layers=layers))
    assert keras.backend.standardize_dtype(after.layers[0].fam.dtype) == "float32"
