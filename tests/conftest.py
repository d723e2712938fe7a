"""One backend per run: the one in KERAS_BACKEND."""

import os

# Small models, compiled often and run once: XLA's optimizations would be most of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import keras
import pytest

import keras_fam  # noqa: F401  (registers the classes that presets name)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def pytest_report_header():
    return f"keras {keras.__version__}, backend {keras.config.backend()}"
