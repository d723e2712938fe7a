"""Does memory that is carried from step to step beat training on windows that start anew?

    KERAS_BACKEND=jax python examples/documents.py
    KERAS_BACKEND=jax python examples/documents.py --files book1.txt book2.txt --held-out book3.txt

Small Gemma-shaped models are trained from scratch, at equal steps on the same tokens: with FAM and with block sliding
window attention alone (BSWA), each once with the memory carried from step to step, row by row (`stateful_batch_size`),
and once with every step starting anew. Held-out text is then read as a stream in fixed memory, and its loss printed and
drawn against the position in the document. Without arguments the text is the Python Language Reference that every
CPython carries.
"""

import argparse
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib  # noqa: F401  (drawn with at the end; missed at once)
import numpy as np
from stock_models import build_stock_model, python_reference

import keras_fam
from keras_fam.plots.loss import loss_by_position


def write_documents(folder, text, count):
    """`text` as files of about equal size, cut between paragraphs."""
    paragraphs, paths = text.split("\n\n"), []
    share = len(text) / count
    for index in range(count):
        part, size = [], 0
        while paragraphs and (size < share or index == count - 1):
            part.append(paragraphs.pop(0))
            size += len(part[-1]) + 2
        paths.append(folder / f"{index}.txt")
        paths[-1].write_text("\n\n".join(part))
    return paths


def train(name, stock, stream, options):
    kind, training = name.split(", ")
    keras.utils.set_random_seed(options.seed)
    config = stock.backbone.get_config()
    backbone = keras_fam.FAMBackbone(
        type(stock.backbone).from_config(config),
        block_size=options.block_size,
        memory_segments=options.memory_segments,
        fam_length=options.fam_length if kind == "FAM" else 0,
        stateful_batch_size=options.batch_size if training == "carried" else None,
    )
    lm = keras_fam.FAMCausalLM(backbone)
    lm.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(options.learning_rate, options.epochs * stream.num_batches)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.config.backend() == "jax",
    )
    start = time.time()
    history = lm.fit(stream, epochs=options.epochs, shuffle=False, verbose=0)
    print(f"{name}: training loss {history.history['loss'][-1]:.3f} ({time.time() - start:.0f} s)", flush=True)
    return lm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", type=pathlib.Path, help="text files to train on, one document each")
    parser.add_argument("--held-out", nargs="+", type=pathlib.Path, default=[], help="text files to score")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--memory-segments", type=int, default=1)
    parser.add_argument("--fam-length", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens per row and step")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--length", type=int, default=3072, help="tokens of each held-out document that are scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("documents.png"))
    options = parser.parse_args()
    if bool(options.files) != bool(options.held_out):
        parser.error("--files and --held-out belong together.")

    if options.files:
        text = "\n\n".join(path.read_text() for path in options.files)
        held_out = [path.read_text() for path in options.held_out]
    else:
        text, held_out = python_reference()
    stock = build_stock_model("gemma", text, 1024)
    tokenizer = stock.preprocessor.tokenizer
    scored = [np.asarray(tokenizer(document)) for document in held_out]
    scored = np.array([ids[: options.length] for ids in scored if len(ids) >= options.length])
    if not len(scored):
        parser.error(f"No held-out document has --length {options.length} tokens.")
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = options.files or write_documents(pathlib.Path(folder), text, options.batch_size)
        for name in ("FAM, carried", "FAM, fresh", "BSWA, carried", "BSWA, fresh"):
            stream = keras_fam.data.DocumentStream(
                paths, tokenizer, options.batch_size, options.sequence_length, seed=options.seed
            )
            models[name] = train(name, stock, stream, options)
    edges = np.linspace(0, options.length - 1, 5).astype(int)
    print(f"\n{len(scored)} held-out documents, nats per token by position")
    print("| | " + " | ".join(f"{a} to {b}" for a, b in zip(edges, edges[1:])) + " | all |\n|---" + "|---" * 5 + "|")
    for name, lm in models.items():
        values = loss_by_position(lm, scored)
        parts = [values[:, a:b].mean() for a, b in zip(edges, edges[1:])]
        print(f"| {name} | " + " | ".join(f"{part:.3f}" for part in [*parts, values.mean()]) + " |")
    keras_fam.plot_loss_by_position(models, scored, bin_size=options.block_size * 2).savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
