"""Teaches a pretrained model to use its memory, and measures what it remembers: PassKey in words, texts, or both.

    python benchmarks/remember/train.py --tokens tokens.npz --preset FOLDER --name key
    python benchmarks/remember/train.py --tokens tokens.npz --preset FOLDER --name text --key-rows 0 --steps 300 ...

With `--teacher`, rows of text are learned from what the frozen model with full attention holds for likely at each
place. Writes `NAME.json`, as it goes, and the adapters `NAME.lora.safetensors` to the folder `--out`. A run of
`--steps` goes on from its last probe if it was interrupted, with rows that begin anew and a new optimizer.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import keras_hub
import numpy as np
from probes import hold, overwrite, text_losses
from teacher import Pupil, frequent_words, hidden_states
from texts import batches

import keras_fam

EPOCH, WARMUP = 20, 60  # steps

# What the batches of PassKey hold (see `texts.batches`), and from which share of the run on.
LESSONS = {
    "learn": (
        (0.0, dict(restart=0.5, sentences=10, restate=0.0, noise=0.0)),
        (0.3, dict(restart=0.3, sentences=10, restate=0.2, noise=0.5)),
        (0.6, dict(restart=0.1, sentences=16, restate=0.2, noise=0.7)),
    ),
    # Keys live for some 30 blocks and not for 6: goes on from adapters that have learned.
    "lengthen": ((0.0, dict(restart=0.04, sentences=16, restate=0.03, noise=0.7)),),
}


def build(options, start_token_id, words):
    stock = keras_hub.models.Backbone.from_preset(options.preset, dtype=options.dtype)
    keras.utils.set_random_seed(options.seed)
    memory = dict(fam_length=options.fam_length)
    if options.fam_length:
        memory |= dict(memory_gate=options.gate, memory_span=options.span or None)
    backbone = keras_fam.FAMBackbone(
        stock,
        block_size=options.block_size,
        memory_segments=0,
        sink_token_id=start_token_id,
        stateful_batch_size=options.key_rows + options.text_rows,
        **memory,
    )
    return Pupil(backbone, words) if options.teacher else keras_fam.FAMCausalLM(backbone)


class Plan(keras.callbacks.Callback):
    """The learning rate and the stage of every epoch, by time or by steps; stops at the end, and probes on the way."""

    def __init__(self, options, stage, arrays, report):
        super().__init__()
        self.options, self.stage, self.arrays, self.report = options, stage, arrays, report
        self.started = None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 or self.started is None:  # The first epoch compiles.
            self.started = time.time()
        options = self.options
        done = (time.time() - self.started) / (60 * options.minutes) if epoch else 0.0
        if options.steps:
            done = epoch * EPOCH / options.steps
        self.stage.update([values for begin, values in LESSONS[options.lessons] if begin <= done][-1])
        falling = min(1.0, 2.5 * max(1 - done, 0.02))  # The last two fifths fall to nearly zero.
        self.model.optimizer.learning_rate = options.rate * falling * min(1.0, (epoch + 1) * EPOCH / WARMUP)

    def on_epoch_end(self, epoch, logs=None):
        entry = {"step": (epoch + 1) * EPOCH, "seconds": round(time.time() - self.started, 1), **_rounded(logs)}
        if (epoch + 1) % self.options.probe == 0:
            if hasattr(self.model, "jax_state_sync"):  # On jax, `fit` keeps the variables' values to itself.
                self.model.jax_state_sync()
            self.model.save_lora_weights(adapters(self.options))
            if self.options.key_rows:
                entry["hold"] = hold(self.model.backbone, self.arrays, (1, 2, 4, 16), self.options.texts)
        self.report("log", entry)
        if self.options.steps == 0 and time.time() - self.started > 60 * self.options.minutes:
            self.model.stop_training = True


def adapters(options):
    """The file of what is trained; an interrupted run leaves those of its last probe."""
    return str(options.out / f"{options.name}.lora.safetensors")


def _rounded(logs):
    return {name: round(float(value), 4) for name, value in (logs or {}).items()}


def measure(lm, arrays, options, report):
    """What this run is measured on, to the report."""
    report("text", text_losses(lm, arrays, *options.held_out))
    if options.key_rows:
        report("hold", hold(lm.backbone, arrays, options.hold, options.texts))
        report("overwrite", overwrite(lm.backbone, arrays, 64, (1, 2, 8, 32), options.texts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", required=True, help="of `texts.py`")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, default=Path("remember"))
    parser.add_argument("--key-rows", type=int, default=40)
    parser.add_argument("--text-rows", type=int, default=8)
    parser.add_argument("--teacher", type=Path, help="file of what the frozen model holds for likely; made if need be")
    parser.add_argument("--words", type=int, help="of so many tokens, the texts' most frequent; else of all")
    parser.add_argument("--text-weight", type=float, default=0.1, help="of a token of text; of a digit it is 1")
    parser.add_argument("--length", type=int, default=384, help="tokens of a row a step")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--fam-length", type=int, default=16)
    parser.add_argument("--gate", type=float, default=0.0)
    parser.add_argument("--span", type=float, default=1.0, help="0 for the plain sum")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--memory-only", action="store_true", help="adapters act on FAM alone")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=7.4, help="if no steps are given; 0 to measure only")
    parser.add_argument("--probe", type=int, default=15, help="epochs of 20 steps between probes, which save too")
    parser.add_argument("--piece", type=int, default=4096)
    parser.add_argument("--held-out", type=int, nargs=2, default=(16, 8192), help="rows and tokens of held-out text")
    parser.add_argument("--texts", type=int, default=100, help="PassKey texts that are asked")
    parser.add_argument("--hold", type=int, nargs="+", default=(2, 4, 8, 18, 36, 64, 128, 260))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--no-xla", dest="xla", action="store_false", help="tensorflow's own bfloat16 is faster on CPU")
    parser.add_argument("--resume", help="adapters to begin with")
    parser.add_argument("--lessons", choices=LESSONS, default="learn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    began, found = time.time(), {"options": {k: str(v) for k, v in vars(options).items()}, "log": []}
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / f"{options.name}.json"
    if options.steps and written.exists():
        before = json.loads(written.read_text())
        if before["options"] != found["options"]:
            parser.error(f"{written} is of a run with other options. Received: --name {options.name}")
        found["log"] = before["log"][: len(before["log"]) // options.probe * options.probe]
    done = len(found["log"])  # epochs

    def report(name, value):
        if name == "log":
            found["log"].append(value)
        else:
            found[name] = value
        print(f"[{time.time() - began:5.0f} s] {options.name} {name}: {json.dumps(value)}", flush=True)
        written.write_text(json.dumps(found, indent=1))

    arrays = dict(np.load(options.tokens))
    if arrays["train"].shape[1] < options.length:
        longest = arrays["train"].shape[1]
        parser.error(f"--length must be at most {longest}, the tokens of a piece of text. Received: {options.length}")
    start, words, states = int(arrays["start"][0]), None, None
    if options.teacher:
        states = hidden_states(options.teacher, options.preset, arrays["train"], start, options.dtype)
        words = frequent_words(arrays, options.words) if options.words else None
    lm = build(options, start, words)
    lm.enable_lora(options.rank, memory_only=options.memory_only)
    if options.resume or done:
        lm.load_lora_weights(adapters(options) if done else options.resume)
    lm.compile(
        optimizer=keras.optimizers.AdamW(options.rate, weight_decay=0.0, beta_2=0.98, global_clipnorm=1.0),
        loss=keras_fam.ChunkedCrossentropy(piece=options.piece),
        jit_compile=options.xla and keras.config.backend() != "torch",
    )
    report("trained_weights", sum(int(np.prod(w.shape)) for w in lm.trainable_weights))
    stage = dict(LESSONS[options.lessons][0][1])
    rows = (options.key_rows, options.text_rows, options.length, options.text_weight)
    data = batches(arrays, *rows, [options.seed, done], stage, states, words)
    if options.steps or options.minutes:
        lm.fit(
            data,
            steps_per_epoch=EPOCH,
            epochs=options.steps // EPOCH if options.steps else 10**6,
            initial_epoch=done,
            verbose=0,
            callbacks=[Plan(options, stage, arrays, report)],
        )
        lm.save_lora_weights(adapters(options))
    measure(lm, arrays, options, report)


if __name__ == "__main__":
    main()
