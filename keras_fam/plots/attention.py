"""What attends to what: one head's attention map, tokens and FAM."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_fam.checks import check_integer, check_token_ids, to_array
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.causal_lm import FAMCausalLM
from keras_fam.models.layer_inputs import layer_inputs
from keras_fam.types import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_attention(model: FAMCausalLM | FAMBackbone, tokens: Tensor, layer: int, head: int) -> "Figure":
    """Draws one head's attention over several blocks, with the rows and columns of FAM marked (paper, figure 11).

    Both axes run through the text as a layer's memory sees it: the learned prompt, block 0, F_0, block 1, F_1 and so
    on. A row tells to what a token, or the update that makes F_tau, attends; each row sums to 1.

    Args:
        model: `FAMCausalLM` or `FAMBackbone`.
        tokens: int `[length]` or `[1, length]`, token ids of one text.
        layer: int, index of the decoder layer.
        head: int, index of the query head.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        TypeError, ValueError: tokens of another shape or outside the vocabulary; a layer or head that is not there.

    Example:

    ```python
    figure = keras_fam.plot_attention(lm, token_ids[:1], layer=0, head=1)
    figure.savefig("attention.png")
    ```
    """
    from matplotlib.figure import Figure

    weights, marks = attention_map(model, tokens, layer, head)
    figure = Figure(figsize=(7, 6))
    axes = figure.subplots()
    image = axes.imshow(np.sqrt(weights), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for start, stop in marks:
        for span in (axes.axvspan, axes.axhspan):
            span(start - 0.5, stop - 0.5, facecolor="none", edgecolor="tab:red", linewidth=0.6)
    axes.set_xlabel("keys: tokens, and FAM (red)")
    axes.set_ylabel("queries: tokens, and FAM (red)")
    axes.set_title(f"layer {layer}, head {head}")
    bar = figure.colorbar(image, ax=axes, label="attention weight")
    bar.set_ticks(np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1.0]).tolist(), labels=["0", "0.01", "0.1", "0.25", "0.5", "1"])
    figure.tight_layout()
    return figure


def attention_map(
    model: FAMCausalLM | FAMBackbone, tokens: Tensor, layer: int, head: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """What `plot_attention` draws.

    Args:
        model, tokens, layer, head: see `plot_attention`.

    Returns:
        `(weights, marks)`: float `[s, s]`, queries by keys, and the `(start, stop)` of FAM's rows and columns. Only
        whole blocks make a row of FAM; the prompt's rows are empty.
    """
    backbone: Any = getattr(model, "backbone", model)
    if not isinstance(backbone, FAMBackbone):
        raise TypeError(
            f"`model` must be a FAMCausalLM or FAMBackbone. Received: model of type {type(model).__name__}."
        )
    array = to_array("tokens", tokens)
    check_token_ids(array[None] if array.ndim == 1 else tokens, backbone.vocabulary_size, "tokens")
    tokens = np.atleast_2d(array)
    if tokens.shape[0] != 1 or not tokens.size:
        raise ValueError(f"`tokens` must be one text, [length]. Received: tokens of shape {tokens.shape}.")
    check_integer("layer", layer, 0, backbone.num_layers - 1)
    check_integer("head", head, 0, backbone.transformer_layers[layer].parts.num_query_heads - 1)

    chosen, inputs, start = next(itertools.islice(layer_inputs(backbone, tokens), layer, None))
    return chosen.attention_map(inputs, head, **start)
