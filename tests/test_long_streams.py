"""Streams of 100,000 blocks: bounded, a block turns F as far at the end as at the start, in every dtype of a model."""

import keras
import numpy as np
import pytest
from helpers.models import VOCABULARY, fam_backbone, numpy

BLOCK = 2


def build(dtype, span):
    stock = dict(num_layers=1, dtype=dtype)
    return fam_backbone("gpt2", BLOCK, memory_segments=0, fam_length=2, stock=stock, memory_span=span)


def read(backbone, blocks, rows=1):
    """Streams random tokens, and looks at F behind every block.

    Returns:
        `(turns [blocks - 1, rows, N], changed [blocks - 1], fam [rows, N, d])`: how far a block turned each vector's
        direction, which is all that is read of it; the smallest share of a direction's values that a block changed, in
        the model's dtype; and F at the end.
    """
    rng, state = np.random.default_rng(0), backbone.initial_state(rows)
    dtype = keras.backend.standardize_dtype(backbone.compute_dtype)
    turns, changed, before = [], [], None
    for _ in range(blocks):
        _, state = backbone.stream(rng.integers(0, VOCABULARY, (rows, BLOCK)).astype("int32"), state)
        fam = numpy(state.layers[0].fam)
        assert fam.dtype == "float32"
        direction = fam / np.linalg.norm(fam, axis=-1, keepdims=True)
        rounded = direction.astype(dtype)
        if before is not None:
            turns.append(np.linalg.norm(direction - before[0], axis=-1))
            changed.append((rounded != before[1]).mean(axis=-1).min())
        before = direction, rounded
    return np.array(turns), np.array(changed), fam


def test_the_plain_sum_ceases_to_turn():
    """What holds below does not hold by itself: in the plain sum, blocks soon change nothing that bfloat16 can tell."""
    turns, changed, _ = read(build("bfloat16", None), 1000)
    assert turns[-100:].mean() < 0.02 * turns[:10].mean() and changed.min() == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_updates_never_round_to_nothing(dtype, capsys):
    """Some 3 minutes for each dtype with jax. A block takes tensorflow 2 to 3 times as long, and torch 8 times."""
    turns, changed, fam = read(build(dtype, 8.0), 100_000)
    first, last = turns[100:2100].mean(axis=(0, 1)), turns[-2000:].mean(axis=(0, 1))
    with capsys.disabled():
        print(f"\n{dtype}: turned by {turns.min():.4f} at least, by {first} at first, {last} at last")
        print(f"share of the values that changed at least {changed.min():.3f}, at last {changed[-2000:].mean():.3f}")
    assert np.isfinite(fam).all()
    assert turns.min() > 1e-3 and changed.min() > 0.1
    np.testing.assert_allclose(last, first, rtol=0.1)
