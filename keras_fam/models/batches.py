"""What models are trained on: texts, token ids, and data that comes in batches of its own, in any mixture."""

import types
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras_hub.src.utils.pipeline_model import _build_dataset, _contains_string_data, _declare_steps
from keras_hub.src.utils.tensor_utils import convert_to_numpy

from keras_fam.arguments import DEFAULT, given
from keras_fam.backend.devices import strategy_replicas
from keras_fam.backend.values import keeps_values
from keras_fam.checks import check_stateful_rows
from keras_fam.models.cut_texts import warn_of_cut_texts
from keras_fam.models.prompts import are_ids
from keras_fam.training.carried_evaluation import from_nothing
from keras_fam.training.run_arguments import check_run
from keras_fam.training.run_data import LESSON, VALIDATION, check_kind, check_lesson
from keras_fam.types import Callbacks, Data, MixedIn, Verbosity

# Keras reads these batch by batch. KerasHub would cut them into samples first.
_BATCHED = (keras.utils.PyDataset, types.GeneratorType)
_TORCH, _DISTRIBUTED = "torch.utils.data", "tensorflow.python.distribute"
# What `fit` hands on to Keras if it is given.
_FIT_ARGUMENTS = (
    *("epochs", "verbose", "callbacks", "shuffle", "class_weight", "initial_epoch"),
    *("steps_per_epoch", "validation_steps", "validation_batch_size", "validation_freq"),
)


def brings_batches(x):
    """Whether `x` is made of batches and is no `tf.data` or grain dataset, which KerasHub knows by itself."""
    return isinstance(x, _BATCHED) or _from_module(x, (_TORCH, _DISTRIBUTED))


def _from_module(x, names):
    """Whether a class of `x` comes from one of some modules, which need not be installed."""
    return any(base.__module__.startswith(names) for base in type(x).__mro__)


