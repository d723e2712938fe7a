"""PassKey: does working memory hold a key over many blocks of filler? (the paper's section 3.2, at toy scale)

A key of random digits is stated at a random place in the first block, and asked for after up to hundreds of blocks of
noisy filler. Small models are trained from scratch with `model.fit`, then read texts of up to 520 blocks as streams in
fixed memory and generate the key. An answer counts if every digit is right.

    KERAS_BACKEND=tensorflow python examples/passkey.py --quick  # the other backends work too, and take longer
    KERAS_BACKEND=tensorflow python examples/passkey.py --seeds 3

`fam` has no memory segments. `bswaM` is block sliding window attention with M memory segments and no FAM, and
`bswa1_sg` stops the gradient through them (Transformer-XL). All are trained on the same number of steps of the same
size: first on texts of 2, 4 and 8 blocks with a question in every block, each until it is learned or `--lesson-steps`
are spent, then on sparse questions in whose answers random digits are read, so that no text repeats its key.
There, with `--training carried`, a row goes on from its own state from step to step, and restarts with a new key with
the probability that `--restart` gives it; `ShorterMemory` lets its memory age faster than it reads. With `--training
fresh` every row of every step starts anew; give it `--blocks 18`, as in the paper.

Results are written to `passkey.json`, `{model: {seed: {blocks: accuracy}}}`, and drawn in `passkey.png`. A run that is
interrupted goes on where its last epoch ended when it is started again with the same `--out`; other `--lengths` are
evaluated without training again. Two commands with other `--models` and the same `--out` can run side by side; the one
that ends last writes the whole table.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_hub
import numpy as np
from matplotlib.figure import Figure

import keras_fam

MODELS = {"fam": (0, False), "bswa0": (0, False), "bswa1": (1, False), "bswa2": (2, False), "bswa4": (4, False)}
MODELS["bswa1_sg"] = (1, True)
BLOCKS = (2, 4, 8)  # of one lesson after the other
LEARNED = 0.9  # share of digits at which a lesson ends
EPOCH, WARMUP = 20, 60  # steps
LENGTHS = (2, 4, 8, 18, 36, 64, 128, 260, 520)
QUICK = dict(models=["fam", "bswa1"], key_length=2, steps=500, lengths=[2, 4, 8, 18, 36, 64])


def build_model(name, options):
    memory_segments, stop_gradient = MODELS[name]
    stock = keras_hub.models.GemmaBackbone(
        vocabulary_size=options.task.vocabulary_size,
        num_layers=options.layers,
        num_query_heads=options.heads,
        num_key_value_heads=options.heads,
        hidden_dim=options.hidden_dim,
        intermediate_dim=options.intermediate_dim,
        head_dim=options.hidden_dim // options.heads,
    )
    backbone = keras_fam.FAMBackbone(
        stock,
        block_size=options.block_size,
        memory_segments=memory_segments,
        fam_length=options.fam_length if name == "fam" else 0,
        stop_gradient_memory=stop_gradient,
        stateful_batch_size=options.batch_size,
    )
    return keras_fam.FAMCausalLM(backbone)


def lessons(options, seed):
    """What is read in turn, `(name, stream)`: texts of growing length, then long ones that go on from step to step."""
    batch = options.batch_size
    for blocks in BLOCKS:
        yield f"{blocks} blocks", options.task.stream(batch, blocks, 1.0, seed, question_rate=1.0)
    restart = np.resize(options.restart, batch) if options.training == "carried" else 1.0
    restate = np.resize(options.restate, batch)
    stream = options.task.stream(
        batch, options.blocks, restart, seed, options.sparse, answer_noise=1.0, restate=restate
    )
    yield options.training, stream


class ShorterMemory(keras.callbacks.Callback):
    """Divides the memory that rows carry by a constant before every step: it then ages faster than it reads.

    FAM adds up what every block writes to it, `F = FF(norm(A)) + A` with `A = Attention + F`, and grows with the text.
    Every layer reads it through a norm, which hides its length: to divide F changes nothing that is read. But what a
    block adds turns a short F more than a long one. Divided by `factor`, F turns as it did when the text was so much
    younger, and a few steps turn it as far as hundreds of blocks do.
    """

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def on_train_batch_begin(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):  # On jax, `fit` keeps the variables' values to itself.
            self.model.jax_state_sync()
        for layer in self.model.backbone.transformer_layers:
            for weight in layer.carried_state:
                if weight.name == "carried_fam":
                    weight.assign(weight / self.factor)


class Progress(keras.callbacks.Callback):
    """Prints every epoch, and ends a lesson that is learned."""

    def __init__(self, lesson, until):
        super().__init__()
        self.lesson, self.until = lesson, until

    def on_epoch_end(self, epoch, logs=None):
        loss, digits = logs["loss"], logs["digits"]
        print(f"  step {(epoch + 1) * EPOCH}, {self.lesson}: loss {loss:.4f}, digits {digits:.3f}", flush=True)
        self.model.stop_training = digits > self.until


def train(lm, options, seed, folder):
    """Lesson after lesson; each epoch's end is kept in `folder`, and training goes on from there."""
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, options.steps - WARMUP, warmup_target=options.learning_rate, warmup_steps=WARMUP
    )
    lm.compile(
        optimizer=keras.optimizers.AdamW(rate, beta_2=options.beta_2, weight_decay=options.weight_decay, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="digits")],
        jit_compile=keras.config.backend() == "jax",
    )
    epochs = options.steps // EPOCH
    place = folder / "lesson.json"  # the lesson that training is in, and the epoch at which that began
    present, began = json.loads(place.read_text()) if place.exists() else (0, 0)
    for number, (name, stream) in list(enumerate(lessons(options, seed)))[present:]:
        place.write_text(json.dumps([number, began]))
        growing = number < len(BLOCKS)
        lm.fit(
            stream,
            steps_per_epoch=EPOCH,
            initial_epoch=began,
            epochs=min(epochs, began + options.lesson_steps // EPOCH) if growing else epochs,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
                Progress(name, until=LEARNED if growing else 1.0),
                ShorterMemory(options.shorten),
            ],
        )
        began = int(keras.ops.convert_to_numpy(lm.optimizer.iterations)) // EPOCH


