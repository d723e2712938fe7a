"""Training a language model on a `ChunkedCrossentropy`: its steps take hidden states and not logits."""

import contextlib
import warnings

import keras
import keras_hub
from keras import ops
from keras.src.utils.tracking import no_automatic_dependency_tracking

from keras_fam.backend.devices import data_replicas, sum_over_replicas
from keras_fam.backend.inside import Inside
from keras_fam.backend.kept_gradients import gradients_forgotten
from keras_fam.training.chunked_loss import ChunkedCrossentropy, chunked_crossentropy
from keras_fam.training.token_metrics import TokenMetrics

# Inside, a call of the model that is set ends with hidden states.
_ends_with_hidden_states = Inside()


class TrainsInPieces:
    """The methods of a `keras_hub.models.CausalLM` that a loss in pieces needs. `predict` and calls give logits."""

    _token_metrics = None

    @no_automatic_dependency_tracking
    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", sampler="top_k", **kwargs) -> None:
        """See `keras_hub.models.CausalLM.compile`. The loss is computed in pieces unless another one is given.

        Args:
            optimizer: see `keras_hub.models.CausalLM.compile`.
            loss: `"auto"`, `"chunked_crossentropy"` or a `keras_fam.ChunkedCrossentropy`, all of them cross entropy per
                real token, of which no more than some positions' logits exist at once; or any loss of Keras.
            weighted_metrics: `"auto"`, which is the accuracy, or a list; with the loss in pieces out of `"accuracy"`,
                `"sparse_categorical_accuracy"`, `"perplexity"` and `keras.metrics.SparseCategoricalAccuracy()`. Weights
                that are not given are the padding mask.
            sampler: see `keras_hub.models.CausalLM.compile`.
            **kwargs: see `keras.Model.compile`.

        Raises:
            ValueError: metrics that need all logits, or `loss_weights`, with the loss in pieces.
        """
        if isinstance(loss, str) and loss in ("auto", "chunked_crossentropy"):
            loss = ChunkedCrossentropy()
        token_metrics = None
        if isinstance(loss, ChunkedCrossentropy):
            if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
                weighted_metrics = [keras.metrics.SparseCategoricalAccuracy()]
            token_metrics = TokenMetrics(kwargs.get("metrics"), weighted_metrics)
            if kwargs.get("loss_weights") is not None:
                raise ValueError(
                    "`loss_weights` must be None with a chunked loss. Received: "
                    f"loss_weights={kwargs['loss_weights']!r}."
                )
        super().compile(optimizer, loss, weighted_metrics=weighted_metrics, sampler=sampler, **kwargs)
        self._token_metrics = token_metrics
        if token_metrics is not None:
            self._loss_tracker, self._compile_loss, self._compile_metrics = token_metrics.loss, None, None

    def get_compile_config(self):
        config = super().get_compile_config()
        if config and getattr(self, "sampler", None) is not None:
            config["sampler"] = keras_hub.samplers.serialize(self.sampler)
            started = self.optimizer is not None and self.optimizer.built
            config["trained_variables"] = len(self.trainable_variables) if started else 0
        return config

    def compile_from_config(self, config):
        """Compiles as the model was compiled that was saved. Its optimizer goes on if it trains as many variables."""
        config = dict(config)
        trained = config.pop("trained_variables", 0)
        try:
            config = keras.saving.deserialize_keras_object(config)
        except (TypeError, ValueError) as error:
            warnings.warn(f"`compile` must be called again: what was saved of it cannot be read. {error}", stacklevel=2)
            return
        self.compile(**config)
        if trained and trained == len(self.trainable_variables):
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        return super().metrics + ([] if self._token_metrics is None else self._token_metrics.all)

    def train_step(self, *args):
        with self._step():
            return super().train_step(*args)

    def test_step(self, *args):
        with self._step():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _step(self):
        if self._token_metrics is None:
            yield
            return
        with _ends_with_hidden_states.set(self), gradients_forgotten():
            yield

    def call(self, inputs, training=None, mask=None, **kwargs):
        if _ends_with_hidden_states.value is not self:
            return super().call(inputs, training=training, mask=mask, **kwargs)
        return self.backbone(self.check_inputs(inputs, training), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """See `keras.Model.compute_loss`. `y_pred` are logits, or hidden states in a step of the loss in pieces."""
        if self._token_metrics is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        targets, weights = _targets_and_weights(x, y, y_pred, sample_weight)
        logits_of = self.backbone.logits if _ends_with_hidden_states.value is self else lambda logits: logits
        groups = data_replicas(y_pred.shape[0])
        sums = chunked_crossentropy(y_pred, targets, weights, logits_of, self.loss.piece, groups)
        # On several devices of tensorflow's each has its share of the sum.
        loss = ops.divide_no_nan(sums.loss, sum_over_replicas(sums.weight))
        extra = sum((ops.sum(ops.cast(each, "float32")) for each in self.losses), 0.0)
        self._token_metrics.add(sums, ops.divide_no_nan(sums.loss, sums.weight) + extra)
        return loss + extra


def _targets_and_weights(x, y, y_pred, sample_weight):
    """Targets and weights `[batch, length]`; where no weights are given, those of padding are 0."""
    if y is None:
        raise ValueError("`y` must be given: the token ids that follow, int [batch, length]. Received: y=None.")
    if sample_weight is None:
        has_padding = isinstance(x, dict) and "padding_mask" in x
        sample_weight = x["padding_mask"] if has_padding else ops.ones_like(y_pred[..., 0])
    shape = tuple(y_pred.shape[:2])
    targets = _two_axes("y", ops.convert_to_tensor(y), shape)
    weights = _two_axes("sample_weight", ops.convert_to_tensor(sample_weight), shape)
    return targets, ops.broadcast_to(ops.cast(weights, "float32"), ops.shape(targets))


def _two_axes(name, value, shape):
    """`value` as `[batch, length]`; of a weight a row `[batch]`, `[batch, 1]`."""
    given = tuple(value.shape)
    if len(given) == 3 and given[-1] == 1:
        value = value[..., 0]
    elif len(given) == 1 and name == "sample_weight":
        value = value[:, None]
    broadcast = name == "sample_weight" and value.shape[-1] == 1
    fits = len(value.shape) == 2 and all(
        size is None or expected is None or size == expected or (axis == 1 and broadcast)
        for axis, (size, expected) in enumerate(zip(value.shape, shape))
    )
    if not fits:
        raise ValueError(
            f"`{name}` must have the shape [batch, length], here {shape}. Received: {name} of shape {given}."
        )
    return value
