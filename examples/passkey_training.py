"""How `passkey.py` builds its models and trains them: one lesson after the other, each on texts of `PassKeyTask`."""

import csv
import json
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np

import keras_fam

# (memory segments, gradient stopped through them) of each model.
MODELS = dict.fromkeys(("fam", "fam_sum", "bswa0"), (0, False))
MODELS |= {"bswa1": (1, False), "bswa2": (2, False), "bswa4": (4, False), "bswa1_sg": (1, True)}
EPOCH, WARMUP = 20, 60  # steps


class Lesson(NamedTuple):
    """Texts to learn from, until a share of the digits is right."""

    blocks: int
    restart: Any  # share of rows that begin a new text at a step, or one for each of several rows
    restate: Any = 0.0  # share of the other rows that state a new key
    questions: Any = 1.0  # a block
    noise: float = 0.0  # share of the digits read in answers that are random
    learned: float = 0.9  # 1: it goes on for all the steps it is given, and the rate falls to zero
    rate: float = 1.0  # share of the learning rate
    disturb: float = 0.0  # see `DisturbedMemory`
    rows: int | None = None  # of a batch, if not as many as before
    parts: int = 1  # in which a piece may state a key each
    clip: float = 1.0  # the longest gradient of a weight; of longer ones the direction is left
    evenly: bool = False  # a row counts as much as another, however often it is asked
    until: float | None = None  # share of all steps at which it ends at the latest, in place of `--lesson-steps`

    def __str__(self):
        kind = ", restated" if np.any(self.restate) else ""
        kind += ", random answers" if self.noise else ""
        kind += f", {self.rows} rows" if self.rows else ""
        return f"{self.blocks} blocks{kind}{' in parts' if self.parts > 1 else ''}"


# What comes before the last lesson. Without restated keys: longer texts that repeat their key in each answer.
GROWING = (Lesson(2, 1.0), Lesson(4, 1.0), Lesson(8, 1.0))
# With them: to copy a key at all; to let an old key go; to tell statements from digits that are merely read; length.
REWRITTEN = (
    Lesson(2, 1.0),
    Lesson(2, 0.3, 0.7, learned=0.92),
    Lesson(2, 0.3, 0.7, noise=1.0, learned=0.93),
    Lesson(4, 0.3, 0.7, noise=1.0, learned=0.95, rate=2 / 3),
    Lesson(8, 0.2, 0.6, questions=0.5, noise=1.0, learned=0.95, rate=1 / 2),
    Lesson(8, 0.1, 0.5, questions=0.3, noise=1.0, learned=0.95, rate=1 / 3),
)
# Of several keys: a statement must leave the others as they are, and shows that where keys follow each other at once.
# Four layers, which they want, break at steps that three bear: a few gradients are much longer than most.
SEVERAL = (
    Lesson(2, 1.0, clip=0.1),
    Lesson(2, 0.3, 0.7, learned=0.92, clip=0.1, until=0.087),
    Lesson(2, 0.3, 0.7, noise=1.0, learned=1.0, clip=0.1, until=0.207),
    Lesson(4, 0.3, 0.7, noise=1.0, learned=1.0, rate=2 / 3, parts=2, clip=0.1, until=0.385),
    Lesson(8, 0.2, 0.7, noise=1.0, learned=1.0, rate=1 / 3, parts=4, clip=0.1, until=0.534),
)
# Keys that live for long, on disturbed memory: what comes before longer pieces.
AGED = Lesson(8, (0.05, 0.02), (0.5, 0.3, 0.15), noise=1.0, learned=1.0, rate=1 / 3, until=0.4525)


def build_model(name, options, span, rows):
    """`keras_fam.FAMCausalLM` from scratch, for batches of `rows`; `span` is that of `fam` alone."""
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
        fam_length=options.fam_length if name.startswith("fam") else 0,
        stop_gradient_memory=stop_gradient,
        stateful_batch_size=rows,
        memory_span=span if name == "fam" else None,
    )
    return keras_fam.FAMCausalLM(backbone)


def rebuilt(lm, name, options, span, rows):
    """A new model with the weights of `lm`."""
    new = build_model(name, options, span, rows)
    for weight, trained in zip(new.trainable_weights, lm.trainable_weights, strict=True):
        weight.assign(trained)
    return new


