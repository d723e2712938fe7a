"""Reports of Keras and KerasHub users, tried on models with memory: see `docs/reliability.md`."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, forward, inputs, token_ids, weights_by_path
from helpers.presets import gpt2_preset

import keras_fam

pytestmark = pytest.mark.shared_out

IDS = token_ids(2, 8)
ONE_LAYER = {"num_layers": 1, "dropout": 0.0}


class OwnCausalLM(keras_fam.FAMCausalLM):
    """As a user has it."""

    backbone_cls = None  # KerasHub would take it for all presets with memory, in other tests too.


def language_model(family="gpt2", cls=keras_fam.FAMCausalLM, seed=0, **stock):
    return cls(fam_backbone(family, seed=seed, stock={**ONE_LAYER, **stock}))


def test_a_model_file_in_bfloat16(tmp_path):
    """keras#17069"""
    lm = language_model("gemma", dtype="bfloat16")
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert {v.dtype for v in loaded.weights} == {"bfloat16"}
    before, after = weights_by_path(lm), weights_by_path(loaded)
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)


def test_large_embeddings_in_mixed_float16():
    """keras-hub#2424"""
    lm = language_model("gemma3", dtype="mixed_float16")
    embeddings = lm.backbone.token_embedding.embeddings
    embeddings.assign(3000.0 * embeddings)
    assert np.isfinite(forward(lm, IDS).astype("float32")).all()


def test_a_loss_over_real_tokens():
    """keras#15323"""
    lm, real = language_model(), (np.arange(8)[None] < np.array([[2], [8]])).astype("float32")
    logits = forward(lm, IDS).astype("float64")
    chosen = np.take_along_axis(logits, IDS[..., None], axis=-1)[..., 0]
    nats = np.log(np.exp(logits).sum(axis=-1)) - chosen
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    lm.compile("sgd", loss)
    measured = np.ravel(lm.test_on_batch(inputs(IDS), IDS, real))[0]
    assert measured == pytest.approx((nats * real).sum() / real.sum(), rel=1e-4)


def test_weights_load_into_a_subclass(tmp_path):
    """keras#20322"""
    lm, own = language_model(), language_model(cls=OwnCausalLM, seed=5)
    lm.save_weights(tmp_path / "a.weights.h5")
    own.load_weights(tmp_path / "a.weights.h5")
    before, after = weights_by_path(lm), weights_by_path(own)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_another_table_of_positions_is_refused(tmp_path):
    """keras-hub#1061"""
    preset, sizes = gpt2_preset(tmp_path / "stock"), dict(block_size=4, memory_segments=1, fam_length=2)
    with pytest.raises(ValueError, match="position_embedding"):
        keras_fam.FAMBackbone.from_preset(preset, max_sequence_length=12, **sizes)
