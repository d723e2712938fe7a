"""Peak memory and time of one LoRA step with a big vocabulary: the loss in pieces against the loss of all logits.

    python benchmarks/loss.py --backends torch
    python benchmarks/loss.py --preset FOLDER --lengths 2048 8192 --dtype bfloat16

Every figure comes from a process of its own. `chunked` is this package's default loss, `plain` the loss of all logits
on the same model, `stock` KerasHub's own model with its own loss. Memory is the process's peak, and by how much that is
more than the process held before the step. Time is the median of the steps after the first.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

MODELS = ("chunked", "plain", "stock")
SIZE = dict(num_layers=2, num_query_heads=4, num_key_value_heads=4, head_dim=32, hidden_dim=128, intermediate_dim=512)
MIB = 2**10  # ru_maxrss is in KiB.


def language_model(name, options):
    """A model with LoRA, compiled for training."""
    import keras
    import keras_hub

    import keras_fam

    memory = dict(block_size=options.block_size, memory_segments=1, fam_length=16)
    kind = keras_hub.models.CausalLM if name == "stock" else keras_fam.FAMCausalLM
    if options.preset:
        lm = kind.from_preset(options.preset, dtype=options.dtype, **({} if name == "stock" else memory))
    else:
        backbone = keras_hub.models.GemmaBackbone(options.vocabulary, dtype=options.dtype, **SIZE)
        if name == "stock":
            lm = keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)
        else:
            lm = keras_fam.FAMCausalLM(keras_fam.FAMBackbone(backbone, **memory))
    lm.preprocessor = None
    (lm.backbone if name == "stock" else lm).enable_lora(rank=8)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = keras_fam.ChunkedCrossentropy(options.piece) if name == "chunked" else plain
    lm.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss)
    return lm


def measure(name, length, options):
    """Peak memory in MiB and seconds a step of one model at one length, in this process."""
    import numpy as np

    lm = language_model(name, options)
    ids = np.random.default_rng(0).integers(0, lm.backbone.vocabulary_size, (1, length + 1)).astype("int32")
    x, y = {"token_ids": ids[:, :-1], "padding_mask": np.ones((1, length), "int32")}, ids[:, 1:]
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize() / 2**20
    seconds = []
    for _ in range(1 + options.repeats):
        start = time.perf_counter()
        loss = float(np.asarray(lm.train_on_batch(x, y)[0]))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    return {"peak": peak, "step": peak - before, "seconds": statistics.median(seconds[1:]), "loss": loss}


def in_a_process(backend, name, length):
    """`measure` in a fresh process, or `{"failed": why}`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(length)]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    if done.returncode < 0:
        return {"failed": f"killed by signal {-done.returncode}: out of memory, most likely"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(backend, length, name, found, chunked):
    """One line of the table; ratios are to the loss in pieces."""
    if "failed" in found:
        return f"| {backend} | {length:,} | {name} | {found['failed']} | | | |"
    ratios = [
        f" ({found[key] / chunked[key]:.2f})" if "failed" not in chunked else "" for key in ("peak", "step", "seconds")
    ]
    cells = f"{found['peak']:,.0f}{ratios[0]} | {found['step']:,.0f}{ratios[1]} | {found['seconds']:.2f}{ratios[2]}"
    return f"| {backend} | {length:,} | {name} | {cells} | {found['loss']:.4f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096])
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--piece", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--preset", help="a preset in place of a small model with random weights")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything works")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.lengths, options.vocabulary, options.piece, options.block_size = [256], 4096, 64, 64
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options)))
        return
    print("| backend | tokens | loss | peak MiB (ratio) | of the step, MiB (ratio) | seconds (ratio) | value |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for backend in options.backends:
        for length in options.lengths:
            chunked = {"failed": ""}
            for name in options.models:
                found = in_a_process(backend, name, length)
                chunked = found if name == "chunked" else chunked
                failed = failed or "failed" in found
                print(row(backend, length, name, found, chunked), flush=True)
    if options.tiny and failed:
        sys.exit("A measurement failed.")


if __name__ == "__main__":
    main()
