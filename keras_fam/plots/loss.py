"""Where in a document a model knows more: the loss against the position."""

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_fam.checks import check_integer
from keras_fam.models.causal_lm import FAMCausalLM
from keras_fam.models.reading import losses_in_blocks, open_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_by_position(lm: FAMCausalLM, token_ids: Any) -> np.ndarray:
    """Each token's loss, read as a stream in fixed memory.

    Args:
        lm: `FAMCausalLM`.
        token_ids: int `[documents, length]`; or a text, a path of a file, token ids `[length]`, or a list of these, of
            any lengths. Texts and files begin with the tokenizer's start token, if it has one.

    Returns:
        float32 `[documents, length - 1]`, nats; place t is the loss of token t + 1. It is NaN behind the end of a
        document that is shorter than the longest.
    """
    if not isinstance(lm, FAMCausalLM):
        raise TypeError(f"`models` must be FAMCausalLM. Received: a model of type {type(lm).__name__}.")
    documents = open_texts(lm, token_ids, "token_ids")
    losses = [np.where(scored, losses, np.nan) for _, losses, scored in losses_in_blocks(lm, documents)]
    losses = np.concatenate(losses, axis=1).astype("float32")
    return losses[:, : 1 + int(np.flatnonzero(~np.isnan(losses).all(axis=0))[-1])]


def plot_loss_by_position(
    models: FAMCausalLM | dict[str, FAMCausalLM], token_ids: Any, bin_size: int | None = None
) -> "Figure":
    """Draws the loss against the position in the document: memory shows as a curve that goes on falling.

    Args:
        models: `FAMCausalLM`, or a dict of label to `FAMCausalLM`.
        token_ids: held-out texts: int `[documents, length]`; or a text, a path of a file, token ids `[length]`, or a
            list of these, of any lengths.
        bin_size: int, tokens that are averaged into one point, or None for the first model's `block_size`.

    Returns:
        `matplotlib.figure.Figure`, with the standard error over the documents that reach a place as a band.

    Raises:
        TypeError, ValueError: models that are no `FAMCausalLM`; token ids of another shape or outside the vocabulary;
            a `bin_size` below 1 or above the number of losses.

    Example:

    ```python
    figure = keras_fam.plot_loss_by_position({"carried": lm, "fresh": other}, token_ids, bin_size=4)
    ```
    """
    from matplotlib.figure import Figure

    models = models if isinstance(models, dict) else {"loss": models}
    if not models:
        raise ValueError("`models` must hold at least one model. Received: models={}.")
    first = next(iter(models.values()))
    if bin_size is not None:
        check_integer("bin_size", bin_size, 1)  # Before anything is read: how long the texts are is known behind it.
    losses = {label: loss_by_position(lm, token_ids) for label, lm in models.items()}
    length = min(values.shape[1] for values in losses.values())
    bin_size = check_integer("bin_size", first.backbone.block_size if bin_size is None else bin_size, 1, length)
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    bins = length // bin_size
    places = (np.arange(bins) + 0.5) * bin_size
    for label, values in losses.items():
        values, _ = _mean(values[:, : bins * bin_size].reshape(len(values), bins, bin_size), axis=2)
        mean, count = _mean(values, axis=0)
        error = (_mean((values - mean) ** 2, axis=0)[0] / np.maximum(1, count - 1)) ** 0.5
        axes.plot(places, mean, label=label)
        axes.fill_between(places, mean - error, mean + error, alpha=0.2)
    axes.set_xlabel("position in the document, tokens")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure


def _mean(values, axis):
    """The mean of what is not NaN along an axis, NaN where nothing is, and how many there were."""
    count = (~np.isnan(values)).sum(axis=axis)
    return np.where(count, np.nansum(values, axis=axis) / np.maximum(1, count), np.nan), count
