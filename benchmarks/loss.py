"""Peak memory and time of one LoRA step with a big vocabulary: the loss in pieces against the loss of all logits.

    python benchmarks/loss.py --backends torch
    python benchmarks/loss.py --preset FOLDER --lengths 2048 8192 --dtype bfloat16
    pip install transformers peft gguf && python benchmarks/loss.py --backends torch --preset FOLDER --gguf FILE

Every figure comes from a process of its own. `chunked` is this package's default loss, `plain` the loss of all logits
on the same model, `stock` KerasHub's own model with its own loss, `peft` the model of a GGUF file by `transformers` and
`peft`. LoRA is on queries and values. Memory is the peak of the accelerator, or of the process where there is none, and
by how much that is more than was held before the step. Time is the median of the steps after the first.
"""

import argparse
import statistics
import sys

import plan
from run import measure

LOSSES = ("chunked", "plain", "stock", "peft")

SHARED = ("repeats", "piece", "preset", "gguf", "dtype", "remat")


def row(backend, length, loss, found, chunked):
    """One line of the table; ratios are to the loss in pieces."""
    if "failed" in found:
        return f"| {backend} | {length:,} | {loss} | {found['failed']} | | | |"
    cells = []
    for key, form in (("peak", ",.0f"), ("step", ",.0f"), ("seconds", ".2f")):
        ratio = f" ({found[key] / chunked[key]:.2f})" if key in chunked else ""
        cells.append(f"{found[key]:{form}}{ratio}")
    return f"| {backend} | {length:,} | {loss} | {' | '.join(cells)} | {found['loss']:.4f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, help="default: all that can run")
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096])
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--piece", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--preset", help="a preset in place of a small model with random weights")
    parser.add_argument("--gguf", help="the file that the preset was made of, for `peft`")
    parser.add_argument("--remat", action="store_true", help="every layer is computed again in the gradient")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything works")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one measurement")
    options = parser.parse_args()
    losses = options.losses or (LOSSES if options.gguf else LOSSES[:-1])
    if "peft" in losses and (options.backends != ["torch"] or not options.gguf):
        parser.error("`peft` takes --gguf FILE and --backends torch.")
    if options.tiny:
        options.lengths, options.vocabulary, options.piece, options.block_size = [256], 4096, 64, 64
    size = dict(plan.SMALL, block_size=options.block_size, vocabulary_size=options.vocabulary)
    shared = dict(size=size, **{name: getattr(options, name) for name in SHARED})
    print("| backend | tokens | loss | peak MiB (ratio) | of the step, MiB (ratio) | seconds (ratio) | value |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for backend in options.backends:
        for length in options.lengths:
            chunked = {}
            for loss in losses:
                step = ("lora_step", dict(shared, loss=loss, length=length))
                [found] = measure(backend, step, timeout=options.timeout)
                if "seconds" in found:
                    found["seconds"] = statistics.median(found["seconds"])
                chunked = found if loss == "chunked" else chunked
                failed = failed or "failed" in found
                print(row(backend, length, loss, found, chunked), flush=True)
    if options.tiny and failed:
        sys.exit("A measurement failed.")


if __name__ == "__main__":
    main()
