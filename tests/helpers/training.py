"""One small training run, the same wherever it is done: on one device, on many, in several processes."""

import keras
import numpy as np

import keras_fam
from helpers.models import fam_backbone, inputs, numpy, token_ids

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STEPS, ROWS = 3, 8
# Rows that begin a document, step by step.
STARTS = np.array([[1] * 8, [0, 1, 0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0, 0, 0]], "int32")


def train_forward(model, ids, starts, mask=None):
    """The model's output in training, its state kept; one compiled call on jax."""
    x = {**inputs(ids, mask), "document_start": np.asarray(starts, "int32")}
    if keras.config.backend() != "jax":
        return numpy(model(x, training=True))
    import jax

    @jax.jit
    def call(trainable, others, x):
        return model.stateless_call(trainable, others, x, training=True)

    values = [[v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)]
    outputs, others = call(*values, x)
    for variable, value in zip(model.non_trainable_variables, others):
        variable.assign(value)
    return np.asarray(outputs)


def language_model(family, rows, lora):
    """A model whose steps go on from each other, without dropout; `lora` with random values in every LoRA kernel."""
    stock = {"dropout": 0.0, "num_layers": 1}
    lm = keras_fam.FAMCausalLM(fam_backbone(family, stateful_batch_size=rows, stock=stock))
    if lora:
        lm.enable_lora(2)
        for index, variable in enumerate(v for v in lm.trainable_variables if "lora" in v.path):
            variable.assign(0.2 * np.random.default_rng(index).standard_normal(variable.shape))
    return lm


def batches():
    """`(inputs, targets)` of all steps, one after the other: arrays `[STEPS * ROWS, 8]`."""
    ids = token_ids(STEPS * ROWS, 9)
    return {**inputs(ids[:, :-1]), "document_start": STARTS.ravel()}, ids[:, 1:]


def fit(lm):
    """The loss of `fit`, and what it left in the variables."""
    x, y = batches()
    history = lm.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0)
    return {"loss": np.array(history.history["loss"]), **left_by_training(lm)}


def left_by_training(lm, rows=slice(None)):
    """What training changes, by path; of carried state, `rows`."""
    left = {v.path: numpy(v) for v in lm.trainable_variables}
    carried = [v for v in lm.non_trainable_variables if "carried" in v.path]
    return {**left, **{v.path: numpy(v)[rows] for v in carried}}
