"""What it means for a call to be refused, or to fail in the middle of writing."""

import os

import pytest

from helpers.models import numpy


def refused(call, *words, error=(ValueError, TypeError)):
    """Asserts that `call()` raises a ValueError or TypeError that says `words` and what it received."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in (*words, "Received"):
        assert str(word) in message, message


def snapshot(model):
    """All that a refused call must leave as it was: values, dtypes and trainability, by path."""
    return {v.path: (numpy(v).tobytes(), v.dtype, v.trainable) for v in model.variables}


def files(folder):
    """Every file below a folder, with its content; hidden ones too."""
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return {os.path.relpath(path, folder): open(path, "rb").read() for path in paths}


def fail(*arguments, **options):
    raise OSError("No space left on device")
