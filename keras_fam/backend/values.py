"""The values of a model's variables while Keras runs it over data."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import keras
from keras import ops

P = ParamSpec("P")
R = TypeVar("R")


def keeps_values(method: Callable[P, R]) -> Callable[P, R]:
    """`fit`, `evaluate` or `predict` of a model, which keeps its values if the data or a check raises an error."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _values_outlive_errors(args[0]):
            return method(*args, **kwargs)

    return run


@contextlib.contextmanager
def _values_outlive_errors(model: Any) -> Iterator[None]:
    """Inside, an error leaves a model with its values.

    On jax Keras takes the values out of the variables while `fit`, `evaluate` and `predict` run. It puts them back at
    the end, but not after an error: the model could not be used again. Values of the last complete step are put back;
    before the first step, those from before.

    Args:
        model: `keras.Model`.
    """
    if keras.config.backend() != "jax":
        yield
        return
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else ())]
    before = [(variable, variable._value) for variable in variables]
    try:
        yield
    except BaseException:  # An interrupt, too.
        model.jax_state_sync()
        for variable, value in before:
            if variable._value is None and not value.is_deleted():
                variable.assign(value)
        raise


class KeepsValues:
    """The methods of a `keras.Model` that take data, each of which keeps the model's values."""

    fit, evaluate, predict = map(keeps_values, (keras.Model.fit, keras.Model.evaluate, keras.Model.predict))


@contextlib.contextmanager
def put_back(variables: list[keras.Variable]) -> Iterator[None]:
    """Inside, `variables` may change. At the end they have the values from before, on every device its own."""
    kept = [(place, ops.copy(value)) for variable in variables for place, value in _places(variable)]
    try:
        yield
    finally:
        for place, value in kept:
            place.assign(value)


def _places(variable):
    """`(place, value)` of a variable: itself, or under a `tf.distribute` strategy a variable for each device."""
    value = variable.value
    if keras.config.backend() == "tensorflow" and hasattr(value, "values"):
        return [(place, place) for place in value.values]
    return [(variable, value)]
