"""LoRA that acts on FAM alone: what tokens go through stays as it was, to the last bit."""

import math
from typing import Any

import keras
from keras import ops

from keras_fam.checks import check_integer
from keras_fam.memory.parts import DecoderParts
from keras_fam.types import MixedIn, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class MemoryAdapter(keras.layers.Layer):
    """A product of two low-rank kernels, `(x A) B`, that is added to what a projection makes of FAM's rows.

    Keras's own LoRA adds A B to the kernel, for all that goes through a layer. `FAMBackbone.enable_lora` with
    `memory_only=True` makes one of these for each projection of each layer.

    Args:
        rank: int >= 1.
        made: tuple of int, the shape of what the projection makes of one row, such as `(heads, head_dim)`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: float `[batch, N, ...]`, what the projection reads.

    Returns:
        `[batch, N, *made]` in the dtype of `x`. The kernels are float32, whatever that is.

    Raises:
        TypeError, ValueError: `rank` is no integer or below 1.

    Example:

    ```python
    from keras_fam.layers.memory_adapter import MemoryAdapter

    adapter = MemoryAdapter(rank=4, made=(2, 8))
    adapter(keras.random.normal((1, 3, 16))).shape  # (1, 3, 2, 8)
    ```
    """

    def __init__(self, rank: int, made: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.rank, self.made = check_integer("rank", rank, 1), tuple(made)

    def build(self, x_shape: tuple[int, ...]) -> None:
        """Makes the kernels: A is random and B zero, so that nothing changes before training.

        Args:
            x_shape: tuple, `[batch, N, ...]`.
        """
        read, made = math.prod(x_shape[2:]), math.prod(self.made)
        make = {"dtype": "float32", "trainable": True}
        self.lora_kernel_a = self.add_weight(
            name="lora_kernel_a", shape=(read, self.rank), initializer="he_uniform", **make
        )
        self.lora_kernel_b = self.add_weight(name="lora_kernel_b", shape=(self.rank, made), initializer="zeros", **make)

    def call(self, x: Tensor) -> Tensor:
        """(x A) B.

        Args:
            x: float `[batch, N, ...]`.

        Returns:
            `[batch, N, *made]`.
        """
        rows = ops.reshape(x, (-1, self.lora_kernel_a.shape[0]))
        for kernel in (self.lora_kernel_a, self.lora_kernel_b):
            rows = ops.matmul(rows, ops.cast(kernel, x.dtype))
        return ops.reshape(rows, (*ops.shape(x)[:2], *self.made))

    def compute_output_shape(self, x_shape: Shape) -> Shape:
        """The shape of what is added.

        Args:
            x_shape: tuple, `[batch, N, ...]`.

        Returns:
            `[batch, N, *made]`.
        """
        return (*x_shape[:2], *self.made)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rank": self.rank, "made": self.made}


class AdaptsMemory(MixedIn):
    """The adapters of a `FAMDecoderLayer`."""

    parts: DecoderParts
    _adapted: tuple[str, ...] = ()

    def adapt_memory(self, rank: int, names: list[str]) -> None:
        """Gives projections a `MemoryAdapter` each.

        Args:
            rank: int >= 1.
            names: list of str, what the projections' layers are called.
        """
        self._tracker.unlock()
        with keras.name_scope(self.name):
            for name, (layer, read, made) in self.projections().items():
                if layer.name in names:
                    adapter = MemoryAdapter(rank, made, dtype=self.dtype_policy, name=f"memory_{layer.name}")
                    adapter.build((1, 1, *read))
                    setattr(self, f"adapter_{name}", adapter)
                    self._adapted += (name,)
        self._tracker.lock()

    @property
    def memory_adapters(self) -> dict[str, MemoryAdapter]:
        """The adapters by the field of `DecoderParts` that they belong to; none before `adapt_memory`."""
        return {name: getattr(self, f"adapter_{name}") for name in self._adapted}

    def projections(self) -> dict[str, tuple[keras.layers.Layer, tuple[int, ...], tuple[int, ...]]]:
        """What can have an adapter: `(layer, shape of a row that it reads, shape of what it makes)` by its field."""
        parts = self.parts
        hidden, heads = (parts.hidden_dim,), (parts.num_query_heads, parts.head_dim)
        read = dict.fromkeys(("query", "key", "value"), hidden) | {"output": heads}
        if parts.up is not None:
            read |= {"up": hidden, "down": parts.up.compute_output_shape((1, 1, *hidden))[2:]}
        if parts.gate is not None:
            read["gate"] = hidden
        layers = {name: getattr(parts, name) for name in read}
        return {
            name: (layer, read[name], layer.compute_output_shape((1, 1, *read[name]))[2:])
            for name, layer in layers.items()
        }
