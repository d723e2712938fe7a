"""Measurements in a process of their own, printed as one line of JSON, a list.

    KERAS_BACKEND=jax python benchmarks/measure.py speed '{"names": ["fam"], "length": 2048, "mode": "train"}'

`run.py` starts one such process for every measurement, so that peak memory is that of the measurement alone; those of
`--tiny` share one.
"""

import gc
import json
import os
import resource
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import models
import numpy as np
from keras import ops
from size import Size

from keras_fam.backend import loops

MIB = 2**20


def step_of(lm, size, length, mode, rows=1):
    """One call that a user makes: `predict_on_batch`, or `train_on_batch`, the step of `fit`."""
    inputs, targets = models.batch(size.vocabulary_size, length, rows)
    if mode == "forward":
        return lambda: np.asarray(lm.predict_on_batch(inputs)).sum()
    return lambda: float(np.asarray(lm.train_on_batch(inputs, targets)).ravel()[0])


def in_turn(steps, repeats):
    """Seconds of each of several functions, measured in turn after one call of each to warm up: `{name: [seconds]}`."""
    seconds = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def resident():
    """MiB of memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MIB


def accelerator_memory():
    """MiB that are held on the accelerator now and were at most, or None where this backend has none."""
    if keras.config.backend() == "torch":
        import torch

        found = torch.cuda.is_available() and (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
    elif keras.config.backend() == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()  # None on CPU
        found = stats and (stats["bytes_in_use"], stats["peak_bytes_in_use"])
    else:
        import tensorflow as tf

        info = tf.config.list_physical_devices("GPU") and tf.config.experimental.get_memory_info("GPU:0")
        found = info and (info["current"], info["peak"])
    return tuple(x / MIB for x in found) if found else None


class PeakMemory:
    """Context manager: by how many MiB the process grew at most inside, sampled every 2 ms."""

    def __enter__(self):
        self.before, self.mib, self.running = resident(), 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while self.running:
            self.mib = max(self.mib, resident() - self.before)
            time.sleep(0.002)

    def __exit__(self, *error):
        self.running = False
        self.thread.join()


def speed(size, names, length, mode, repeats, dtype="float32"):
    """Seconds a step of several models at one length, in turn."""
    keras.config.set_dtype_policy(dtype)
    steps = {name: step_of(models.language_model(models.MODELS[name](size)), size, length, mode) for name in names}
    return in_turn(steps, repeats)


def speed_by_length(size, name, lengths, mode, repeats):
    """Seconds a step at several lengths, in turn.

    Each has a model of its own: tensorflow's second graph of one model is for any length.
    """
    steps = {
        str(length): step_of(models.language_model(models.MODELS[name](size)), size, length, mode) for length in lengths
    }
    return in_turn(steps, repeats)


def memory(size, name, length, mode, repeats, remat=False):
    """MiB by which the process grows in the first step, the compilation included, and seconds of later ones."""
    with keras.RematScope("full" if remat else None):
        lm = models.language_model(models.MODELS[name](size))
    step_of(lm, size, size.block_size // 8, mode)()  # What any first step loads and builds is not this length's.
    step = step_of(lm, size, length, mode)
    with PeakMemory() as peak:
        seconds = in_turn({name: step}, repeats)[name]
    return {"mib": peak.mib, "seconds": seconds}


def lora_step(size, loss, length, repeats, preset=None, gguf=None, dtype="float32", remat=False, **options):
    """MiB at most and by how much the steps grew to it, seconds of later steps, and the first step's loss.

    Memory is the accelerator's, if there is one, and else the process's. `loss` "peft" is a step of `transformers` and
    `peft` on the weights of the file `gguf`.
    """
    if loss == "peft":
        import peers

        step = peers.lora(gguf, length, dtype, remat)
    else:
        lm = models.with_lora(size, loss, preset=preset, dtype=dtype, remat=remat, **options)
        inputs, targets = models.batch(lm.backbone.vocabulary_size, length)

        def step():
            return float(np.asarray(lm.train_on_batch(inputs, targets)).ravel()[0])

    gc.collect()
    seconds, values, before = [], [], accelerator_memory()
    with PeakMemory() as process:
        for _ in range(1 + repeats):
            start = time.perf_counter()
            values.append(step())
            seconds.append(time.perf_counter() - start)
    peak, grown = process.before + process.mib, process.mib
    if before:
        peak = accelerator_memory()[1]
        grown = peak - before[0]
    return {"peak": peak, "step": grown, "seconds": seconds[1:], "loss": values[0]}


def stream(size, tokens, chunk, repeats):
    """A stream of `tokens` tokens in chunks: memory held after every chunk, and seconds a chunk at its end and anew."""
    lm = models.language_model(models.fam(size))
    ids = np.random.default_rng(0).integers(0, size.vocabulary_size, (1, chunk)).astype("int32")

    def read(state):
        logits, state = lm.stream(ids, state)
        ops.convert_to_numpy(logits)
        return state

    state = early = read(lm.initial_state(1))
    mib = []
    for _ in range(tokens // chunk):
        state = read(state)
        mib.append(resident())
    seconds = in_turn({"late": lambda: read(state), "early": lambda: read(early)}, repeats)
    return {"mib": mib, "seconds": seconds}


def decode(size, contexts, tokens):
    """Seconds a token of single-token `stream` calls after contexts of several lengths, in turn."""
    lm = models.language_model(models.fam(size))
    ids = np.random.default_rng(0).integers(0, size.vocabulary_size, (1, max(contexts))).astype("int32")
    states = {str(context): lm.stream(ids[:, :context], lm.initial_state(1))[1] for context in contexts}

    def step(context):
        logits, states[context] = lm.stream(ids[:, :1], states[context])
        return ops.convert_to_numpy(logits)

    return in_turn({context: lambda context=context: step(context) for context in states}, tokens)


def rings(size, names, context, tokens):
    """A stream's MiB, and seconds a token of single-token `stream` calls after a context, of several models in turn."""
    ids = np.random.default_rng(0).integers(0, size.vocabulary_size, (1, context)).astype("int32")
    lms = {name: models.language_model(models.MODELS[name](size)) for name in names}
    states = {name: lm.stream(ids, lm.initial_state(1))[1] for name, lm in lms.items()}
    arrays = {name: map(ops.convert_to_numpy, keras.tree.flatten(state)) for name, state in states.items()}
    mib = {name: sum(x.nbytes for x in parts) / MIB for name, parts in arrays.items()}

    def step(name):
        logits, states[name] = lms[name].stream(ids[:, :1], states[name])
        return ops.convert_to_numpy(logits)

    return {"mib": mib, "seconds": in_turn({name: lambda name=name: step(name) for name in names}, tokens)}


