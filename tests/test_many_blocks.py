"""Texts of more blocks than tensorflow unrolls: the reference's values, and the gradients of the unrolled program."""

import keras
import numpy as np
import pytest
from helpers.gradients import loss_and_gradients
from helpers.models import EVERY_PART, fam_backbone, forward, inputs, reference, token_ids
from keras import ops

from keras_fam.backend import loops

OPTIONS = dict(sink_token_id=1, memory_gate=-1.0, memory_span=2.0, stock={"dropout": 0.0})
LENGTH = 2 * (loops.UNROLLED + 4) + 1  # tokens, in blocks of 2


@pytest.mark.parametrize("family", EVERY_PART)
def test_reference(family):
    backbone = fam_backbone(family, 2, 3, 2, **OPTIONS)
    ids = token_ids(3, LENGTH)
    mask = np.ones_like(ids)
    mask[1, -5:] = 0
    mask[2, 4:7] = 0
    hidden = forward(backbone, ids, mask)
    expected, _ = reference(backbone, ids, mask)
    np.testing.assert_allclose(hidden[mask > 0], expected[mask > 0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="jax always loops, torch never")
@pytest.mark.parametrize("how", ["eager", "graph", "XLA"])
def test_gradients(how, monkeypatch):
    """Of one layer that reads 4 blocks: few enough to be unrolled, and looped over when that is forbidden."""
    options = {**OPTIONS, "stock": {"dropout": 0.0, "num_layers": 1}}
    backbone = fam_backbone("gemma2", 2, 1, 2, truncate_bptt=2, **options)
    ids, mask = token_ids(2, 7), np.ones((2, 7), "int32")
    mask[1, 3:] = 0
    head = ops.convert_to_tensor(np.random.default_rng(2).standard_normal((2, 7, 16)).astype("float32"))

    def gradients(how):
        return loss_and_gradients(backbone, inputs(ids, mask), lambda hidden: ops.mean(hidden * head), True, how)[1]

    unrolled, loop, lengths = gradients("eager"), loops._tensorflow_while, []
    monkeypatch.setattr(loops, "UNROLLED", 0)
    monkeypatch.setattr(loops, "_tensorflow_while", lambda *given: lengths.append(given[-1]) or loop(*given))
    looped = gradients(how)
    assert lengths.count(3) >= 2  # FAM's steps, and the blocks that have a whole segment before them
    assert set(looped) == set(unrolled)
    for path, gradient in unrolled.items():
        np.testing.assert_allclose(looped[path], gradient, rtol=1e-4, atol=1e-6, err_msg=path)