def evaluate(lm, options, seed):
    """Share of whole keys that are generated right after each length, `{blocks: accuracy}`: one stream for all."""
    rng = np.random.default_rng([seed, 12345])
    pieces, keys = options.task.prompt_blocks(options.keys, max(options.lengths), rng)
    answers, state, accuracy = options.task.answers(keys), lm.initial_state(options.keys), {}
    for blocks, piece in enumerate(pieces, start=1):
        if blocks > max(options.lengths):
            break
        _, state = lm.stream(piece, state)
        if blocks not in options.lengths:
            continue
        token, aside, right = np.full((options.keys, 1), options.task.ask_id, "int32"), state, True
        for digit in range(options.key_length):
            logits, aside = lm.stream(token, aside)
            token = np.argmax(keras.ops.convert_to_numpy(logits)[:, -1:], axis=-1).astype("int32")
            right = right & (token[:, 0] == answers[:, digit])
        accuracy[str(blocks)] = float(right.mean())
    return accuracy


def evaluated(path, options):
    """What `evaluate` found, read from `path`, or None if that has not been done, or at other lengths."""
    accuracy = json.loads(path.read_text()) if path.exists() else {}
    return accuracy if all(str(blocks) in accuracy for blocks in options.lengths) else None


def draw(results, options, path):
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for name, by_seed in results.items():
        table = np.array([[run[str(n)] for n in options.lengths] for run in by_seed.values()])
        style = dict(linewidth=2.5, color="black") if name == "fam" else {}
        (line,) = axes.plot(options.lengths, table.mean(axis=0), "o-", label=name, **style)
        axes.fill_between(options.lengths, table.min(axis=0), table.max(axis=0), alpha=0.15, color=line.get_color())
    axes.set_xscale("log")
    axes.set_xticks(options.lengths, [str(n) for n in options.lengths])
    axes.minorticks_off()
    axes.axvline(options.blocks, color="gray", linewidth=0.8, linestyle=":")
    axes.set_xlabel("blocks of filler (dotted: blocks in one training step)")
    axes.set_ylabel("whole keys right")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def check_folder(options, parser):
    """Models of one folder are trained with the same settings."""
    own = {"models", "seeds", "lengths", "out", "quick", "task"}
    settings = {name: value for name, value in vars(options).items() if name not in own}
    path = options.out / "settings.json"
    if path.exists():
        for name, value in json.loads(path.read_text()).items():
            if settings.get(name) != value:
                parser.error(f"--out {options.out} holds runs with {name}={value}. Received: {settings.get(name)}.")
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a reduced version, under 5 minutes; other options still count")
    add("--models", nargs="+", default=list(MODELS), choices=MODELS)
    add("--seeds", type=int, default=1, help="how many runs of every model")
    add("--training", choices=["carried", "fresh"], default="carried")
    add("--steps", type=int, default=1600)
    add("--lesson-steps", type=int, default=400, help="at most so many steps at each growing length")
    add("--restart", type=float, nargs="+", default=[0.5, 0.2], help="shares of rows that restart, last lesson")
    add("--restate", type=float, nargs="+", default=[0.0], help="the same for rows that only state a new key")
    add("--shorten", type=float, default=4.0, help="what carried memory is divided by before every step")
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=3e-3)
    add("--weight-decay", type=float, default=0.004)
    add("--beta-2", type=float, default=0.98)
    add("--block-size", type=int, default=16)
    add("--fam-length", type=int, default=8)
    add("--hidden-dim", type=int, default=96)
    add("--intermediate-dim", type=int, default=384, help="both halves of the gated feed-forward")
    add("--heads", type=int, default=6)
    add("--layers", type=int, default=3)
    add("--key-length", type=int, default=5)
    add("--filler-length", type=int, default=23)
    add("--noise", type=float, default=0.1)
    add("--sparse", type=float, nargs="+", default=[0.0, 0.05, 0.15, 0.4], help="questions a block, last lesson")
    add("--blocks", type=int, default=8, help="blocks of a piece in the last lesson")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="blocks, for evaluation")
    add("--keys", type=int, default=100, help="held-out texts for evaluation")
    add("--out", type=pathlib.Path, default=pathlib.Path("passkey"))
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    options.lengths = sorted(options.lengths)
    if options.steps <= WARMUP:
        parser.error(f"--steps must be above {WARMUP}, the steps of the warm-up. Received: {options.steps}.")
    options.task = keras_fam.data.PassKeyTask(
        options.block_size, options.key_length, options.filler_length, options.noise
    )
    check_folder(options, parser)
    return options