class TakesTextsAndIds(MixedIn):
    """The methods of a KerasHub task that take data. Each argument, and each batch, is preprocessed if it is no ids."""

    _warned_of_cut_texts = False

    def preprocess_samples(self, x: Data, y: Data = None, sample_weight: Data = None) -> Data:
        """What the model trains on, of one batch: the preprocessor's, or token ids as they are.

        Args:
            x: texts, or a dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`.
            y: int `[batch, length]` or None.
            sample_weight: `[batch, length]` or None.

        Returns:
            `x`, `(x, y)` or `(x, y, sample_weight)`.

        Raises:
            ValueError: texts for a model without a preprocessor.
        """
        if are_ids(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        if self.preprocessor is None and _contains_string_data(x):
            raise ValueError(
                "`x` must be a dict of 'token_ids' and 'padding_mask' for a model without a preprocessor. Received: x "
                f"of type {type(x).__name__}, texts."
            )
        return super().preprocess_samples(x, y, sample_weight)

    @keeps_values
    def fit(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        sample_weight: Data = None,
        validation_data: Data = None,
        validation_split: float | None = None,
        *,
        epochs: int = DEFAULT,
        verbose: Verbosity = DEFAULT,
        callbacks: Callbacks = DEFAULT,
        shuffle: bool = DEFAULT,
        class_weight: dict[int, float] | None = DEFAULT,
        initial_epoch: int = DEFAULT,
        steps_per_epoch: int | None = DEFAULT,
        validation_steps: int | None = DEFAULT,
        validation_batch_size: int | None = DEFAULT,
        validation_freq: int | Sequence[int] = DEFAULT,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the model, as `keras_hub.models.CausalLM.fit` does, whose defaults hold for what is not given.

        Args:
            x: str, list of str or an array of them, for a model with a preprocessor, which makes targets and weights of
                them; a dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`; or batches of either: a
                `tf.data` or grain dataset, a `keras.utils.PyDataset` such as `keras_fam.data.DocumentStream`, a torch
                `DataLoader` or a generator, of `x`, `(x, y)` or `(x, y, sample_weight)`.
            y: int `[batch, length]`, the token that follows each one; None for texts and for batches.
            batch_size: int or None, which is 32; None for batches.
            sample_weight: `[batch, length]`, what each token's loss weighs; None is the padding mask.
            validation_data: like `x`, or a tuple `(x, y)` or `(x, y, sample_weight)`: what is evaluated after an epoch.
            validation_split: float in [0, 1), the share of the arrays' end that is evaluated in place of
                `validation_data`.
            epochs: int, the number of the last epoch.
            verbose: 0, 1, 2 or `"auto"`: nothing, a progress bar, a line an epoch, or what suits.
            callbacks: list of `keras.callbacks.Callback`.
            shuffle: bool, whether the samples of arrays, or the batches of a `PyDataset`, come in random order.
            class_weight: dict of int to float, what each token of the vocabulary weighs as a target.
            initial_epoch: int, the number of epochs that were trained before.
            steps_per_epoch: int or None, batches an epoch; None is all there are.
            validation_steps: int or None, batches of `validation_data`; None is all there are.
            validation_batch_size: int or None, which is `batch_size`.
            validation_freq: int, epochs from one validation to the next; or a collection of those that have one.
            **kwargs: what a newer Keras takes.

        Returns:
            `keras.callbacks.History`, loss and metrics of each epoch.

        Raises:
            TypeError, ValueError: token ids, targets, weights or a mask of a wrong dtype, shape or value; texts for a
                model without a preprocessor; no rows as `stateful_batch_size` says; an argument of another type or out
                of range; what Keras refuses. Values in a `tf.data` or grain dataset are not looked at.
        """
        kwargs = given(locals(), *_FIT_ARGUMENTS) | kwargs
        check_run(dict(kwargs, batch_size=batch_size, validation_split=validation_split))
        check_lesson(self, LESSON, x, y, sample_weight)
        if validation_data is not None:
            check_kind("validation_data", validation_data)
            validation_data = (list(validation_data),) if _are_texts(validation_data) else validation_data
            check_lesson(self, VALIDATION, *keras.utils.unpack_x_y_sample_weight(validation_data))
        self._look_at(x)
        for each in (x, keras.utils.unpack_x_y_sample_weight(validation_data)[0]):
            self._check_rows(each, batch_size)
        if not brings_batches(x) and not brings_batches(validation_data):
            kwargs |= dict(validation_data=validation_data, validation_split=validation_split)
            return super().fit(x, y, batch_size, sample_weight, **kwargs)
        if validation_data is not None:
            data = keras.utils.unpack_x_y_sample_weight(validation_data)
            self._give_batches(kwargs, "validation_data", "validation_steps", data, batch_size)
        if brings_batches(x):  # Keras refuses what these datasets bring themselves.
            kwargs |= dict(y=y, sample_weight=sample_weight, validation_split=validation_split or 0.0)
        self._give_batches(kwargs, "x", "steps_per_epoch", (x, y, sample_weight), batch_size)
        return keras.Model.fit(self, **kwargs)

    @from_nothing
    @keeps_values
    def evaluate(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        sample_weight: Data = None,
        *,
        verbose: Verbosity = DEFAULT,
        steps: int | None = DEFAULT,
        callbacks: Callbacks = DEFAULT,
        return_dict: bool = DEFAULT,
        **kwargs: Any,
    ) -> Any:
        """Loss and metrics of a test set; the model stays as it is. See `keras_hub.models.CausalLM.evaluate`.

        With `stateful_batch_size`, batches with `"document_start"` go on from each other, in a state of their own that
        begins with nothing. Training goes on where it stopped.

        Args:
            x: texts, token ids or batches, as in `fit`.
            y: int `[batch, length]`, the token that follows each one; None for texts and for batches.
            batch_size: int or None, which is 32; None for batches.
            sample_weight: `[batch, length]`, what each token's loss weighs; None is the padding mask.
            verbose: 0, 1, 2 or `"auto"`: nothing, a progress bar, a line, or what suits.
            steps: int or None, batches to read; None is all there are.
            callbacks: list of `keras.callbacks.Callback`.
            return_dict: bool. Whether to return a dict.
            **kwargs: what a newer Keras takes.

        Returns:
            float, the loss; a list of loss and metrics if there are metrics; with `return_dict` a dict of name to
            float.

        Raises:
            TypeError, ValueError: as in `fit`.
        """
        kwargs = given(locals(), "verbose", "steps", "callbacks", "return_dict") | kwargs
        check_run(dict(kwargs, batch_size=batch_size))
        if not kwargs.get("_use_cached_eval_dataset"):
            check_lesson(self, LESSON, x, y, sample_weight)
        self._look_at(x)
        self._check_rows(x, batch_size)
        if not brings_batches(x) or kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(x, y, batch_size, sample_weight, **kwargs)
        batches = self._prepared_batches(x, self._prepared_lesson)
        return keras.Model.evaluate(self, batches, y, batch_size, sample_weight=sample_weight, **kwargs)

    @keeps_values
    def predict(
        self,
        x: Data = None,
        batch_size: int | None = None,
        *,
        verbose: Verbosity = DEFAULT,
        steps: int | None = DEFAULT,
        callbacks: Callbacks = DEFAULT,
        **kwargs: Any,
    ) -> np.ndarray:
        """Logits of all texts at once: what may follow each of their tokens. See `keras_hub.models.CausalLM.predict`.

        Args:
            x: texts, token ids or batches, as in `fit`.
            batch_size: int or None, which is 32; None for batches.
            verbose: 0, 1, 2 or `"auto"`: nothing, a progress bar, a line, or what suits.
            steps: int or None, batches to read; None is all there are.
            callbacks: list of `keras.callbacks.Callback`.
            **kwargs: what a newer Keras takes.

        Returns:
            float array `[texts, length, vocabulary_size]`.

        Raises:
            TypeError, ValueError: as in `fit`.
        """
        kwargs = given(locals(), "verbose", "steps", "callbacks") | kwargs
        check_run(dict(kwargs, batch_size=batch_size))
        check_lesson(self, LESSON[:1], x)
        if not brings_batches(x):
            return super().predict(x, batch_size, **kwargs)
        return keras.Model.predict(self, self._prepared_batches(x, self._prepared), batch_size=batch_size, **kwargs)

    def _look_at(self, x):
        """Says once in a model's life that most of its texts is cut off."""
        self._warned_of_cut_texts = self._warned_of_cut_texts or warn_of_cut_texts(self.preprocessor, x)

    def _check_rows(self, x, batch_size):
        rows = self.backbone.stateful_batch_size
        if rows is not None:
            check_stateful_rows(x, batch_size, rows * strategy_replicas(self))

    def _give_batches(self, arguments, name, steps_name, data, batch_size):
        """Puts preprocessed batches among the arguments of `keras.Model.fit`; their number too, where KerasHub does."""
        if brings_batches(data[0]):
            arguments[name] = self._prepared_batches(data[0], self._prepared_lesson)
            return
        dataset = _build_dataset(*data, batch_size, self.preprocess_samples)
        passes = arguments.get("epochs", 1)
        arguments[name], arguments[steps_name], _ = _declare_steps(dataset, arguments.get(steps_name), passes)

    def _prepared_batches(self, x, prepare):
        """Every batch of `x` preprocessed, in the form that `x` has."""
        if isinstance(x, types.GeneratorType):
            return (prepare(batch) for batch in x)
        if isinstance(x, keras.utils.PyDataset):
            return _PreparedDataset(x, prepare)
        if _from_module(x, _TORCH):
            return _prepared_loader(x, prepare)
        if _contains_string_data(x.element_spec):
            raise ValueError(
                "`x` must hold token ids if it is a distributed dataset: expected "
                "strategy.experimental_distribute_dataset(texts.map(preprocessor)). Received: x of texts."
            )
        return x

    def _prepared(self, batch):
        """`(x,)`, `(x, y)` or `(x, y, sample_weight)` in numpy arrays, which every backend takes from any dataset."""
        batch = self.preprocess_samples(*_unpacked(batch))
        return keras.tree.map_structure(convert_to_numpy, batch if isinstance(batch, tuple) else (batch,))

    def _prepared_lesson(self, batch):
        """`_prepared`, for a batch that goes on from the one before if the model does."""
        batch = self._prepared(batch)
        check_lesson(self, LESSON, *batch)
        self._check_rows(batch[0], len(keras.tree.flatten(batch[0])[0]))
        return batch


def _unpacked(batch):
    """`(x, y, sample_weight)` of a batch; a list of texts is `x`, not three things."""
    x, y, sample_weight = (batch, None, None) if _are_texts(batch) else keras.utils.unpack_x_y_sample_weight(batch)
    return list(x) if _are_texts(x) else x, y, sample_weight


def _are_texts(x):
    return isinstance(x, (list, tuple)) and all(isinstance(each, (str, bytes)) for each in x)


class _PreparedDataset(keras.utils.PyDataset):
    """`prepare` of every batch of another `PyDataset`."""

    def __init__(self, dataset, prepare):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.prepare = dataset, prepare

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        return self.prepare(self.dataset[index])

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def _prepared_loader(loader, prepare):
    """`prepare` of every batch of a torch `DataLoader`, as tensors: Keras reads no others from a loader."""
    import torch

    class Prepared(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (keras.tree.map_structure(torch.tensor, prepare(batch)) for batch in loader)

    if hasattr(loader.dataset, "__len__"):  # Else Keras asks for no length.
        Prepared.__len__ = lambda self: len(loader)
    return torch.utils.data.DataLoader(Prepared(), batch_size=None)
