"""Runs the tests on jax, tensorflow and torch: `python tests/run_backends.py [pytest arguments]`.

jax and tensorflow compile every new model. Of tests that are marked `shared_out`, whose subject is the same on every
backend, they run an eighth of the cases each, and torch runs all. `KERAS_BACKEND=jax python -m pytest` runs all on jax.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")  # The longest first.
ROOT = Path(__file__).resolve().parent.parent


def run(backend, arguments):
    """One pytest process: its exit code, its output and how many seconds it took."""
    start = time.time()
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "--share-out", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout, time.time() - start


def main(arguments):
    """As many backends at once as there are cores: more would wait for each other, and take longer for it."""
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {pool.submit(run, backend, arguments): backend for backend in BACKENDS}
        for done in as_completed(runs):
            code, output, seconds = done.result()
            print(f"===== KERAS_BACKEND={runs[done]} ({seconds:.0f} s) =====\n{output}", flush=True)
            if code:
                failed.append(runs[done])
    print(f"failed on: {', '.join(failed)}" if failed else f"passed on: {', '.join(BACKENDS)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
