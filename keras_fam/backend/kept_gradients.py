"""What tensorflow keeps for ever of a gradient of one's own."""

import contextlib
from typing import Any

from keras_fam.backend.inside import Inside

_made = Inside()  # The names of gradients that the step at hand has defined.


@contextlib.contextmanager
def gradients_forgotten():
    """Inside, a whole step is traced, its gradient too. At the end tensorflow forgets the gradients `noted` in it.

    A graph's `tf.custom_gradient` stands in a registry under a name of its own until the process ends, and with it the
    graph and the weights that it reads: about 100 MB for every small model that was ever trained. A step that has its
    gradient asks for none again.
    """
    names: list[str] = []
    try:
        with _made.set(names):
            yield
    finally:
        if names:
            _forget(names)


def _forget(names):
    from tensorflow.python.framework import ops

    # Private to tensorflow: where it is not what it was, gradients stay.
    registered = getattr(getattr(ops, "gradient_registry", None), "_registry", {})
    for name in names:
        registered.pop(name, None)


def noted(result: Any) -> Any:
    """The result of a `tf.custom_gradient`, tensors, as it is; `gradients_forgotten` around it then knows of it."""
    first = result[0]
    if _made.value is not None and hasattr(first, "graph"):  # None is kept of an eager one.
        _made.value.append(first.op.get_attr("_gradient_op_type").decode())
    return result
