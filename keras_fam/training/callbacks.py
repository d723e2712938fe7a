"""Training tools for `model.fit`."""

from collections.abc import Callable

import keras

from keras_fam.checks import check_probability


class RandomStatePassingSchedule(keras.callbacks.Callback):
    """Changes the probability of random state passing while `fit` runs.

    A small model that starts with a high probability can fail to learn at all: keep it at 0 until the task is learned
    at short length, then raise it. The model must be made with `random_state_passing` above 0.

    Args:
        schedule: callable from the number of training steps so far, int, to a probability in [0, 1].

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
        self.step = 0

    def on_train_batch_begin(self, batch, logs=None):
        backbone = getattr(self.model, "backbone", self.model)
        if hasattr(self.model, "jax_state_sync"):  # On jax, `fit` keeps the variables' values to itself.
            self.model.jax_state_sync()
        backbone.random_state_passing = check_probability("schedule", self.schedule(self.step))
        self.step += 1
