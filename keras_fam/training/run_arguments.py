"""What `compile`, `fit`, `evaluate` and `predict` take beside data: checked before anything is read or computed."""

from collections.abc import Callable, Collection
from typing import Any

import keras
import keras_hub

from keras_fam.checks import check_dropout, check_flag, check_integer, check_weight


def check_run(arguments: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for an argument of a run that Keras would not understand, or not refuse.

    Args:
        arguments: dict of name to value, of those that were given. Names that are not known are left to Keras.
    """
    for name, value in arguments.items():
        if name in _CHECKS:
            _CHECKS[name](name, value)


def _count(minimum, optional=False):
    def check(name, value):
        if value is not None or not optional:
            check_integer(name, value, minimum)

    return check


def _refuse(name, value, expected):
    raise TypeError(f"`{name}` must be {expected}. Received: {name}={value!r} of type {type(value).__name__}.")


def _check_verbose(name, value):
    if isinstance(value, bool) or (isinstance(value, str) and value == "auto"):
        return
    if isinstance(value, str):
        raise ValueError(f"`{name}` must be 0, 1, 2 or 'auto'. Received: {name}={value!r}.")
    check_integer(name, value, 0, 2)


def _check_callbacks(name, value):
    expected = "a list of `keras.callbacks.Callback`, one, or None"
    many = value if isinstance(value, (list, tuple)) else [value]
    for each in many:
        if each is not None and not isinstance(each, keras.callbacks.Callback):
            _refuse(name, value, expected)


def _check_class_weight(name, value):
    if value is None:
        return
    if not isinstance(value, dict) or not value:
        _refuse(name, value, "a dict of token id to number, or None")
    for token, weight in value.items():
        check_integer(name, token, 0)
        check_weight(name, weight)


def _check_validation_freq(name, value):
    many = isinstance(value, Collection) and not isinstance(value, (str, bytes, dict))
    if many and not len(value):
        _refuse(name, value, "an integer, or a collection of the epochs")
    for epoch in value if many else [value]:
        check_integer(name, epoch, 1)


def _check_jit(name, value):
    if not (isinstance(value, str) and value == "auto"):
        check_flag(name, value)


def _known(get: Callable, expected: str, named: tuple = (None,), containers: tuple = ()) -> Callable:
    """A check that Keras finds an object under a value, or all that one of `containers` holds; or one of `named`."""

    def check(name, value):
        for each in keras.tree.flatten(value) if isinstance(value, containers) else [value]:
            if (each is None or isinstance(each, str)) and each in named:
                continue
            try:
                found = None if isinstance(each, type) else get(each)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r} ({error}).") from error
            if found is None or isinstance(found, str):  # KerasHub gives the name back that it does not know.
                _refuse(name, value, expected)

    return check


_LOSS = "a loss of Keras, or the name of one"
_METRICS = "metrics of Keras, or their names"
_NAMED = ("accuracy", "acc", "perplexity", None)  # Of no function of Keras: what they are depends on the targets.
_known_loss = _known(keras.losses.get, _LOSS, ("auto", "chunked_crossentropy", None), (list, tuple, dict))


def _check_loss(name, value):
    if isinstance(value, (list, tuple, dict)) and not value:
        _refuse(name, value, _LOSS)
    _known_loss(name, value)


_CHECKS = {
    "optimizer": _known(keras.optimizers.get, "a Keras optimizer, or the name of one", ("auto", None)),
    "loss": _check_loss,
    "metrics": _known(keras.metrics.get, _METRICS, _NAMED, (list, tuple, dict)),
    "weighted_metrics": _known(keras.metrics.get, _METRICS, ("auto", *_NAMED), (list, tuple, dict)),
    "sampler": _known(keras_hub.samplers.get, "a KerasHub sampler, or the name of one", ()),
    "batch_size": _count(1, optional=True),
    "epochs": _count(1),
    "initial_epoch": _count(0),
    "steps": _count(1, optional=True),
    "steps_per_epoch": _count(1, optional=True),
    "validation_steps": _count(1, optional=True),
    "validation_batch_size": _count(1, optional=True),
    "validation_split": lambda name, value: value is None or check_dropout(name, value),
    "validation_freq": _check_validation_freq,
    "verbose": _check_verbose,
    "callbacks": _check_callbacks,
    "class_weight": _check_class_weight,
    "shuffle": check_flag,
    "return_dict": check_flag,
    "run_eagerly": check_flag,
    "auto_scale_loss": check_flag,
    "steps_per_execution": _count(1),
    "jit_compile": _check_jit,
}
