"""How well a model with memory reads texts of any length: nats a token of each page, in memory of fixed size.

    KERAS_BACKEND=jax python examples/perplexity.py
    KERAS_BACKEND=jax python examples/perplexity.py --preset gpt2_base_en --block-size 256 book.txt another.txt

Without arguments it needs no network and about a minute of two CPU cores: a small stock model is trained on the Python
Language Reference that every CPython carries, saved as a preset, given memory, and reads Python's held-out topics, its
license and the Zen of Python. Its memory is not trained here: `examples/finetune.py` does that.
"""

import argparse
import codecs
import contextlib
import io
import os
import pathlib
import pydoc_data
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from stock_models import build_stock_model, python_reference

import keras_fam


def train_preset(folder, family, steps):
    """Saves a small stock model, trained for some steps on windows of 128 tokens."""
    text, _ = python_reference()
    stock = build_stock_model(family, text, 128)
    ids = np.asarray(stock.preprocessor.tokenizer(text))
    windows = ids[: len(ids) // 129 * 129].reshape(-1, 129)
    windows = windows[np.random.default_rng(0).permutation(len(windows))[: steps * 4]]
    inputs = {"token_ids": windows[:, :-1], "padding_mask": np.ones_like(windows[:, :-1])}
    stock.compile(
        optimizer=keras.optimizers.AdamW(2e-3), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    preprocessor, stock.preprocessor = stock.preprocessor, None
    stock.fit(inputs, windows[:, 1:], batch_size=4, verbose=2)
    stock.preprocessor = preprocessor
    stock.save_to_preset(folder)
    return folder


def python_texts(folder):
    """Files of text that ships with Python: topics held out from training, the license, the Zen."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    texts = dict(zip(("topic-1", "topic-2", "topic-3", "topic-4"), python_reference()[1]))
    texts["zen"] = codecs.decode(this.s, "rot13")
    for path in pathlib.Path(pydoc_data.__file__).parent.parent.glob("LICENSE.txt"):
        texts["license"] = path.read_text()
    paths = []
    for name, text in texts.items():
        paths.append(pathlib.Path(folder) / f"{name}.txt")
        paths[-1].write_text(text)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="text files in UTF-8 (default: texts of Python's)")
    parser.add_argument("--preset", help="a preset's name, handle or folder (default: a small model, trained here)")
    parser.add_argument("--family", choices=("gpt2", "gemma"), default="gemma", help="of the model without --preset")
    parser.add_argument("--steps", type=int, default=300, help="training steps without --preset")
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--memory-segments", type=int)
    parser.add_argument("--fam-length", type=int)
    parser.add_argument("--page", type=int, default=1024, help="tokens of a page")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    memory = {name: getattr(options, name) for name in ("block_size", "memory_segments", "fam_length")}
    memory = {name: value for name, value in memory.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        preset = options.preset
        if preset is None:
            preset = train_preset(os.path.join(folder, "stock"), options.family, options.steps)
            memory = {"block_size": 64, "memory_segments": 1, "fam_length": 8, **memory}
        paths = options.files or python_texts(folder)
        lm = keras_fam.FAMCausalLM.from_preset(preset, **memory)
        print(keras_fam.summary(lm))
        result = lm.perplexity(paths, page=options.page, verbose=int(sys.stdout.isatty()))
    print(f"{result.tokens:,} tokens: {result.nats:.4f} nats a token, perplexity {result.perplexity:.2f}")
    for path, pages in zip(paths, result.pages):
        print(f"{path.name}: {' '.join(f'{page:.3f}' for page in pages)}")


if __name__ == "__main__":
    main()
