"""Stateful evaluation: memory goes on from batch to batch as in `fit`, and the state of `fit` stays as it was."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import keras

from keras_fam.arguments import DEFAULT, given
from keras_fam.backend.values import put_back
from keras_fam.training.carried_state import evaluation_carries
from keras_fam.types import Callbacks, Data, MixedIn, Verbosity

P = ParamSpec("P")
R = TypeVar("R")


def from_nothing(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a model that evaluates it, in a carried state of its own that begins with nothing."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _own_state(args[0]):
            return method(*args, **kwargs)

    return run


class CarriesInEvaluation(MixedIn):
    """Steps of the evaluation of a model with `stateful_batch_size`, and with it of the `validation_data` of `fit`.

    Batches with `"document_start"` go on from each other: their rows are `stateful_batch_size`, and their length is a
    multiple of `block_size`. Other batches begin anew, of any size. Each `evaluate` and each `test_on_batch` begins
    with nothing. Training goes on where it stopped.
    """

    @from_nothing
    def test_on_batch(
        self, x: Data, y: Data = None, sample_weight: Data = None, return_dict: bool = DEFAULT, **kwargs: Any
    ) -> Any:
        """Loss and metrics of one batch. See `keras.Model.test_on_batch`.

        Args:
            x: one batch, as in `evaluate`.
            y: the targets of one batch, as in `evaluate`.
            sample_weight: the weights of one batch, as in `evaluate`.
            return_dict: bool. Whether to return a dict.
            **kwargs: what a newer Keras takes.

        Returns:
            float, the loss; a list of loss and metrics if there are metrics; with `return_dict` a dict of name to
            float.

        Raises:
            TypeError, ValueError: as in `evaluate`.
        """
        return super().test_on_batch(x, y, sample_weight, **given(locals(), "return_dict"), **kwargs)

    def test_step(self, *args: Any) -> Any:
        """One step of `evaluate`; see `keras.Model.test_step`.

        Args:
            *args: what Keras gives a step on this backend, the batch at the end.

        Returns:
            What Keras takes from a step on this backend.
        """
        x = keras.utils.unpack_x_y_sample_weight(args[-1])[0]
        goes_on = isinstance(x, dict) and "document_start" in x
        with evaluation_carries.set(True) if goes_on else contextlib.nullcontext():
            return super().test_step(*args)


class CarriesInOwnEvaluation(CarriesInEvaluation):
    """The same, for a model whose `evaluate` is that of `keras.Model`."""

    @from_nothing
    def evaluate(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        verbose: Verbosity = DEFAULT,
        sample_weight: Data = None,
        steps: int | None = DEFAULT,
        callbacks: Callbacks = DEFAULT,
        return_dict: bool = DEFAULT,
        **kwargs: Any,
    ) -> Any:
        """Loss and metrics of a test set; the model stays as it is. See `keras.Model.evaluate`.

        Args:
            x: a dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, or a dataset of batches.
            y: what a loss compares hidden states `[batch, length, hidden_dim]` with; None for a dataset.
            batch_size: int or None, which is 32; None for a dataset.
            verbose: 0, 1, 2 or `"auto"`: nothing, a progress bar, a line, or what suits.
            sample_weight: array or None, what each sample's or place's loss weighs.
            steps: int or None, batches to read; None is all there are.
            callbacks: list of `keras.callbacks.Callback`.
            return_dict: bool. Whether to return a dict.
            **kwargs: what a newer Keras takes.

        Returns:
            float, the loss; a list of loss and metrics if there are metrics; with `return_dict` a dict of name to
            float.

        Raises:
            TypeError, ValueError: token ids or a mask of a wrong dtype, shape or value; what Keras refuses.
        """
        kwargs = given(locals(), "verbose", "steps", "callbacks", "return_dict") | kwargs
        return super().evaluate(x, y, batch_size, sample_weight=sample_weight, **kwargs)


@contextlib.contextmanager
def _own_state(model: Any) -> Iterator[None]:
    """Inside, carried state begins with nothing; at the end it is what it was before."""
    backbone = getattr(model, "backbone", model)
    if backbone.carried_state is None:
        yield
        return
    layers = (each for layer in backbone.transformer_layers for each in layer.carried_state)
    with put_back([*backbone.carried_state.non_trainable_variables, *layers]):
        backbone.carried_state.restart()
        yield
