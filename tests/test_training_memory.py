"""What a training step is said to take: counted exactly where it can be, and near a measured peak where it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.models import GEMMA, fam_backbone, inputs, numpy, token_ids
from helpers.refusals import refused

import keras_fam
from keras_fam.memory.state import bytes_of

HELPER = Path(__file__).parent / "helpers" / "peak_of_a_step.py"
once = pytest.mark.skipif(keras.config.backend() != "torch", reason="shapes alone are counted, on any backend")


def nbytes(variables):
    return sum(numpy(v).nbytes for v in variables)


def test_weights_lora_slots_and_state_are_counted():
    """Against the arrays that there are, before and after the optimizer makes its slots."""
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", stock={"num_layers": 1}, memory_gate=0.0))
    plain = nbytes(lm.variables)
    lm.enable_lora(2)
    lm.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    made = keras_fam.training_memory(lm, 1, 8)
    assert made.weights == plain and made.weights + made.lora == nbytes(lm.variables)
    assert made.gradients == nbytes(lm.trainable_variables)
    assert made.stream == sum(x.nbytes for x in keras.tree.flatten(numpy(lm.initial_state(1))))
    ids = token_ids(1, 9)
    lm.train_on_batch(inputs(ids[:, :-1]), ids[:, 1:])
    after = keras_fam.training_memory(lm, 1, 8)
    assert after.optimizer == nbytes(lm.optimizer.variables)
    assert 0 <= after.optimizer - made.optimizer < 32  # The step's number and the learning rate.
    assert made.total == made.weights + made.lora + 3 * made.gradients + made.activations + made.loss


@once
def test_rematerialization_and_pieces_take_less():
    def said(mode, loss, length=400):
        with keras.RematScope(mode):
            lm = keras_fam.FAMCausalLM(fam_backbone("gemma", stock={"num_layers": 8}))
        lm.compile(loss=loss)
        return keras_fam.training_memory(lm, 2, length)

    whole = said(None, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    less = said("full", keras_fam.ChunkedCrossentropy(piece=10))
    assert less.rematerialized and not whole.rematerialized
    assert less.activations < 0.5 * whole.activations and less.loss < 0.5 * whole.loss
    longer = said("full", keras_fam.ChunkedCrossentropy(piece=10), 800)
    np.testing.assert_allclose(longer.activations, 2 * less.activations)
    assert "layers computed twice" in repr(less) and "2 x 400" in repr(less) and len(repr(less).splitlines()) == 8


@once
def test_a_model_that_is_not_in_memory_is_counted():
    """With a table of 131 million weights, which would take a quarter of a GB."""
    import keras_hub

    with keras.device("meta"):
        large = dict(vocabulary_size=256_000, num_layers=1, hidden_dim=512, intermediate_dim=4096, head_dim=64)
        stock = keras_hub.models.GemmaBackbone(**{**GEMMA, **large}, dtype="bfloat16")
        lm = keras_fam.FAMCausalLM(keras_fam.FAMBackbone(stock, 256, 2, 32))
        lm.enable_lora(8)
    made = keras_fam.training_memory(lm)
    assert all(v.value.device.type == "meta" for v in lm.backbone.trainable_variables)
    assert made.weights + made.lora == bytes_of(lm.variables)
    table = 256_000 * 512 * 2
    assert table < made.weights < 1.1 * table and 0 < made.lora < 0.01 * table


@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="the peak of a step is measured on torch: other backends keep memory for themselves",
)
@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("vocabulary_size", [1000, 60_000])
def test_activations_and_loss_against_a_measured_peak(remat, vocabulary_size):
    options = {"remat": remat, "rank": 8, "length": 4096, "vocabulary_size": vocabulary_size}
    run = subprocess.run(
        [sys.executable, HELPER, json.dumps(options)], capture_output=True, text=True, env=dict(os.environ)
    )
    assert run.returncode == 0, run.stderr
    made = json.loads(run.stdout.splitlines()[-1])
    assert 0.5 < made["measured"] / made["said"] < 2, made


@once
def test_refused():
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1}))
    refused(lambda: keras_fam.training_memory(lm.backbone), "lm", "FAMBackbone")
    for name in ("batch_size", "length"):
        for value in (0, 2.5, "8"):
            refused(lambda name=name, value=value: keras_fam.training_memory(lm, **{name: value}), name, value)
