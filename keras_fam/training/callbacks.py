"""Training tools for `model.fit`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_fam.checks import check_probability
from keras_fam.training.state_passing import RandomStatePassing


class RandomStatePassingSchedule(keras.callbacks.Callback):
    """Changes the probability of random state passing while `fit` runs.

    A small model that starts with a high probability can fail to learn at all: keep it at 0 until the task is learned
    at short length, then raise it. The model must be made with `random_state_passing` above 0.

    Args:
        schedule: callable from the number of training steps so far, int, to a probability in [0, 1]. Steps are counted
            by the optimizer: those of an earlier run too, if its weights were loaded.

    Raises:
        TypeError: `schedule` is not callable.

    Example:

    ```python
    lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en", random_state_passing=0.8)
    lm.fit(texts, callbacks=[keras_fam.RandomStatePassingSchedule(lambda step: min(0.8, step / 10_000))])
    ```
    """

    def __init__(self, schedule: Callable[[int], float]):
        super().__init__()
        if not callable(schedule):
            raise TypeError(
                f"`schedule` must be callable. Received: schedule={schedule!r} of type {type(schedule).__name__}."
            )
        self.schedule = schedule

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses a model that has nothing to schedule.

        Args:
            logs: not used.

        Raises:
            ValueError: a model that was made with `random_state_passing` of 0.
        """
        if not self._deciders():
            raise ValueError(
                "`RandomStatePassingSchedule` needs a model that was made with random_state_passing above 0. Received: "
                f"{self.model.name!r}, which has no random state passing."
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the probability of the step that begins.

        Args:
            batch: int, not used: steps are counted by the optimizer.
            logs: not used.

        Raises:
            TypeError, ValueError: the schedule gave no number in [0, 1].
        """
        if hasattr(self.model, "jax_state_sync"):  # On jax, `fit` keeps the variables' values to itself.
            self.model.jax_state_sync()
        optimizer = getattr(self.model, "optimizer", None)
        steps = 0 if optimizer is None else int(ops.convert_to_numpy(optimizer.iterations))
        probability = check_probability("schedule", self.schedule(steps))
        for layer in self._deciders():
            layer.probability.assign(probability)

    def _deciders(self):
        return [layer for layer in self.model._flatten_layers() if isinstance(layer, RandomStatePassing)]
