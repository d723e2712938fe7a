"""One backend per run: the one in KERAS_BACKEND."""

import atexit
import collections
import gc
import os
import tempfile
from importlib.metadata import distributions

# Small models, compiled often and run once: XLA's optimizations would be most of the time.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# A version that does not know a flag ends the process.
if any(each.name == "jax" and each.version.startswith("0.10.") for each in distributions()):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Many tests compile the same small program: jax keeps each for as long as the run takes.
_programs = tempfile.TemporaryDirectory()
atexit.register(_programs.cleanup)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _programs.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import pytest
from helpers.models import fam_backbone
from helpers.refusals import snapshot

import keras_fam

# Tracing makes many small objects that stay: fewer searches among them.
gc.set_threshold(10_000, 10, 10)


def keep():
    """What lives now stays and is searched no more: Keras collects garbage whenever a layer drops a variable."""
    gc.collect()
    gc.freeze()


keep()


@pytest.fixture(autouse=True, scope="module")
def what_a_module_leaves():
    """Backends keep their compiled programs: after an hour of tests, a search of those alone would take a second."""
    yield
    keep()


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def lm():
    return keras_fam.FAMCausalLM(fam_backbone("gpt2"))


@pytest.fixture
def unchanged(lm):
    """Holds that the shared model is, after the test, what it was before."""
    before = snapshot(lm)
    yield
    assert snapshot(lm) == before


def pytest_addoption(parser):
    parser.addoption(
        "--share-out", action="store_true", help="of `shared_out` tests, jax and tensorflow run an eighth each"
    )


def pytest_collection_modifyitems(config, items):
    """Of what no backend has for itself, torch runs every case: it compiles nothing. The others run an eighth each."""
    mine = {"jax": 0, "tensorflow": 1}.get(keras.config.backend())
    if mine is None or not config.getoption("--share-out"):
        return
    shared = [item for item in items if item.get_closest_marker("shared_out") and not item.get_closest_marker("skipif")]
    counts = collections.Counter(item.nodeid.partition("[")[0] for item in shared)
    cases = collections.defaultdict(list)
    for item in shared:
        test = item.nodeid.partition("[")[0]
        cases[test if counts[test] > 1 else item.path].append(item)  # Tests of one case take turns in their file.
    left_out = {item for same in cases.values() for i, item in enumerate(same) if turn(i) != mine}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def turn(i):
    """0 to 7, the sum of the digits to base 8: whatever a case is made of, each value of it has every turn."""
    return (i + turn(i // 8)) % 8 if i else 0


def pytest_report_header():
    return f"keras {keras.__version__}, backend {keras.config.backend()}"
