"""Reading a GGUF file: metadata and tensors. Whatever is wrong with the file is a `ValueError` that names it."""

import os

import numpy as np

try:
    import gguf
except ImportError as error:
    raise ImportError("Reading GGUF files needs two more packages: pip install 'keras-fam[gguf]'.") from error

_REQUIRED = object()


class GGUFFile:
    """A GGUF file, opened and checked for completeness; its tensors are read one by one when asked for.

    Args:
        path: str or path. The file.

    Attributes:
        path: str. The file, for messages.
        shapes: dict from tensor name to shape, in row-major order: a projection is `(outputs, inputs)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file, is cut short, is one part of several, or has the other byte order.

    Example:

    ```python
    file = GGUFFile("model.gguf")
    layers = file.get("llama.block_count", int)
    embedding = file.array("token_embd.weight")  # float32, (vocabulary size, hidden dim)
    ```
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        try:
            self._reader = _CheckedReader(self.path)
        except (ValueError, IndexError, KeyError) as error:
            raise self.error(f"not a complete GGUF file ({error})") from error
        if self._reader.byte_order != "I":
            raise self.error("its byte order is not this machine's")
        if self.get("split.count", int, 1) > 1:
            raise self.error("one part of a file in several parts; join them first (llama-gguf-split --merge)")
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shapes = {name: tuple(tensor.shape.tolist()[::-1]) for name, tensor in self._tensors.items()}

    def error(self, message):
        """A `ValueError` about this file, to be raised by the caller."""
        return ValueError(f"{self.path}: {message}")

    def get(self, key, kind, default=_REQUIRED):
        """The metadata under a key.

        Args:
            key: str.
            kind: type of the value: `int`, `float`, `bool`, `str` or `list`.
            default: what to return where the file lacks the key. Without one the key must be there.

        Raises:
            ValueError: if the key is missing and has no default, or its value is of another type.
        """
        field = self._reader.get_field(key)
        if field is None:
            if default is _REQUIRED:
                raise self.error(f"metadata `{key}` is missing")
            return default
        value = field.contents()
        if type(value) is not kind:
            raise self.error(f"metadata `{key}` must be of type {kind.__name__}. Received: {value!r:.80}")
        return value

    def shape(self, name):
        """Shape of a tensor; a `ValueError` if the file lacks it."""
        if name not in self.shapes:
            raise self.error(f"tensor `{name}` is missing")
        return self.shapes[name]

    def array(self, name):
        """A tensor's values, dequantized: a float32 array in row-major order.

        Raises:
            ValueError: if the tensor is missing or of a type that `gguf` cannot dequantize.
        """
        shape = self.shape(name)
        tensor = self._tensors[name]
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise self.error(f"tensor `{name}` is of type {tensor.tensor_type.name}, which cannot be read") from error
        return np.asarray(values, "float32").reshape(shape)


class _CheckedReader(gguf.GGUFReader):
    """Names the tensor whose data a file cut short lacks. The reader itself only says that a shape does not fit."""

    def _build_tensors(self, start_offs, fields):
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
            end = start_offs + int(offset[0]) + int(np.prod(dims, dtype="uint64")) // block * size
            if end > len(self.data):
                raise ValueError(
                    f"the data of tensor `{bytes(name).decode()}` ends at byte {end:,}, the file at {len(self.data):,}"
                )
        super()._build_tensors(start_offs, fields)
