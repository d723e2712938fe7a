"""LoRA in weights files: what was trained goes on where it was, and a file without LoRA leaves LoRA able to learn."""

import contextlib
import contextvars
from collections.abc import Callable

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable

from keras_fam.layers.memory_adapter import MemoryAdapter

MEMORY_ONLY = "memory_only"  # The ranks of adapters that act on FAM alone.

_merged_alone = contextvars.ContextVar("merged_alone", default=False)


@contextlib.contextmanager
def merged_alone():
    """Inside, files hold merged kernels and nothing of LoRA: presets, for models without it."""
    token = _merged_alone.set(True)
    try:
        yield
    finally:
        _merged_alone.reset(token)


class LoRACheckpoint(KerasSaveable):
    """What Keras leaves out of a weights file: kernels without LoRA, and LoRA kernels.

    Keras saves a kernel with LoRA merged into it. When it loads one, it sets both LoRA kernels to zero, which no
    gradient can leave. Merged kernels are what a model without LoRA needs. So a file keeps them, and holds this beside
    them. The parts of a layer are loaded by name, private ones last: as a private part, this comes after the kernels.

    Args:
        find_layers: callable that returns all layers that may have LoRA.
    """

    def __init__(self, find_layers: Callable[[], list[keras.layers.Layer]]):
        self.find_layers = find_layers

    def _obj_type(self):
        return "Layer"

    def _memory_ranks(self):
        return [layer.rank for layer in self.find_layers() if isinstance(layer, MemoryAdapter)]

    def _lora_layers(self):
        return [layer for layer in self.find_layers() if getattr(layer, "lora_enabled", False)]

    def save_own_variables(self, store):
        if ranks := self._memory_ranks():
            store[MEMORY_ONLY] = np.array(ranks, "int32")
        if not _merged_alone.get():
            for layer in self._lora_layers():
                for key, variable in _keyed(layer).items():
                    store[key] = variable

    def load_own_variables(self, store):
        """Layer by layer: the kernels apart, where the file has them for LoRA of this rank; else LoRA begins anew.

        Raises:
            ValueError: the file holds adapters that act on FAM alone, and the model has none: Keras leaves them out.
        """
        if MEMORY_ONLY in store and not self._memory_ranks():
            raise ValueError(
                "The weights are of a model whose LoRA acts on FAM alone: expected a model after "
                f"`enable_lora({int(store[MEMORY_ONLY][0])}, memory_only=True)`. Received: a model without."
            )
        for layer in self._lora_layers():
            keyed = _keyed(layer)
            if all(key in store and store[key].shape == tuple(variable.shape) for key, variable in keyed.items()):
                for key, variable in keyed.items():
                    variable.assign(store[key])
            else:
                first = layer.lora_kernel_a
                first.assign(keras.initializers.HeUniform()(first.shape, first.dtype))


def _keyed(layer):
    """A layer's variables by what a file calls them."""
    return {f"{layer.path}.{variable.name}".replace("/", "."): variable for variable in layer.weights}
