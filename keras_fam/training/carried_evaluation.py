"""Stateful evaluation: memory goes on from batch to batch as in `fit`, and the state of `fit` stays as it was."""

import contextlib

import keras

from keras_fam.backend.values import put_back
from keras_fam.training.carried_state import evaluation_carries


class CarriesInEvaluation:
    """`evaluate` of a model with `stateful_batch_size`, and with it the `validation_data` of `fit`.

    Batches with `"document_start"` go on from each other: their rows are `stateful_batch_size`, and their length is a
    multiple of `block_size`. Other batches begin anew, of any size. Each `evaluate` and each `test_on_batch` begins
    with nothing. Training goes on where it stopped.
    """

    def evaluate(self, *args, **kwargs):
        with _own_state(self):
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        with _own_state(self):
            return super().test_on_batch(*args, **kwargs)

    def test_step(self, *args):
        x = keras.utils.unpack_x_y_sample_weight(args[-1])[0]
        goes_on = isinstance(x, dict) and "document_start" in x
        with evaluation_carries.set(True) if goes_on else contextlib.nullcontext():
            return super().test_step(*args)


@contextlib.contextmanager
def _own_state(model):
    """Inside, carried state begins with nothing; at the end it is what it was before."""
    backbone = getattr(model, "backbone", model)
    if backbone.carried_state is None:
        yield
        return
    layers = (each for layer in backbone.transformer_layers for each in layer.carried_state)
    with put_back([*backbone.carried_state.non_trainable_variables, *layers]):
        backbone.carried_state.restart()
        yield