def lessons(options, seed):
    """What is read in turn, `(lesson, stream)`."""
    last = Lesson(options.blocks, options.restart, options.restate, options.sparse, 1.0, 1.0, rate=1 / 3, until=1.0)
    before = GROWING
    if options.training == "rewritten":
        several = options.task.num_keys > 1
        before, last = SEVERAL if several else REWRITTEN, last._replace(disturb=options.disturb)
        if (longer := options.blocks // AGED.blocks) > 1:
            rate = 1 / 10 if several else 1 / 6
            # Some gradients are a hundred times as long as most: clipped, they cannot undo what those do.
            last = last._replace(rows=max(1, options.batch_size // longer), rate=rate, clip=0.02)
            # A piece states one key at most; then keys follow each other as soon as after 2 blocks.
            once = last._replace(restate=(0.9, 0.75, 0.5), until=0.667)
            if not several:
                before = (*before, AGED._replace(questions=options.sparse, disturb=options.disturb))
                once = once._replace(restart=(0.1, 0.05), until=0.6222)
            before = (*before, once)
            # Questions so dense that keys are learned, and so seldom that they must live without.
            last = last._replace(parts=options.blocks // 2, questions=(0.0, 0.05, 0.4, 1.0), evenly=True)
    for lesson in (*before, last):
        rows = lesson.rows or options.batch_size
        restart, restate = (np.resize(x, rows) for x in (lesson.restart, lesson.restate))
        yield (
            lesson,
            options.task.stream(
                rows, lesson.blocks, restart, seed, lesson.questions, lesson.noise, restate, lesson.parts
            ),
        )


def latest_end(lesson, options, began):
    """The epoch at which a lesson ends, if it is not learned before."""
    if lesson.until is None:
        return min(options.steps // EPOCH, began + max(1, options.lesson_steps // EPOCH))
    return max(began + 1, int(options.steps * lesson.until) // EPOCH)


def change_memory(model, change):
    """Lets `change` make new values of what FAM holds for the rows that go on, `[batch, fam_length, dim]` a layer."""
    if hasattr(model, "jax_state_sync"):  # On jax, `fit` keeps the variables' values to itself.
        model.jax_state_sync()
    for layer in model.backbone.transformer_layers:
        for weight in layer.carried_state:
            if weight.name == "carried_fam":
                weight.assign(change(weight))


class GoingOn(keras.utils.PyDataset):
    """A lesson's stream from a later batch on."""

    num_batches = None

    def __init__(self, stream, skipped, evenly):
        super().__init__()
        self.stream, self.skipped, self.evenly = stream, skipped, evenly

    def __getitem__(self, index):
        inputs, targets, weights = self.stream[self.skipped + index]
        return inputs, targets, even(weights) if self.evenly else weights


def even(weights):
    """Weights `[rows, length]` whose rows sum to the same, all together to what they did; rows of zeros stay."""
    of_rows = weights.sum(axis=1, keepdims=True)
    each = of_rows.sum() / np.maximum(1, (of_rows > 0).sum())
    return (weights / np.maximum(of_rows, 1) * each).astype(weights.dtype)


class ShorterMemory(keras.callbacks.Callback):
    """Divides the memory that rows carry by a constant before every step: it then ages faster than it reads.

    Without a span, FAM adds up what every block writes to it, `F = FF(norm(A)) + A` with `A = Attention + F`, and grows
    with the text. Every layer reads it through a norm, which hides its length: to divide F changes nothing that is
    read. But what a block adds turns a short F more than a long one. Divided by `factor`, F turns as it did when the
    text was so much younger, and a few steps turn it as far as hundreds of blocks do.
    """

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def on_train_batch_begin(self, batch, logs=None):
        change_memory(self.model, lambda fam: fam / self.factor)


class DisturbedMemory(keras.callbacks.Callback):
    """Adds noise to the memory that rows carry before every step, so that a key must be a state that memory returns to.

    Every row draws how strong its noise is, between 0 and `strength` times the length of each of its vectors. What is
    written on reading a disturbed F is asked of the weights as if nothing had happened: small errors, which add up
    over the blocks of a long text, are then mended in each. Steps are as reproducible as without it.
    """

    def __init__(self, strength, seed):
        super().__init__()
        self.strength, self.seed = strength, seed

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        rng = np.random.default_rng([self.seed, self.epoch, batch])

        def disturbed(fam):
            share = rng.uniform(0, self.strength, (fam.shape[0], 1, 1)) / np.sqrt(fam.shape[-1])
            noise = keras.ops.convert_to_tensor(share * rng.standard_normal(fam.shape), fam.dtype)
            return fam + noise * keras.ops.norm(fam, axis=-1, keepdims=True)

        change_memory(self.model, disturbed)


class Progress(keras.callbacks.Callback):
    """Prints every epoch, and ends a lesson that is learned."""

    def __init__(self, lesson):
        super().__init__()
        self.lesson = lesson

    def on_epoch_end(self, epoch, logs=None):
        loss, digits = logs["loss"], logs["digits"]
        print(f"  step {(epoch + 1) * EPOCH}, {self.lesson}: loss {loss:.4f}, digits {digits:.3f}", flush=True)
        self.model.stop_training = digits > self.lesson.learned


def lesson_rate(lesson, options, began):
    """`epoch -> learning rate`: it rises at the start, and is level or falls to zero in a lesson."""
    end = latest_end(lesson, options, began)

    def rate(epoch, _=None):
        falling = 0.5 * (1 + np.cos(np.pi * (epoch - began) / (end - began))) if lesson.learned == 1 else 1.0
        new = epoch - began if lesson.rows else epoch  # epochs that the optimizer has seen
        return float(options.learning_rate * lesson.rate * min(1.0, (new + 1) * EPOCH / WARMUP) * falling)

    return keras.callbacks.LearningRateScheduler(rate)


def best_epoch(weights, log):
    """Callbacks that keep the weights of the epoch with the smallest loss; a run that goes on knows those before."""
    before = csv.DictReader(log.read_text().splitlines() if log.exists() else [])
    smallest = min((float(epoch["loss"]) for epoch in before), default=None)
    return [
        keras.callbacks.ModelCheckpoint(
            weights, "loss", mode="min", save_best_only=True, save_weights_only=True, initial_value_threshold=smallest
        ),
        keras.callbacks.CSVLogger(log, append=True),
    ]


def compile_model(lm, options, lesson):
    """On long pieces steps shrink as gradients vanish. Without that a model that had every digit right broke."""
    rate = options.learning_rate
    if options.training != "rewritten":  # one rate for all lessons
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, options.steps - WARMUP, warmup_target=rate, warmup_steps=WARMUP
        )
    lm.compile(
        optimizer=keras.optimizers.AdamW(
            rate,
            beta_2=options.beta_2,
            weight_decay=options.weight_decay,
            clipnorm=lesson.clip,
            amsgrad=lesson.rows is not None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="digits")],
        jit_compile=keras.config.backend() == "jax" or (keras.config.backend() == "tensorflow" and options.xla),
    )


def train(name, options, seed, folder):
    """A model, trained lesson after lesson; each epoch's end is kept in `folder`, and training goes on from there."""
    lm = build_model(name, options, options.span, options.batch_size)
    place = folder / "lesson.json"  # the lesson that training is in, and the epoch at which that began
    weights = folder / "lesson.weights.h5"  # with which it began, if it has rows of its own
    present, began = json.loads(place.read_text()) if place.exists() else (0, 0)
    plan = list(lessons(options, seed))
    if plan[present][0].rows:
        lm.backbone.load_weights(weights)
    for number, (lesson, stream) in list(enumerate(plan))[present:]:
        if lesson.rows and number > present:
            lm.backbone.save_weights(weights)
        place.write_text(json.dumps([number, began]))
        if lesson.rows:
            lm = rebuilt(lm, name, options, options.span, lesson.rows)
        if lesson.rows or number == present:
            compile_model(lm, options, lesson if lesson.rows else plan[0][0])  # Those without share one optimizer.
        backup = folder / (f"backup-{number}" if lesson.rows else "backup")
        place_in_lesson = backup / "training_metadata.json"
        done = json.loads(place_in_lesson.read_text())["epoch"] - began if place_in_lesson.exists() else 0
        callbacks = [keras.callbacks.BackupAndRestore(backup, delete_checkpoint=False), Progress(lesson)]
        if options.training == "rewritten":
            callbacks.append(lesson_rate(lesson, options, began))
        if lm.backbone.fam_length and lm.backbone.memory_span is None and options.shorten != 1:
            callbacks.append(ShorterMemory(options.shorten))
        if lm.backbone.memory_span is not None and lesson.disturb:
            callbacks.append(DisturbedMemory(lesson.disturb, seed))
        best = folder / "best.weights.h5"
        if number == len(plan) - 1 and lesson.rows:
            callbacks += best_epoch(best, folder / "last_lesson.csv")
        lm.fit(
            GoingOn(stream, done * EPOCH, lesson.evenly),
            steps_per_epoch=EPOCH,
            initial_epoch=began,
            epochs=latest_end(lesson, options, began),
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        seen = int(keras.ops.convert_to_numpy(lm.optimizer.iterations)) // EPOCH
        began = began + seen if lesson.rows else seen  # On other rows the optimizer is a new one.
    if lesson.rows:
        lm.load_weights(best)
    return lm
