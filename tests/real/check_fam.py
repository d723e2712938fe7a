"""Checks FAM on presets with real weights, by hand, one backend at a time:

    KERAS_BACKEND=jax python tests/real/check_fam.py --text TEXT_FILE FOLDER [FOLDER ...]

The text must have 32,768 tokens. Prints one row for each check of each preset as it is done;
greedy text is to be read by a person. Ends with status 1 if a check fails. `--only parity,stream` does some of them.
"""

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
from keras import ops
from measure import continued, nats_per_token, start_and_text

import keras_fam

SIZES = {"block_size": 256, "memory_segments": 1, "fam_length": 16, "memory_gate": -6.0}  # of all checks but the first
TOKENS, STREAM, CHUNK, TRAINED = 2048, 32_768, 2048, 600


def load(preset, **arguments):
    keras.utils.set_random_seed(0)
    return keras_fam.FAMCausalLM.from_preset(preset, **{**SIZES, "dtype": "float32", **arguments})


def hidden_states(backbone, ids):
    return backbone.predict({"token_ids": ids, "padding_mask": np.ones_like(ids)}, verbose=0).astype("float32")


def resident():
    """MiB of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


# === Checks: `(what was found, in words, whether it is good)` ===


def parity(preset, ids):
    """FAM off, and all in one block: the stock model."""
    stock = keras_hub.models.Backbone.from_preset(preset, dtype="float32")
    expected = hidden_states(stock, ids[:, :TOKENS])
    backbone = keras_fam.FAMBackbone(stock, block_size=TOKENS, memory_segments=0, fam_length=0)
    difference = np.abs(hidden_states(backbone, ids[:, :TOKENS]) - expected).max()
    size = np.abs(expected).max()
    words = f"largest difference {difference:.1e}, of hidden states up to {size:.0f}: {difference / size:.1e}"
    return words, difference / size <= 1e-5 and difference <= 1e-3


def stream(preset, ids):
    """Time and memory of chunks early and late."""
    backbone = load(preset).backbone
    state, seconds, mib = backbone.initial_state(1), [], []
    for first in range(0, STREAM, CHUNK):
        start = time.perf_counter()
        hidden, state = backbone.stream(ids[:, first : first + CHUNK], state)
        finite = np.isfinite(ops.convert_to_numpy(hidden)).all()
        seconds.append(time.perf_counter() - start)
        mib.append(resident())
    early, late = (np.median(x) for x in (seconds[2:6], seconds[-4:]))
    words = f"chunk {early:.1f} s early, {late:.1f} s late; {mib[3]:,.0f} MiB after 8,192, {mib[-1]:,.0f} at the end"
    return words, bool(finite) and mib[-1] - mib[3] < 64 and late < 1.5 * early


def generation(preset, ids, prompt="The old man looked out over the sea and"):
    """Greedy text, across a boundary of blocks."""
    text = continued(load(preset, block_size=16, fam_length=8), prompt, 48)
    return repr(text), text.startswith(prompt) and len(text) > len(prompt) + 20


def lora(preset, ids):
    """Two steps move every adapter (the first kernels of a pair have no gradient in the first step); saved and back."""
    lm = load(preset)
    words, good = _train(lm, ids)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.lora.safetensors")
        lm.save_lora_weights(path)
        expected = hidden_states(lm.backbone, ids[:, :TRAINED])
        del lm
        gc.collect()
        other = load(preset)
        plain = hidden_states(other.backbone, ids[:, :TRAINED])
        other.load_lora_weights(path)
        restored = hidden_states(other.backbone, ids[:, :TRAINED])
    difference, changed = np.abs(restored - expected).max(), np.abs(plain - expected).max()
    words += f"; saved and loaded: hidden states differ by {difference:.1e} (without adapters by {changed:.1e})"
    return words, good and difference <= 1e-3 < changed


def bfloat16(preset, ids):
    exact, rounded = (nats_per_token(load(preset, dtype=dtype), ids[:, :1024]) for dtype in ("float32", "bfloat16"))
    return f"float32 {exact:.3f}, bfloat16 {rounded:.3f} nats a token", abs(rounded - exact) < 0.05


def int8(preset, ids):
    lm = load(preset)
    exact = nats_per_token(lm, ids[:, :1024])
    lm.quantize("int8")
    rounded = nats_per_token(lm, ids[:, :1024])
    words, good = _train(lm, ids)
    return f"float32 {exact:.3f}, int8 {rounded:.3f} nats a token; {words}", good and abs(rounded - exact) < 0.2


def _train(lm, ids, steps=2):
    lm.preprocessor = None  # The ids are made already.
    lm.enable_lora(rank=8)
    lm.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs = {"token_ids": ids[:, :TRAINED], "padding_mask": np.ones_like(ids[:, :TRAINED])}
    trainable = lm.trainable_variables
    before = [ops.convert_to_numpy(variable) for variable in trainable]
    losses = [float(np.ravel(lm.train_on_batch(inputs, ids[:, 1 : TRAINED + 1]))[0]) for _ in range(steps)]
    after = [ops.convert_to_numpy(variable) for variable in trainable]
    moved = sum(not np.array_equal(*pair) for pair in zip(before, after))
    words = (
        f"LoRA, {steps} steps: loss {losses[0]:.3f}, then {losses[-1]:.3f}; {moved} of {len(trainable)} weights moved"
    )
    return words, moved == len(trainable) and losses[-1] < losses[0]


CHECKS = {
    "parity": parity,
    "stream": stream,
    "generate": generation,
    "lora": lora,
    "bfloat16": bfloat16,
    "int8": int8,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="preset folders")
    parser.add_argument("--text", required=True, help="a text file")
    parser.add_argument("--only", default=",".join(CHECKS), help="checks, with commas between")
    options = parser.parse_args()
    text = Path(options.text).read_text(encoding="utf-8")
    good = True
    print(f"{keras.config.backend()}\n| preset | check | found | holds |\n| --- | --- | --- | --- |")
    for folder in options.folders:
        lm = keras_hub.models.CausalLM.from_preset(folder, load_weights=False)
        ids = start_and_text(lm, text, STREAM)
        del lm
        for name in options.only.split(","):
            words, holds = CHECKS[name](folder, ids)
            good &= bool(holds)
            print(f"| {Path(folder).name} | {name} | {words} | {'yes' if holds else 'NO'} |", flush=True)
            gc.collect()
    sys.exit(not good)


if __name__ == "__main__":
    main()