def generate(size, name, contexts, tokens, repeats):
    """Seconds a token of `generate` after prompts of several lengths: two lengths of text, one taken from the other."""
    lm = models.language_model(models.MODELS[name](size))
    ids = np.random.default_rng(0).integers(0, size.vocabulary_size, (1, max(contexts))).astype("int32")

    def run(context, new):
        padded = np.zeros((1, context + tokens), "int32")
        padded[:, :context] = ids[:, :context]
        mask = np.arange(context + tokens)[None] < context + tokens - new
        padded[:, context : context + tokens - new] = 1
        inputs = {"token_ids": padded, "padding_mask": mask.astype("int32")}
        return lm.generate(inputs, max_length=context + tokens, stop_token_ids=None)

    steps = {f"{c}+{new}": (lambda c=c, new=new: run(c, new)) for c in contexts for new in (1, tokens)}
    seconds = in_turn(steps, repeats)
    return {
        str(c): [(a - b) / (tokens - 1) for a, b in zip(seconds[f"{c}+{tokens}"], seconds[f"{c}+1"])] for c in contexts
    }


def compile_time(size, blocks, unrolled=None, jit_compile="auto"):
    """Seconds of the first training step of a text of so many blocks, less those of a later one; and of the later one.

    `unrolled` is how many blocks tensorflow does not loop over, if it is to be another number than the package's.
    """
    if unrolled is not None:
        loops.UNROLLED = unrolled
    lm = models.language_model(models.fam(size), jit_compile=jit_compile)
    step, seconds = step_of(lm, size, blocks * size.block_size, "train"), []
    with PeakMemory() as peak:
        for _ in range(4):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    later = min(seconds[1:])
    return {"seconds": seconds[0] - later, "step": later, "mib": peak.mib}


def peers(size, names, tokens, repeats):
    """Seconds a training step of this package and of its peers, and how many weights each has."""
    import peers

    steps, weights = {}, {}
    for name in names:
        steps[name], weights[name] = peers.STEPS[name](size, tokens)
    return {"seconds": in_turn(steps, repeats), "weights": weights}


MEASUREMENTS = (speed, speed_by_length, memory, lora_step, stream, decode, rings, generate, compile_time, peers)

if __name__ == "__main__":
    functions, results = {function.__name__: function for function in MEASUREMENTS}, []
    for name, arguments in zip(sys.argv[1::2], map(json.loads, sys.argv[2::2])):
        keras.config.set_dtype_policy("float32")
        results.append(functions[name](Size(**arguments.pop("size", {})), **arguments))
    print(json.dumps(results))
