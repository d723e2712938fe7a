"""Training a language model on a `ChunkedCrossentropy`: its steps take hidden states and not logits."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import keras
import keras_hub
from keras import ops
from keras.src.utils.tracking import DotNotTrackScope

from keras_fam.arguments import DEFAULT, given
from keras_fam.backend.devices import data_replicas, sum_over_replicas
from keras_fam.backend.inside import Inside
from keras_fam.backend.kept_gradients import gradients_forgotten
from keras_fam.training.chunked_loss import ChunkedCrossentropy, chunked_crossentropy
from keras_fam.training.run_arguments import check_run
from keras_fam.training.token_metrics import TokenMetrics
from keras_fam.types import Data, MixedIn, Tensor

# Inside, a call of the model that is set ends with hidden states.
_ends_with_hidden_states = Inside()
# What `compile` hands on to Keras if it is given.
_COMPILE_ARGUMENTS = (
    *("metrics", "loss_weights", "run_eagerly", "steps_per_execution", "jit_compile", "auto_scale_loss"),
)


class TrainsInPieces(MixedIn):
    """The methods of a `keras_hub.models.CausalLM` that a loss in pieces needs. `predict` and calls give logits."""

    _token_metrics: TokenMetrics | None = None

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: str | keras_hub.samplers.Sampler = "top_k",
        metrics: Any = DEFAULT,
        loss_weights: Any = DEFAULT,
        run_eagerly: bool = DEFAULT,
        steps_per_execution: int = DEFAULT,
        jit_compile: bool | Literal["auto"] = DEFAULT,
        auto_scale_loss: bool = DEFAULT,
        **kwargs: Any,
    ) -> None:
        """Says how the model trains and generates, as `keras_hub.models.CausalLM.compile` does.

        The loss is computed in pieces unless another one is given.

        Args:
            optimizer: `keras.optimizers.Optimizer`, the name of one, or `"auto"`: KerasHub's, Adam at a low rate.
            loss: `"auto"`, `"chunked_crossentropy"` or a `keras_fam.ChunkedCrossentropy`, all of them cross entropy per
                real token, of which no more than some positions' logits exist at once; or any loss of Keras.
            weighted_metrics: `"auto"`, which is the accuracy, or a list; with the loss in pieces out of `"accuracy"`,
                `"sparse_categorical_accuracy"`, `"perplexity"` and `keras.metrics.SparseCategoricalAccuracy()`. Weights
                that are not given are the padding mask.
            sampler: `keras_hub.samplers.Sampler`, or the name of one: how `generate` draws.
            metrics: list of metrics that weigh every place alike; none with the loss in pieces.
            loss_weights: see `keras.Model.compile`; none with the loss in pieces.
            run_eagerly: bool. Whether steps are not compiled, to look into them.
            steps_per_execution: int, batches that one compiled call reads.
            jit_compile: bool or `"auto"`. Whether steps are compiled by XLA.
            auto_scale_loss: bool. Whether the loss is scaled where the dtype policy is `"mixed_float16"`.
            **kwargs: what a newer Keras takes.

        Raises:
            TypeError, ValueError: an argument of another type or out of range, or a name that Keras does not know;
                metrics that need all logits, or `loss_weights`, with the loss in pieces.
        """
        kwargs = given(locals(), *_COMPILE_ARGUMENTS) | kwargs
        check_run(dict(kwargs, optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, sampler=sampler))
        with DotNotTrackScope():  # The losses and metrics of `compile` are no part of the model.
            self._compile(optimizer, loss, weighted_metrics, sampler, kwargs)

    def _compile(self, optimizer, loss, weighted_metrics, sampler, kwargs):
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

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given, to save it: for `compile_from_config`."""
        config = super().get_compile_config()
        if config and getattr(self, "sampler", None) is not None:
            config["sampler"] = keras_hub.samplers.serialize(self.sampler)
            started = self.optimizer is not None and self.optimizer.built
            config["trained_variables"] = len(self.trainable_variables) if started else 0
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the model was compiled that was saved. Its optimizer goes on if it trains as many variables.

        Args:
            config: dict, of `get_compile_config`.
        """
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
    def trains_in_pieces(self) -> bool:
        """Whether the loss of `compile` is a `ChunkedCrossentropy`."""
        return self._token_metrics is not None

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of `compile`, the loss among them."""
        return super().metrics + ([] if self._token_metrics is None else self._token_metrics.all)

    def train_step(self, *args: Any) -> Any:
        """One step of `fit`; see `keras.Model.train_step`.

        Args:
            *args: what Keras gives a step on this backend, the batch at the end.

        Returns:
            What Keras takes from a step on this backend.
        """
        with self._step():
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        """One step of `evaluate`; see `train_step`.

        Args:
            *args: what Keras gives a step on this backend, the batch at the end.

        Returns:
            What Keras takes from a step on this backend.
        """
        with self._step():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        if self._token_metrics is None:
            yield
            return
        with _ends_with_hidden_states.set(self), gradients_forgotten():
            yield

    def call(self, inputs: Data, training: bool | None = None, mask: Any = None, **kwargs: Any) -> Tensor:
        """Logits; see the class. In a step of the loss in pieces, hidden states in place of them.

        Args:
            inputs: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, `[batch, length]`.
            training: bool or None, see `keras.Model`.
            mask: not used: padding is in `inputs`.
            **kwargs: see `keras.Model.call`.

        Returns:
            `[batch, length, vocabulary_size]`, or `[batch, length, hidden_dim]`.
        """
        if _ends_with_hidden_states.value is not self:
            return super().call(inputs, training=training, mask=mask, **kwargs)
        return self.backbone(self.check_inputs(inputs, training), training=training)

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Tensor = None,
        sample_weight: Data = None,
        training: bool = True,
    ) -> Tensor:
        """The loss of one batch, as `keras.Model.compute_loss` has it.

        Args:
            x: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`.
            y: int `[batch, length]`, the token that follows each one.
            y_pred: logits, or hidden states in a step of the loss in pieces.
            sample_weight: `[batch, length]`, or `[batch]` for one of each row; None is the padding mask.
            training: bool.

        Returns:
            Scalar tensor.

        Raises:
            ValueError: no `y`; targets or weights of another shape than the model's places.
        """
        if self._token_metrics is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        targets, weights = _targets_and_weights(x, y, y_pred, sample_weight)
        logits_of = self.backbone.logits if _ends_with_hidden_states.value is self else lambda logits: logits
        groups = data_replicas(y_pred.shape[0])
        sums = chunked_crossentropy(y_pred, targets, weights, logits_of, self.loss.piece, groups, training)
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
