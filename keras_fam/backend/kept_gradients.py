"""What tensorflow keeps for ever of a gradient of one's own."""

import contextlib

import keras


@contextlib.contextmanager
def gradients_forgotten():
    """Inside, a whole step is traced, its gradient too. At the end tensorflow forgets the gradients defined in it.

    A graph's `tf.custom_gradient` stands in a registry under a name of its own until the process ends, and with it the
    graph and the weights that it reads: about 100 MB for every small model that was ever trained. A step that has its
    gradient asks for none again.
    """
    names = _names()
    before = set(names)
    try:
        yield
    finally:
        for name in set(names) - before:
            if name.startswith("CustomGradient-"):
                names.pop(name, None)


def _names():
    """The registry's entries by name; none on other backends, and none to forget where it is not what it was."""
    if keras.config.backend() != "tensorflow":
        return {}
    from tensorflow.python.framework import ops

    return getattr(getattr(ops, "gradient_registry", None), "_registry", {})
