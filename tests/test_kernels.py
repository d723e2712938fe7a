"""Every way to compute attention gives what plain float64 arithmetic gives, and has the plain way's gradient."""

import keras
import numpy as np
import pytest
from helpers.gradients import loss_and_gradients
from helpers.models import fam_backbone, forward, inputs, numpy, token_ids
from keras import ops

from keras_fam.backend import kernels
from keras_fam.backend.kernels import Scoring
from keras_fam.memory import sequence

# queries, keys, query heads, key heads; the last are enough scores for jax's CPU to take one head at a time.
SHAPES = [(1, 5, 4, 4), (6, 9, 4, 2), (7, 9, 3, 1), (256, 520, 4, 2)]


def arrays(queries, keys, heads, key_heads, batch=2, head_dim=6):
    rng = np.random.default_rng(queries)
    query = rng.standard_normal((batch, queries, heads, head_dim))
    key, value = rng.standard_normal((2, batch, keys, key_heads, head_dim))
    mask = rng.random((batch, queries, keys)) < 0.5
    mask[1, 0] = False  # a query that sees nothing
    return query, key, value, mask


def plain(query, key, value, mask, soft_cap, bias=0.0):
    groups = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, groups, axis=2) for x in (key, value))
    scores = 0.3 * np.einsum("bthc,bshc->bhts", query, key)
    if soft_cap is not None:
        scores = np.tanh(scores / soft_cap) * soft_cap
    scores = scores + bias
    weights = np.where(mask[:, None], np.exp(scores - scores.max()), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhts,bshc->bthc", weights / np.where(total, total, 1.0), value)


def attend(query, key, value, mask, soft_cap, dtype="float32", bias=None):
    tensors = [ops.convert_to_tensor(x, dtype) for x in (query, key, value)]
    bias = None if bias is None else ops.convert_to_tensor(bias, "float32")
    made = kernels.attend(*tensors, ops.convert_to_tensor(mask), Scoring(0.3, soft_cap), key_bias=bias)
    return numpy(ops.cast(made, "float32"))


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attend_is_plain_attention(shape, soft_cap):
    query, key, value, mask = arrays(*shape)
    made = attend(query, key, value, mask, soft_cap)
    np.testing.assert_allclose(made, plain(query, key, value, mask, soft_cap), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(made[1, 0], 0.0)
    # Values of another size than keys.
    made = attend(query, key, value[..., :4], mask, soft_cap)
    np.testing.assert_allclose(made, plain(query, key, value[..., :4], mask, soft_cap), rtol=1e-5, atol=1e-5)
    # A gate: something added to the scores of some keys.
    bias = np.random.default_rng(2).standard_normal(key.shape[1])
    made = attend(query, key, value, mask, soft_cap, bias=bias)
    np.testing.assert_allclose(made, plain(query, key, value, mask, soft_cap, bias), rtol=1e-5, atol=1e-5)
    # One mask for all rows.
    made = attend(query, key, value, mask[:1], soft_cap)
    np.testing.assert_allclose(made, plain(query, key, value, mask[[0, 0]], soft_cap), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 4e-2), ("float16", 5e-3)])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_half_precision(shape, dtype, tolerance):
    query, key, value, mask = arrays(*shape)
    made = attend(query, key, value, mask, None, dtype)
    np.testing.assert_allclose(made, plain(query, key, value, mask, None), atol=tolerance)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("fam_length", [0, 3])
@pytest.mark.parametrize("heads, key_heads", [(4, 4), (4, 2), (3, 1)])
def test_one_token_turned_for_every_block_is_plain_attention(heads, key_heads, fam_length, soft_cap):
    blocks, size = 3, 4
    query, key, value, mask = arrays(1, blocks * size + fam_length, heads, key_heads)
    turns = np.random.default_rng(1).standard_normal((blocks + 1, 6, 6)) / 6**0.5  # of each block and of FAM
    of_slot = np.repeat(turns, [size] * blocks + [fam_length], axis=0)
    turned_key = np.einsum("sxy,bsky->bskx", of_slot, key)
    queries, *parts = (
        ops.convert_to_tensor(x, "float32")
        for x in (
            np.einsum("bthx,rxy->brhy", query, turns),
            *(x[:, part] for part in (slice(blocks * size), slice(blocks * size, None)) for x in (key, value)),
        )
    )
    bias = np.random.default_rng(2).standard_normal(mask.shape[2])
    scoring, bias_tensor = Scoring(0.3, soft_cap), ops.convert_to_tensor(bias, "float32")
    made = kernels.attend_once(queries, parts[:2], parts[2:], ops.convert_to_tensor(mask), scoring, bias_tensor)
    np.testing.assert_allclose(numpy(made), plain(query, turned_key, value, mask, soft_cap, bias), rtol=1e-5, atol=1e-5)
    made = kernels.attend_once(queries, parts[:2], parts[2:], ops.convert_to_tensor(mask), scoring)
    np.testing.assert_allclose(numpy(made), plain(query, turned_key, value, mask, soft_cap), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(numpy(made)[1], 0.0)


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_models_do_not_see_which_way_was_taken(family, monkeypatch):
    """The fastest way on this backend against the plain one: outputs and gradients."""
    ids = token_ids(2, 22)
    mask = np.ones_like(ids)
    mask[0, :6] = 0

    def run():
        backbone = fam_backbone(family, memory_segments=2, stock={"num_query_heads": 4, "num_key_value_heads": 2})
        _, gradients = loss_and_gradients(backbone, inputs(ids, mask), lambda x: ops.mean(ops.square(x)))
        return forward(backbone, ids, mask), gradients

    monkeypatch.setattr(kernels, "SCORES_FOR_SINGLE_HEADS", 0)  # jax: one head at a time, however few scores
    monkeypatch.setattr(sequence, "TOKENS_AT_ONCE", 5)  # jax, torch: in parts, one padded
    fast, fast_gradients = run()

    def attend_plainly(query, key, value, mask, scoring, seed=None, key_bias=None):
        scores, bias = kernels.attention_scores(query, key, scoring), kernels._bias(mask, "float32", key_bias)
        return kernels._zeros_where_blind(kernels._weigh(scores, value, bias, scoring, seed), mask)

    monkeypatch.setattr("keras_fam.memory.parts.attend", attend_plainly)
    monkeypatch.setattr(sequence, "TOKENS_AT_ONCE", 4096)
    slow, slow_gradients = run()
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)
    assert fast_gradients.keys() == slow_gradients.keys()
    for path, gradient in fast_gradients.items():
        np.testing.assert_allclose(gradient, slow_gradients[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("fam_length", [0, 3])
def test_bfloat16_keeps_to_float32(fam_length):
    """Places stay exact however long the text: the error does not grow with them.

    What FAM hands on is rounded in every block, so with it the error may grow from block to block; it stays small.
    """
    ids = token_ids(1, 400)
    expected = forward(fam_backbone("gemma", block_size=8, fam_length=fam_length), ids)
    policy = {"dtype": keras.dtype_policies.DTypePolicy("mixed_bfloat16")}
    made = forward(fam_backbone("gemma", block_size=8, fam_length=fam_length, stock=policy), ids)
    error = np.abs(made.astype("float32") - expected).mean(axis=(0, 2))
    assert error[:80].mean() < 0.02 and error[-80:].mean() < 0.05
    if not fam_length:
        assert error[-80:].mean() < 1.5 * error[:80].mean()
