"""What attends to what: one head's attention map, tokens and FAM."""

import numpy as np
from keras import ops

from keras_fam.checks import check_integer, check_token_ids
from keras_fam.feedback import project_fam, update_fam
from keras_fam.ops import token_mask
from keras_fam.types import Tensor


def plot_attention(model, tokens: Tensor, layer: int, head: int):
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
    bar.set_ticks(np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1.0]), labels=["0", "0.01", "0.1", "0.25", "0.5", "1"])
    figure.tight_layout()
    return figure


def attention_map(model, tokens: Tensor, layer: int, head: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """What `plot_attention` draws.

    Args:
        model, tokens, layer, head: see `plot_attention`.

    Returns:
        `(weights, marks)`: float `[s, s]`, queries by keys, and the `(start, stop)` of FAM's rows and columns. Only
        whole blocks make a row of FAM; the prompt's rows are empty.
    """
    backbone = getattr(model, "backbone", model)
    tokens = np.atleast_2d(ops.convert_to_numpy(tokens))
    check_token_ids(tokens, backbone.vocabulary_size, "tokens")
    if tokens.shape[0] != 1:
        raise ValueError(f"`tokens` must be one text, [length]. Received: tokens of shape {tokens.shape}.")
    check_integer("layer", layer, 0, backbone.num_layers - 1)
    block = backbone.transformer_layers[layer]
    attention, size, length = block.attention, backbone.block_size, backbone.fam_length
    check_integer("head", head, 0, attention.num_query_heads - 1)

    hidden = {}
    mask = ops.ones(tokens.shape, "bool")
    ids = ops.convert_to_tensor(tokens, "int32")
    backbone.hidden_states(ids, mask, layer_intercept_fn=lambda x, index: hidden.setdefault(index, x))
    x = block.pre_attention_norm(hidden[layer - 1])
    query, (key, value) = attention.project_query(x), attention.project_key_value(x)

    # Every block's keys, and behind them those of the FAM that it made, in the order of the axes.
    fam = _prompt(backbone, layer) if length else None
    stride, blocks = size + length, -(-tokens.shape[1] // size)
    weights = np.zeros((length + blocks * stride,) * 2)
    for tau in range(blocks):
        span, places = slice(tau * size, (tau + 1) * size), ops.arange(min(size, tokens.shape[1] - tau * size))
        own = length + tau * stride
        parts = []  # (key, columns, mask) of what the block's tokens see
        for past in range(max(0, tau - attention.memory_segments), tau + 1):
            key_places = ops.arange((past - tau) * size, (past - tau) * size + min(size, key.shape[1] - past * size))
            seen = token_mask(places, key_places, attention.sliding_window_size)
            part = attention.rotate(key[:, past * size : (past + 1) * size], key_places)
            parts.append((part, length + past * stride, seen))
        if fam is not None:
            parts.append((fam.key, own - length, ops.ones((places.shape[0], length), "bool")))
        _write(weights, attention, head, attention.rotate(query[:, span], places), own, parts)
        if fam is not None and places.shape[0] == size:
            rotation = attention.rotation(ops.arange(size - length, size))
            own_key = attention.rotate(key[:, span], places)
            everything = [
                (fam.key, own - length, ops.ones((length, length), "bool")),
                (own_key, own, ops.ones((length, size), "bool")),
            ]
            turned = attention.rotate(fam.query, ops.arange(size - length, size))
            _write(weights, attention, head, turned, own + size, everything)
            vectors, started = update_fam(attention, fam, own_key, value[:, span], None, rotation, block.complete)
            before = attention.rotation(ops.arange(-length, 0))
            fam = project_fam(attention, vectors, started, before, block.pre_attention_norm)
    last = length + tokens.shape[1] + length * (tokens.shape[1] // size)
    marks = [(tau * stride, tau * stride + length) for tau in range(blocks + 1) if length]
    return weights[:last, :last], [mark for mark in marks if mark[1] <= last]


def _prompt(backbone, layer):
    """The FAM of a layer before the first block."""
    vectors = backbone.family.scale(backbone.fam_prompt(None))
    for below in backbone.transformer_layers[:layer]:
        vectors = below.raise_prompt(vectors)
    block = backbone.transformer_layers[layer]
    rotation = block.attention.rotation(ops.arange(-backbone.fam_length, 0))
    return project_fam(block.attention, vectors, ops.zeros((1,), "bool"), rotation, block.pre_attention_norm)


def _write(weights, attention, head, query, row, parts):
    """Puts the weights of rotated queries `[1, t, h, c]` over the keys of all `parts` where they belong."""
    keys = ops.concatenate([key for key, _, _ in parts], axis=1)
    slots, heads = keys.shape[1], keys.shape[2]
    # A value that is 1 in its own place only: what attention makes of them are its weights.
    values = ops.broadcast_to(ops.eye(slots, dtype=keys.dtype)[None, :, None], (1, slots, heads, slots))
    mask = ops.concatenate([seen for _, _, seen in parts], axis=1)[None]
    made = ops.convert_to_numpy(ops.cast(attention.attend(query, keys, values, mask), "float32"))[0, :, head]
    start = 0
    for key, column, _ in parts:
        width = key.shape[1]
        weights[row : row + made.shape[0], column : column + width] = made[:, start : start + width]
        start += width
