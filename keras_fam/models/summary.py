"""What memory adds to a model, layer by layer: what is visible, what a stream holds, what is computed."""

import math
from typing import Any, NamedTuple

import numpy as np

from keras_fam.checks import check_integer
from keras_fam.memory.state import bytes_of
from keras_fam.models.backbone import FAMBackbone


class LayerSummary(NamedTuple):
    """One layer, or all of them, of a model with memory.

    Attributes:
        name: str.
        window: int or None, the layer's own sliding window; None if it has none.
        visible: int, the most tokens that a token attends to here, itself included.
        reach: int, the most tokens, itself included, on which an output of this layer depends without FAM, through all
            layers below.
        fam_length: int, N.
        stream_bytes: int, what a stream holds for this layer.
        multiplications: float, of the layers on a text of the given length.
        against_bswa: float, `multiplications` as a multiple of those without FAM and sink.
        against_stock: float, the same against the stock model's full attention.
    """

    name: str
    window: int | None
    visible: int
    reach: int
    fam_length: int
    stream_bytes: int
    multiplications: float
    against_bswa: float
    against_stock: float


class Summary(NamedTuple):
    """What `keras_fam.summary` returns; it prints as a table.

    Attributes:
        layers: tuple of `LayerSummary`.
        total: `LayerSummary` of all layers; its bytes count what a stream holds beside the layers too.
        length: int, tokens that multiplications were counted for.
    """

    layers: tuple[LayerSummary, ...]
    total: LayerSummary
    length: int

    def __repr__(self):
        head = ("layer", "window", "visible", "reach", "N", "bytes a stream", "multiplications", "/ BSWA", "/ stock")
        rows = [head, *map(_words, (*self.layers, self.total))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths)) for row in rows]
        lines.insert(1, "-" * len(lines[0]))
        lines.insert(-1, lines[1])
        return "\n".join(
            [*lines, f"Multiplications of the layers, {self.length:,} tokens, without embedding and head."]
        )


def summary(lm: Any, length: int = 8192) -> Summary:
    """What memory adds to a model, per layer and in total.

    Multiplications are those of the layers' projections and attention, counted from shapes. Keys are counted as they
    are computed: with memory whole blocks, masked or not; for stock all of the text, as in KerasHub, windows too. What
    they cost in time is measured in `benchmarks/`.

    Args:
        lm: `keras_fam.FAMCausalLM` or `keras_fam.FAMBackbone`.
        length: int, tokens of the text that multiplications are counted for.

    Returns:
        `Summary`: `print(keras_fam.summary(lm))` is a table; `summary.layers` and `summary.total` hold the numbers.

    Raises:
        TypeError, ValueError: another model, or a length below 1.

    Example:

    ```python
    print(keras_fam.summary(lm, length=4096))
    ```
    """
    backbone = getattr(lm, "backbone", lm)
    if not isinstance(backbone, FAMBackbone):
        raise TypeError(f"`lm` must be a FAMCausalLM or FAMBackbone. Received: lm of type {type(lm).__name__}.")
    check_integer("length", length, 1)
    state = backbone.state_spec(1)
    layers, counted = [], []
    for index, (layer, layer_state) in enumerate(zip(backbone.transformer_layers, state.layers)):
        core = layer.core
        counts = np.array(_multiplications(core, backbone.options, length))
        layers.append(
            LayerSummary(
                name=layer.name,
                window=core.parts.sliding_window,
                visible=_visible(core),
                reach=_reach([each.core for each in backbone.transformer_layers[: index + 1]]),
                fam_length=backbone.fam_length,
                stream_bytes=bytes_of(layer_state),
                multiplications=float(counts[0]),
                against_bswa=float(counts[0] / counts[1]),
                against_stock=float(counts[0] / counts[2]),
            )
        )
        counted.append(counts)
    counts = np.sum(counted, axis=0)
    total = LayerSummary(
        name=f"{len(layers)} layers",
        window=None,
        visible=max(layer.visible for layer in layers),
        reach=layers[-1].reach,
        fam_length=backbone.fam_length,
        stream_bytes=bytes_of(state),
        multiplications=float(counts[0]),
        against_bswa=float(counts[0] / counts[1]),
        against_stock=float(counts[0] / counts[2]),
    )
    return Summary(tuple(layers), total, length)


def _words(layer):
    """The cells of a layer's row."""
    window = "" if layer.window is None else f"{layer.window:,}"
    numbers = (f"{each:,}" for each in (layer.visible, layer.reach, layer.fam_length, layer.stream_bytes))
    ratios = f"{layer.multiplications:.3e}", f"{layer.against_bswa:.3f}", f"{layer.against_stock:.3f}"
    return layer.name, window, *numbers, *ratios


def _visible(core):
    """The tokens that the last token of a block attends to."""
    tokens = (core.segments + 1) * core.options.block_size
    return tokens if core.parts.sliding_window is None else min(tokens, core.parts.sliding_window)


def _reach(cores):
    """The tokens that the last token of a block depends on through layers, the lowest first, without FAM."""
    size = cores[0].options.block_size
    last = place = size - 1
    for core in reversed(cores):  # The earliest place that is seen; it can only grow with the place that sees.
        first = place // size * size - core.segments * size
        window = core.parts.sliding_window
        place = first if window is None else max(first, place - window + 1)
    return last - place + 1


def kernel_size(layer: Any) -> int:
    """Numbers in a layer's kernel; 0 without one. With LoRA, looking at the kernel would compute it."""
    if getattr(layer, "lora_enabled", False):
        return math.prod(layer.lora_kernel_a.shape[:-1]) * layer.lora_kernel_b.shape[-1]
    return math.prod(layer.kernel.shape) if getattr(layer, "kernel", None) is not None else 0


def _multiplications(core, options, length):
    """Of one layer on `length` tokens: with memory, without FAM and sink, and of the stock layer."""
    parts, size = core.parts, options.block_size
    fam, sinks = options.fam_length, int(options.sink_token_id is not None)
    projections = sum(map(kernel_size, parts.layers().values()))
    per_key = 2 * parts.num_query_heads * parts.head_dim  # A score, and its share of the attended vector.
    whole, rest = divmod(length, size)
    few = min(whole, core.segments)  # Blocks that have fewer than m blocks before them, and after them those with m.
    before = few * (few - 1) // 2 + (whole - few) * core.segments
    keys = size * size * (before + whole) + rest * (few * size + rest)
    bswa = length * projections + keys * per_key
    updates = length // size if fam else 0
    memory = length * (fam + sinks) * per_key + updates * fam * (projections + (fam + sinks + size) * per_key)
    return bswa + memory, bswa, length * projections + length * length * per_key
