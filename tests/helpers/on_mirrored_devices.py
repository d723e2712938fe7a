"""tensorflow, two devices with `MirroredStrategy`: `python -m helpers.on_mirrored_devices FOLDER` writes results."""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from helpers.training import LOSS, ROWS, batches, fit, language_model, left_by_training


def run(scope, rows):
    """What one device keeps of rows 0 to `ROWS // 2`, and all else that training leaves."""
    with scope:
        lm = language_model("gemma3", rows, lora=True)
        lm.compile(keras.optimizers.SGD(0.1), LOSS)
    results = fit(lm)
    states = [part for v in lm.non_trainable_variables if "carried" in v.path for part in parts(v)]
    before = [state.numpy() for state in states]
    x, y = batches()
    loss = lm.evaluate(x, y, batch_size=ROWS, verbose=0, return_dict=True)["loss"]
    for state, value in zip(states, before):  # Each device has its own back.
        np.testing.assert_array_equal(state.numpy(), value)
    return {**results, "evaluated": np.array(loss), **left_by_training(lm, slice(0, ROWS // 2))}


def parts(variable):
    """A variable's values on each device."""
    return getattr(variable.value, "values", [variable.value])


def main(folder):
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    np.savez(folder / "one.npz", **run(contextlib.nullcontext(), ROWS))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    np.savez(folder / "mirrored.npz", **run(strategy.scope(), ROWS // 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
