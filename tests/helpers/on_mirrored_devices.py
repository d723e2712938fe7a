"""tensorflow, two devices with `MirroredStrategy`: `python -m helpers.on_mirrored_devices FOLDER` writes results."""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from helpers.training import LOSS, ROWS, fit, language_model, left_by_training


def run(scope, rows):
    """What one device keeps of rows 0 to `ROWS // 2`, and all else that training leaves."""
    with scope:
        lm = language_model("gemma3", rows, lora=True)
        lm.compile(keras.optimizers.SGD(0.1), LOSS)
    return {**fit(lm), **left_by_training(lm, slice(0, ROWS // 2))}


def main(folder):
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    np.savez(folder / "one.npz", **run(contextlib.nullcontext(), ROWS))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    np.savez(folder / "mirrored.npz", **run(strategy.scope(), ROWS // 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
