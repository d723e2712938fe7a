"""What a training run leaves in a model's layers."""

from typing import Any

from keras_fam.types import MixedIn


class SavesRunState(MixedIn):
    """A layer whose variables are saved by name, and loaded as far as they fit.

    The state that one training step leaves for the next belongs to the run: another run has another batch size, or
    another option, and begins with nothing.
    """

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Saves the variables by name.

        Args:
            store: dict-like, where Keras collects them.
        """
        for variable in self._trainable_variables + self._non_trainable_variables:
            store[variable.name] = variable

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Loads what has a place here. Files of version 0.1 number the variables.

        Args:
            store: dict-like, of `save_own_variables`.
        """
        for index, variable in enumerate(self._trainable_variables + self._non_trainable_variables):
            key = variable.name if variable.name in store else str(index)
            if key in store and tuple(store[key].shape) == tuple(variable.shape):
                variable.assign(store[key])
