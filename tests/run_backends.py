"""Runs the tests on jax, tensorflow and torch: `python tests/run_backends.py [pytest arguments]`.

jax and tensorflow compile every new model. Of tests that are marked `shared_out`, whose subject is the same on every
backend, they run a third of the cases each, and torch runs all. `KERAS_BACKEND=jax python -m pytest` runs all on jax.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
# torch takes a third of the time: where it gives way to the other two, no core waits for them in the end.
GIVES_WAY = "torch" if hasattr(os, "nice") else None
ROOT = Path(__file__).resolve().parent.parent


def main(arguments):
    """One pytest process per backend, all at once; each one's output when it is done."""
    start, running = time.time(), {}
    for backend in BACKENDS:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": "1"}
        running[backend] = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--share-out", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=(lambda: os.nice(5)) if backend == GIVES_WAY else None,
        )
    failed = []
    for backend, process in running.items():
        output, _ = process.communicate()
        print(f"===== KERAS_BACKEND={backend} ({time.time() - start:.0f} s) =====\n{output}", flush=True)
        if process.returncode:
            failed.append(backend)
    print(f"failed on: {', '.join(failed)}" if failed else f"passed on: {', '.join(BACKENDS)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
