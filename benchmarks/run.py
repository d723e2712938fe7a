"""Measures speed and memory, and writes the table and the picture: `python benchmarks/run.py`.

Every measurement runs in a process of its own, one after the other; those of `--tiny` share one. Results are kept in
`results.json` as they come in; `--report` makes table and picture anew from it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from importlib.metadata import version

import plan
import report

HERE = pathlib.Path(__file__).parent


def measure(backend, *measurements, timeout):
    """Results of measurements that share a process, or `{"failed": why}` for each.

    Args:
        backend: str.
        *measurements: `(function, arguments)`, of `measure.py`.
        timeout: float, seconds.
    """
    command = [sys.executable, str(HERE / "measure.py")]
    command += [argument for function, arguments in measurements for argument in (function, json.dumps(arguments))]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        failed = f"not done after {timeout} s"
    else:
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
        errors = [line[:200] for line in done.stderr.splitlines() if "Error" in line]
        failed = (errors or [f"exit status {done.returncode}"])[-1]
        if done.returncode < 0:
            failed = f"killed by signal {-done.returncode}: out of memory, most likely"
    return [{"failed": failed} for _ in measurements]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything works")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder for results.json, results.md, speed.png")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one process")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    failed = False
    for backend in () if options.report else options.backends:
        planned = (plan.tiny if options.tiny else plan.full)(backend)
        names = [name for name in planned if options.only in name]
        for together in [names] if options.tiny else [[name] for name in names]:
            found = measure(backend, *(planned[name] for name in together), timeout=options.timeout)
            for name, result in zip(together, found):
                failed = failed or "failed" in result
                print(f"{backend}: {name}: {result.get('failed', 'done')}", flush=True)
            of_backend = results.setdefault(backend, {})
            packages = ("keras", "keras-hub", backend)
            of_backend.update(zip(together, found), versions={package: version(package) for package in packages})
            path.write_text(json.dumps(results, indent=1))
    table = report.table(results)
    (options.out / "results.md").write_text(table)
    report.draw(results, options.out / "speed.png")
    print(table)
    if options.tiny and failed:
        sys.exit("A measurement failed.")


if __name__ == "__main__":
    main()
