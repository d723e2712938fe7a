"""What models are trained on: texts, token ids, and data that comes in batches of its own, in any mixture."""

import types

import keras
from keras_hub.src.utils.pipeline_model import _build_dataset, _contains_string_data, _declare_steps
from keras_hub.src.utils.tensor_utils import convert_to_numpy

from keras_fam.backend.devices import strategy_replicas
from keras_fam.backend.values import keeps_values
from keras_fam.checks import check_stateful_rows
from keras_fam.models.cut_texts import warn_of_cut_texts
from keras_fam.models.prompts import are_ids

# Keras reads these batch by batch. KerasHub would cut them into samples first.
_BATCHED = (keras.utils.PyDataset, types.GeneratorType)
_TORCH, _DISTRIBUTED = "torch.utils.data", "tensorflow.python.distribute"


def brings_batches(x):
    """Whether `x` is made of batches and is no `tf.data` or grain dataset, which KerasHub knows by itself."""
    return isinstance(x, _BATCHED) or _from_module(x, (_TORCH, _DISTRIBUTED))


def _from_module(x, names):
    """Whether a class of `x` comes from one of some modules, which need not be installed."""
    return any(base.__module__.startswith(names) for base in type(x).__mro__)


class TakesTextsAndIds:
    """The methods of a KerasHub task that take data. Each argument, and each batch, is preprocessed if it is no ids."""

    _warned_of_cut_texts = False

    def preprocess_samples(self, x, y=None, sample_weight=None):
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
        x=None,
        y=None,
        batch_size=None,
        sample_weight=None,
        validation_data=None,
        validation_split=None,
        **kwargs,
    ) -> keras.callbacks.History:
        """See `keras_hub.models.CausalLM.fit`.

        `x` and `validation_data` are texts, dicts of token ids, or datasets and generators of either.
        """
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

    @keeps_values
    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """See `keras_hub.models.CausalLM.evaluate`; `x` as in `fit`."""
        self._look_at(x)
        self._check_rows(x, batch_size)
        if not brings_batches(x) or kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(x, y, batch_size, sample_weight, **kwargs)
        batches = self._prepared_batches(x, self._prepared_lesson)
        return keras.Model.evaluate(self, batches, y, batch_size, sample_weight=sample_weight, **kwargs)

    @keeps_values
    def predict(self, x=None, batch_size=None, **kwargs):
        """See `keras_hub.models.CausalLM.predict`; `x` as in `fit`."""
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
