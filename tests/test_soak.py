"""A stream of 1,000,000 tokens whose process is killed again and again loses nothing."""

import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from helpers.models import numpy
from helpers.reads_and_saves import model, read

import keras_fam

TESTS = pathlib.Path(__file__).parent


def start(path, tokens, dtype):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-m", "helpers.reads_and_saves", str(path), str(tokens), dtype]
    return subprocess.Popen(command, cwd=TESTS, env=environment)


def saved_at(path):
    return path.stat().st_mtime_ns if path.exists() else None


def kill_again_and_again(path, tokens, dtype, kills):
    """Lets the stream be read to its end by one process after the other; returns how many were killed."""
    rng, killed = np.random.default_rng(0), 0
    while True:
        process, before = start(path, tokens, dtype), saved_at(path)
        if killed < kills:
            while process.poll() is None and saved_at(path) == before:  # Each process gets somewhere.
                time.sleep(0.01)
            time.sleep(rng.random())
            if process.poll() is None:
                process.kill()
                process.wait()
                killed += 1
                continue
        assert process.wait() == 0
        return killed


def soak(tmp_path, tokens, dtype, kills):
    path = tmp_path / "state.npz"
    killed = kill_again_and_again(path, tokens, dtype, kills)
    backbone = model(dtype)
    *_, expected = read(backbone, backbone.initial_state(1), tokens, lambda place: 2048)
    found = keras_fam.load_state(path)
    assert found.tokens == expected.tokens == [tokens]
    assert [each for each in os.listdir(tmp_path) if each != path.name] == []
    tolerance = 1e-4 if dtype == "float32" else 0.05
    for x, y in zip(keras.tree.flatten(numpy(found)), keras.tree.flatten(numpy(expected))):
        x, y = x.astype("float64"), y.astype("float64")
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()))
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_million_tokens(tmp_path, dtype):
    assert soak(tmp_path, 1_000_000, dtype, kills=8) > 0