def main():
    options = parse()
    for seed in range(options.seeds):
        for name in options.models:
            folder = options.out / f"{name}-{seed}"
            result = folder / "accuracy.json"
            if evaluated(result, options):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            start = time.time()
            print(f"{name}, seed {seed}, {keras.config.backend()}", flush=True)
            keras.utils.set_random_seed(seed)
            lm = build_model(name, options)
            train(lm, options, seed, folder)
            result.write_text(json.dumps(evaluate(lm, options, seed)))
            print(f"  {result.read_text()} ({time.time() - start:.0f} s)", flush=True)
    results = {}
    for name in MODELS:
        for path in sorted(options.out.glob(f"{name}-*/accuracy.json")):
            if accuracy := evaluated(path, options):
                results.setdefault(name, {})[path.parent.name.rpartition("-")[2]] = accuracy
    (options.out / "passkey.json").write_text(json.dumps(results, indent=1))
    print("\n| model | " + " | ".join(map(str, options.lengths)) + " |\n|---", end="")
    print("|---" * len(options.lengths) + "|")
    for name, by_seed in results.items():
        means = [np.mean([run[str(n)] for run in by_seed.values()]) for n in options.lengths]
        print(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    draw(results, options, options.out / "passkey.png")


if __name__ == "__main__":
    main()
