"""A sequence without language: which flag stood at the start of a time series, asked up to 50 blocks later?

    KERAS_BACKEND=jax python examples/sequence.py

A noisy wave of two channels. In the first block, channel 1 jumps once, up or down: the flag. At every step from there
on the model says which way it jumped. Two models of the same layers, in Keras's functional API, learn it in as many
steps on the same series of up to 8 blocks: `FAMDecoderBlock` with FAM, and without, which is block sliding window
attention (BSWA). Both are then asked on fresh series, also of lengths that neither was trained on. Guessing is right
half of the time. It needs no network and about a minute and a half of one CPU core.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_fam

BLOCK, WIDTH, LAYERS, MEMORY_SEGMENTS = 8, 32, 2, 1


def build(fam_length):
    """A classifier of every step of a series `[batch, length, 2]`: one logit a step."""
    series = keras.Input((None, 2))
    x = keras.layers.Dense(WIDTH)(series)
    fam = keras_fam.FAMPrompt(fam_length)(x) if fam_length else None
    for _ in range(LAYERS):
        block = keras_fam.FAMDecoderBlock(
            num_query_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            intermediate_dim=64,
            block_size=BLOCK,
            memory_segments=MEMORY_SEGMENTS,
        )
        x, fam = block(x, fam) if fam_length else (block(x), None)
    x = keras.layers.RMSNormalization()(x)
    return keras.Model(series, keras.layers.Dense(1)(x))


def make(random, rows, blocks):
    """Series `[rows, blocks * BLOCK, 2]`, the flags at each step, and weights that are 0 before the flag."""
    length = blocks * BLOCK
    steps = np.arange(length)
    phase, pace = random.uniform(0, 6.3, (rows, 1)), random.uniform(0.2, 0.8, (rows, 1))
    series = np.stack([np.sin(pace * steps + phase), np.zeros((rows, length))], axis=-1)
    series += random.normal(0, 0.1, series.shape)
    flags, places = random.integers(0, 2, rows), random.integers(0, BLOCK, rows)
    series[np.arange(rows), places, 1] += np.where(flags, 1.0, -1.0)
    labels = np.broadcast_to(flags[:, None, None], (rows, length, 1))
    return series.astype("float32"), labels.astype("float32"), (steps >= places[:, None]).astype("float32")


def train(model, lengths, steps, rows, seed):
    """`steps` of `rows` series of each length in turn, the learning rate falling to nothing at the end."""
    random = np.random.default_rng(seed)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps * len(lengths))
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, global_clipnorm=1.0),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    for blocks in lengths:
        start = time.time()
        for _ in range(steps):
            loss = model.train_on_batch(*make(random, rows, blocks))
        print(f"  {blocks:3} blocks: loss {float(loss):.3f}, {time.time() - start:.0f} s", flush=True)


def accuracy(model, blocks, rows, seed):
    """Share of right answers in the last block of fresh series."""
    series, labels, _ = make(np.random.default_rng(seed), rows, blocks)
    logits = model.predict(series, verbose=0)[:, -BLOCK:]
    return float(np.mean((logits > 0) == (labels[:, -BLOCK:] > 0.5)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fam-length", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="training steps of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 4, 8], help="blocks of the series to train on")
    parser.add_argument(
        "--test", type=int, nargs="+", default=[2, 3, 4, 8, 16, 51, 201], help="blocks to be asked after"
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = {}
    for name, fam_length in {"FAM": options.fam_length, "BSWA": 0}.items():
        keras.utils.set_random_seed(options.seed)
        model = build(fam_length)
        print(f"{name}: {model.count_params():,} weights", flush=True)
        train(model, options.lengths, options.steps, options.rows, options.seed)
        table[name] = [accuracy(model, blocks, 256, options.seed + 1) for blocks in options.test]
    reach = LAYERS * MEMORY_SEGMENTS
    print(f"\nright answers in the last block of 256 series; BSWA sees {reach} blocks back, through all its layers")
    print(f"{'blocks':8}" + "".join(f"{blocks:8}" for blocks in options.test))
    for name, row in table.items():
        print(f"{name:8}" + "".join(f"{right:8.3f}" for right in row))


if __name__ == "__main__":
    main()
