"""What models are trained on: texts, token ids, and data that comes in batches of its own, in any mixture."""

import types

import keras
from keras_hub.src.utils.pipeline_model import _build_dataset

from keras_fam.models.prompts import are_ids

# Keras reads these batch by batch. KerasHub would cut them into samples first.
_BATCHED = (keras.utils.PyDataset, types.GeneratorType)
_BATCHED_MODULES = ("torch.utils.data", "tensorflow.python.distribute")


def brings_batches(x):
    """Whether `x` is made of batches and is no `tf.data` or grain dataset, which KerasHub knows by itself."""
    modules = (base.__module__ for base in type(x).__mro__)
    return isinstance(x, _BATCHED) or any(module.startswith(_BATCHED_MODULES) for module in modules)


class TakesTextsAndIds:
    """The methods of a KerasHub task that take data. Each argument, and each batch, is preprocessed if it is no ids."""

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if are_ids(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return super().preprocess_samples(x, y, sample_weight)

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
        if not brings_batches(x) and not brings_batches(validation_data):
            kwargs |= dict(validation_data=validation_data, validation_split=validation_split)
            return super().fit(x, y, batch_size, sample_weight, **kwargs)
        if validation_data is not None:
            kwargs["validation_data"] = self._in_batches(
                *keras.utils.unpack_x_y_sample_weight(validation_data), batch_size
            )
        if brings_batches(x):
            kwargs |= dict(y=y, batch_size=batch_size, sample_weight=sample_weight)
            kwargs |= dict(validation_split=validation_split or 0.0)
        return keras.Model.fit(self, self._in_batches(x, y, sample_weight, batch_size), **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """See `keras_hub.models.CausalLM.evaluate`; `x` as in `fit`."""
        if not brings_batches(x) or kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(x, y, batch_size, sample_weight, **kwargs)
        kwargs |= dict(y=y, batch_size=batch_size, sample_weight=sample_weight)
        return keras.Model.evaluate(self, self._in_batches(x), **kwargs)

    def predict(self, x=None, batch_size=None, **kwargs):
        """See `keras_hub.models.CausalLM.predict`; `x` as in `fit`."""
        if not brings_batches(x):
            return super().predict(x, batch_size, **kwargs)
        return keras.Model.predict(self, self._in_batches(x), batch_size=batch_size, **kwargs)

    def _in_batches(self, x, y=None, sample_weight=None, batch_size=None):
        """Preprocessed batches in a form that Keras knows."""
        if not brings_batches(x):
            return _build_dataset(x, y, sample_weight, batch_size, self.preprocess_samples)
        if self.preprocessor is None:
            return x
        if isinstance(x, types.GeneratorType):
            return (self._prepared(batch) for batch in x)
        if isinstance(x, keras.utils.PyDataset):
            return x if are_ids(_unpacked(x[0])[0]) else _PreparedDataset(x, self._prepared)
        if are_ids(_unpacked(next(iter(x)))[0]):
            return x
        return _prepared_loader(x, self._prepared)

    def _prepared(self, batch):
        return self.preprocess_samples(*_unpacked(batch))


def _unpacked(batch):
    """`(x, y, sample_weight)` of a batch; a list of texts is `x`, not three things."""
    texts = isinstance(batch, (list, tuple)) and all(isinstance(each, str) for each in batch)
    return (list(batch), None, None) if texts else keras.utils.unpack_x_y_sample_weight(batch)


class _PreparedDataset(keras.utils.PyDataset):
    """`prepare` of every batch of another `PyDataset`."""

    def __init__(self, dataset, prepare):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.prepare = dataset, prepare

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.prepare(self.dataset[index])

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def _prepared_loader(loader, prepare):
    """`prepare` of every batch of a torch `DataLoader`."""
    import torch

    class Prepared(torch.utils.data.IterableDataset):
        def __len__(self):
            return len(loader)

        def __iter__(self):
            return map(prepare, loader)

    return torch.utils.data.DataLoader(Prepared(), batch_size=None)
