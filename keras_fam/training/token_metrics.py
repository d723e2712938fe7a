"""Metrics per real token, out of the pass that computes the loss in pieces."""

import keras
from keras import ops

from keras_fam.training.chunked_loss import LossSums
from keras_fam.types import Tensor

_ACCURACIES = ("accuracy", "acc", "sparse_categorical_accuracy")


class TokenMean(keras.metrics.Mean):
    """A mean over all real tokens of all batches. The loss adds to it; what a trainer hands over is left alone."""

    def update_state(self, values, sample_weight=None):
        pass

    def add(self, total: Tensor, weight: Tensor) -> None:
        """Adds a batch: a weighted sum and the sum of the weights, scalars."""
        self.total.assign_add(ops.cast(ops.stop_gradient(total), self.total.dtype))
        self.count.assign_add(ops.cast(weight, self.count.dtype))


class TokenPerplexity(TokenMean):
    """e to the power of the mean loss."""

    def result(self):
        return ops.exp(super().result())


class TokenMetrics:
    """The metrics of one `compile` with a `ChunkedCrossentropy`.

    Args:
        metrics: `metrics` of `compile`.
        weighted_metrics: `weighted_metrics` of `compile`.

    Raises:
        ValueError: a metric that needs all logits.
    """

    def __init__(self, metrics, weighted_metrics):
        self.loss = TokenMean(name="loss")
        self.accuracy, self.perplexity = [], []
        if metrics:
            raise ValueError(
                "`metrics` must be None with a chunked loss, which skips padding: name them as `weighted_metrics`. "
                f"Received: metrics={metrics!r}."
            )
        weighted_metrics = weighted_metrics or []
        for metric in weighted_metrics if isinstance(weighted_metrics, (list, tuple)) else [weighted_metrics]:
            self._add(metric)

    def _add(self, metric):
        is_name = isinstance(metric, str)
        if is_name and metric == "perplexity":
            self.perplexity.append(TokenPerplexity(name=metric))
        elif is_name and metric in _ACCURACIES:
            self.accuracy.append(TokenMean(name=metric))
        elif type(metric) is keras.metrics.SparseCategoricalAccuracy:
            self.accuracy.append(TokenMean(name=metric.name))
        else:
            raise ValueError(
                "`weighted_metrics` must be among 'accuracy', 'sparse_categorical_accuracy', 'perplexity' and "
                "keras.metrics.SparseCategoricalAccuracy() with a chunked loss, which never holds all logits. For "
                "others, compile with loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: "
                f"{metric!r}."
            )

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """Without the loss."""
        return [*self.accuracy, *self.perplexity]

    def add(self, sums: LossSums, loss: Tensor) -> None:
        """Adds a batch; `loss` is its mean, regularization included."""
        self.loss.add(loss * sums.weight, sums.weight)
        for metric in self.accuracy:
            metric.add(sums.correct, sums.weight)
        for metric in self.perplexity:
            metric.add(sums.loss, sums.weight)
