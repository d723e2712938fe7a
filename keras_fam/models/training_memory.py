"""What a training step takes in memory: weights and optimizer counted, activations and loss estimated from shapes."""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_fam.checks import check_integer
from keras_fam.memory.state import bytes_of
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.summary import kernel_size
from keras_fam.training.chunked_loss import ChunkedCrossentropy

_GB = 1e9
# Of [tokens, d] in a layer: its input, steps of the norms, outputs and inputs of projections, sums.
_HIDDEN_COPIES = 16
_LOGITS_COPIES = 3  # Logits, their softmax, its gradient.


class TrainingMemory(NamedTuple):
    """What `keras_fam.training_memory` returns, in bytes; it prints as a table.

    Attributes:
        weights: int, all weights but those that LoRA adds. Exact.
        lora: int, what LoRA adds. Exact.
        gradients: int, of all that trains. Exact.
        optimizer: int, the optimizer's slots: its own, once it is built, else two numbers for each that trains. Exact.
        activations: int, what the layers keep for the backward pass. An estimate.
        loss: int, the logits that exist at once, and what becomes of them. An estimate.
        stream: int, the state of one stream after training. Exact.
        rematerialized: bool, whether the layers are computed twice.
        batch_size: int.
        length: int.
    """

    weights: int
    lora: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    stream: int
    rematerialized: bool
    batch_size: int
    length: int

    @property
    def total(self) -> int:
        """All of a training step: everything but the state of a stream."""
        return sum(self[:6])

    def __repr__(self):
        lines = [f"{name:<24}{value / _GB:10.3f} GB" for name, value in zip(self._fields[:6], self[:6])]
        twice = "layers computed twice" if self.rematerialized else "layers computed once"
        lines.append(
            f"{'a training step':<24}{self.total / _GB:10.3f} GB: {self.batch_size} x {self.length:,}, {twice}"
        )
        return "\n".join([*lines, f"{'state of a stream':<24}{self.stream / _GB:10.3f} GB"])


def training_memory(lm: Any, batch_size: int = 1, length: int = 8192) -> TrainingMemory:
    """What a training step of a model takes, as it is: its dtype, LoRA if enabled, `keras.RematScope` if made in one.

    Weights, gradients, optimizer and stream are counted. Activations and loss are estimated from shapes, for one
    device; what the backend and the program hold beside is not in it. On torch, `tests/test_training_memory.py` holds
    their sum within a factor of 2 of a measured peak. There a model can be counted that was never in memory: make it in
    `keras.device("meta")`.

    Args:
        lm: `keras_fam.FAMCausalLM`.
        batch_size: int, rows of a step.
        length: int, tokens of a row.

    Returns:
        `TrainingMemory`: `print(keras_fam.training_memory(lm))` is a table.

    Raises:
        TypeError, ValueError: another model; an argument of another type or below 1.

    Example:

    ```python
    print(keras_fam.training_memory(lm, batch_size=2, length=4096))
    ```
    """
    backbone = getattr(lm, "backbone", None)
    if not isinstance(backbone, FAMBackbone):
        raise TypeError(f"`lm` must be a FAMCausalLM. Received: lm of type {type(lm).__name__}.")
    check_integer("batch_size", batch_size, 1)
    check_integer("length", length, 1)
    lora = [v for v in lm.variables if v.name.startswith("lora_kernel")]
    trained = bytes_of(lm.trainable_variables)
    optimizer = getattr(lm, "optimizer", None)
    remat = any(getattr(layer._remat_mode, "mode", None) for layer in backbone.transformer_layers)
    return TrainingMemory(
        weights=bytes_of(lm.variables) - bytes_of(lora),
        lora=bytes_of(lora),
        gradients=trained,
        optimizer=bytes_of(optimizer.variables) if optimizer is not None and optimizer.built else 2 * trained,
        activations=_activations(backbone, batch_size, length, remat),
        loss=_loss(lm, batch_size * length),
        stream=bytes_of(keras.tree.flatten(backbone.state_spec(1))),
        rematerialized=remat,
        batch_size=batch_size,
        length=length,
    )


def _activations(backbone, batch_size, length, remat):
    """Each layer's, or each layer's input and one layer's, and the gradient of one layer."""
    width = np.dtype(backbone.compute_dtype).itemsize
    tokens, blocks = batch_size * length, batch_size * (length // backbone.block_size)
    rows = tokens + blocks * backbone.fam_length
    whole, inputs = [], []
    for layer in backbone.transformer_layers:
        whole.append(rows * _numbers_a_row(layer.core, backbone.hidden_dim) * width + _merged(layer, width))
        inputs.append(tokens * backbone.hidden_dim * width + blocks * backbone.fam_length * backbone.hidden_dim * 4)
    return (sum(inputs) if remat else sum(whole)) + 2 * max(whole) - (0 if remat else max(whole))


def _numbers_a_row(core, hidden_dim):
    """What a layer keeps of one token or FAM vector, in numbers. Scores are not kept, or computed again."""
    parts = core.parts
    window = 2 * (core.segments + 1) * parts.num_key_value_heads * parts.head_dim  # Keys and values, by block.
    heads = (parts.num_query_heads + parts.num_key_value_heads) * parts.head_dim
    attended = parts.num_query_heads * parts.head_dim
    multiplications = sum(map(kernel_size, parts.layers().values()))
    feedforward = (multiplications - 2 * hidden_dim * heads) / hidden_dim  # Its widths, together.
    attention = 2 * heads + heads + attended  # Query, key, value, attended; rotated query and key; its own gradient.
    return _HIDDEN_COPIES * hidden_dim + attention + window + round(feedforward * 4 / 3)


def _merged(layer, width):
    """Keras adds LoRA's product to a kernel before it is used, so that the sum is there beside the kernel."""
    adapted = [each for each in layer._flatten_layers() if getattr(each, "lora_enabled", False)]
    return sum(kernel_size(each) * width for each in adapted)


def _loss(lm, positions):
    """Logits in float32 of all positions, or of a piece of them; and the hidden states with their gradient."""
    loss = getattr(lm, "loss", None)
    at_once = min(positions, loss.piece) if isinstance(loss, ChunkedCrossentropy) else positions
    hidden = 2 * positions * lm.backbone.hidden_dim * np.dtype(lm.backbone.compute_dtype).itemsize
    return _LOGITS_COPIES * at_once * lm.backbone.vocabulary_size * 4 + hidden
