"""Where in a document a model knows more: the loss against the position."""

import keras
import numpy as np
from keras import ops

from keras_fam.checks import check_integer, check_token_ids
from keras_fam.models.causal_lm import FAMCausalLM
from keras_fam.types import Tensor


def loss_by_position(lm, token_ids: Tensor) -> np.ndarray:
    """Each token's loss, read as a stream in fixed memory.

    Args:
        lm: `FAMCausalLM`.
        token_ids: int `[documents, length]`.

    Returns:
        float32 `[documents, length - 1]`, nats; place t is the loss of token t + 1.
    """
    if not isinstance(lm, FAMCausalLM):
        raise TypeError(f"`models` must be FAMCausalLM. Received: a model of type {type(lm).__name__}.")
    token_ids = ops.convert_to_numpy(check_token_ids(token_ids, lm.backbone.vocabulary_size))
    size = lm.backbone.block_size
    state, losses = lm.initial_state(token_ids.shape[0]), []
    for start in range(0, token_ids.shape[1] - 1, size):
        logits, state = lm.stream(token_ids[:, start : start + size], state)
        targets = token_ids[:, start + 1 : start + size + 1]
        logits = logits[:, : targets.shape[1]]
        values = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        losses.append(ops.convert_to_numpy(ops.cast(values, "float32")))
    return np.concatenate(losses, axis=1)


def plot_loss_by_position(models, token_ids: Tensor, bin_size: int | None = None):
    """Draws the loss against the position in the document: memory shows as a curve that goes on falling.

    Args:
        models: `FAMCausalLM`, or a dict of label to `FAMCausalLM`.
        token_ids: int `[documents, length]`, held-out texts of equal length.
        bin_size: int, tokens that are averaged into one point, or None for the first model's `block_size`.

    Returns:
        `matplotlib.figure.Figure`, with the standard error over documents as a band.

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
    losses = {label: loss_by_position(lm, token_ids) for label, lm in models.items()}
    length = next(iter(losses.values())).shape[1]
    bin_size = check_integer("bin_size", first.backbone.block_size if bin_size is None else bin_size, 1, length)
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    bins = length // bin_size
    places = (np.arange(bins) + 0.5) * bin_size
    for label, values in losses.items():
        values = values[:, : bins * bin_size].reshape(len(values), bins, bin_size).mean(axis=2)
        mean, error = values.mean(axis=0), values.std(axis=0) / max(1, len(values) - 1) ** 0.5
        axes.plot(places, mean, label=label)
        axes.fill_between(places, mean - error, mean + error, alpha=0.2)
    axes.set_xlabel("position in the document, tokens")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure
