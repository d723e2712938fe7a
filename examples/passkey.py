"""Can a model hold a key over thousands of blocks, and take a new one? (section 3.2 of the paper, and on)

A key of random digits is stated in noisy filler, and asked for later. Small models are trained from scratch with
`model.fit`, then read long texts as streams in fixed memory and generate the key. An answer counts if every digit is
right. There are two yardsticks:

- *hold*: the key is stated once, in the first block, and asked for after up to 5,000 blocks (the paper's test);
- *overwrite*: new keys are stated again and again, at random distances, and the latest is asked for. Answers are told
  by the distance from its statement and by the age of the text; so are those that give the key before it. With
  `--num-keys 2` a text holds two keys at once, each with a name, and one of them is stated anew (*several*).

    KERAS_BACKEND=tensorflow python examples/passkey.py --quick  # the other backends work too, and take longer
    KERAS_BACKEND=tensorflow python examples/passkey.py --models fam fam_sum bswa2 --seeds 3

`fam` has no memory segments, and its memory is bounded: `--span` is `memory_span`, one number, or one for each vector.
`fam_sum` is the paper's plain sum. `bswaM` is block sliding window attention with M memory segments and no FAM, and
`bswa1_sg` stops the gradient through them (Transformer-XL). All are trained on the same number of steps of the same
size: first on texts of 2, 4 and 8 blocks, each until it is learned or `--lesson-steps` are spent, then on sparse
questions in whose answers random digits are read, so that no text repeats its key.

- `--training rewritten`: a row of a batch goes on from its own state from step to step in every lesson. It restarts
  with a new key with some probability, and else states a new key in one of the step's blocks with another (`--restart`
  and `--restate` for the last lesson). Random digits are read in answers as soon as keys are restated. Three lessons
  come last, in each of which the learning rate falls to zero and `DisturbedMemory` adds noise to what rows carry
  (`--disturb`): pieces of 8 blocks; pieces of 32 on a quarter of the rows, as many tokens a step, so that gradients
  reach back four times as far; and such pieces in which keys follow each other as soon as after 2 blocks, of whose
  epochs the best is kept. `--blocks 8` ends with pieces of 8.
  Several keys follow each other so from pieces of 4 blocks on, rates fall from the third lesson on, and models have 4
  layers.
- `--training carried`: no key is stated anew, and only the last lesson goes on from step to step. `ShorterMemory` lets
  the memory of `fam_sum` age faster than it reads. The learning rate falls from the first step on.
- `--training fresh`: every row of every step starts anew, on texts of 18 blocks, as in the paper.

Results are written to `passkey.json`, `{model: {seed: {"hold": {blocks: right}, "spread": {blocks: [a layer's]},
"overwrite": {age: {distance: [questions, right, previous]}}, "places": {"questions": [a key's [a place's]],
"wrong": [a key's [a digit's [a place's]]]}}}}`, and drawn in `passkey.png`; *spread* tells how far texts differ in what
each layer's FAM holds, *places* how many digits are wrong at the shortest distance, by where in its block the statement
began. A run that is interrupted goes on where its last epoch ended when it is started again with the same `--out`;
other `--lengths`, `--ages` and `--distances` are evaluated without training again. Two commands with other `--models`
and the same `--out` can run side by side; the one that ends last writes the whole table.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from matplotlib.figure import Figure
from passkey_evaluation import hold, overwrite
from passkey_training import MODELS, WARMUP, rebuilt, train

import keras_fam

LENGTHS = (2, 4, 8, 18, 36, 64, 128, 260, 520, 2000, 5000)
DISTANCES = (2, 8, 36, 128, 600)
AGES = (1, 100, 1000, 5000)
QUICK = dict(
    models=["fam_sum", "bswa1"],
    training="carried",
    key_length=2,
    steps=500,
    lengths=[2, 4, 8, 18, 36, 64],
    distances=[2, 8],
    ages=[1],
)
STATED = dict(  # what `--training` sets, if nothing else is said: shares of rows of the last lesson, noise, and steps
    rewritten=dict(blocks=32, restart=[0.3], restate=[0.4, 0.2, 0.1, 0.05], disturb=0.4, steps=7920),
    carried=dict(blocks=8, restart=[0.5, 0.2], restate=[0.0], disturb=0.0, steps=1600),
    fresh=dict(blocks=18, restart=[1.0], restate=[0.0], disturb=0.0, steps=1000),
)
SEVERAL = dict(steps=9000, layers=4)  # the same, of `--training rewritten` with several keys
EVALUATION = ("lengths", "distances", "ages", "keys", "use_span")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a reduced version; other options still count")
    add("--models", nargs="+", default=list(MODELS), choices=MODELS)
    add("--seeds", type=int, default=1, help="how many runs of every model")
    add("--training", choices=STATED, default="rewritten")
    add("--span", type=float, nargs="+", default=[1.0], help="memory_span of `fam`; 'LOW HIGH' are spread over vectors")
    add("--use-span", type=float, nargs="+", help="the same, for evaluation, if it is to be another than in training")
    add("--steps", type=int, help="of all lessons together")
    add("--lesson-steps", type=int, default=500, help="at most so many steps at each growing length")
    add("--restart", type=float, nargs="+", help="shares of rows that begin a new text at a step, last lesson")
    add("--restate", type=float, nargs="+", help="shares of others with a new key, in a piece or 2 blocks of long ones")
    add("--shorten", type=float, default=4.0, help="what carried memory of `fam_sum` is divided by before every step")
    add("--disturb", type=float, help="noise on carried memory before a step, as a share of its length")
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=3e-3)
    add("--weight-decay", type=float, default=0.004)
    add("--beta-2", type=float, default=0.98)
    add("--block-size", type=int, help="16, or what all statements and a question need")
    add("--fam-length", type=int, help="8 for every key")
    add("--hidden-dim", type=int, default=96)
    add("--intermediate-dim", type=int, default=384, help="both halves of the gated feed-forward")
    add("--heads", type=int, default=6)
    add("--layers", type=int, help="3, or 4 for several keys")
    add("--key-length", type=int, default=5)
    add("--num-keys", type=int, default=1, help="keys that a text holds at once")
    add("--filler-length", type=int, default=23)
    add("--noise", type=float, default=0.1)
    add("--sparse", type=float, nargs="+", default=[0.0, 0.05, 0.15, 0.4], help="questions a block of sparse lessons")
    add("--blocks", type=int, help="blocks of a piece in the last lesson")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="hold: blocks")
    add("--distances", type=int, nargs="+", default=list(DISTANCES), help="overwrite: blocks since the statement")
    add("--ages", type=int, nargs="+", default=list(AGES), help="overwrite: blocks of the text up to the statement")
    add("--keys", type=int, default=100, help="held-out texts for evaluation")
    add("--xla", action="store_true", help="tensorflow: steps take two thirds of the time, and minutes to compile")
    add("--out", type=pathlib.Path, default=pathlib.Path("passkey"))
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    needed = (options.num_keys + 1) * (options.key_length + 1)
    stated = STATED[options.training] | dict(block_size=max(16, needed), fam_length=8 * options.num_keys, layers=3)
    if options.training == "rewritten" and options.num_keys > 1:
        stated |= SEVERAL
    for name, value in stated.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("lengths", "distances", "ages"):
        setattr(options, name, sorted(getattr(options, name)))
    options.span, options.use_span = (spread(x, options.fam_length) for x in (options.span, options.use_span))
    if options.steps <= WARMUP:
        parser.error(f"--steps must be above {WARMUP}, the steps of the warm-up. Received: {options.steps}.")
    if options.training == "rewritten" and options.blocks > 15 and options.blocks % 2:
        parser.error(f"--blocks must be even above 15: keys are stated in every 2. Received: {options.blocks}.")
    options.task = keras_fam.data.PassKeyTask(
        options.block_size, options.key_length, options.filler_length, options.noise, num_keys=options.num_keys
    )
    check_folder(options, parser)
    return options


def spread(span, fam_length):
    """One span for all vectors, or one for each: two are spread over them, evenly in their logarithms."""
    if span is None or len(span) == 1:
        return span and span[0]
    if len(span) == 2:
        span = np.geomspace(*span, fam_length).round(3).tolist()
    return span


def check_folder(options, parser):
    """Models of one folder are trained with the same settings."""
    own = {"models", "seeds", "out", "quick", "task", "xla", *EVALUATION}
    settings = {name: value for name, value in vars(options).items() if name not in own}
    path = options.out / "settings.json"
    if path.exists():
        for name, value in json.loads(path.read_text()).items():
            if settings.get(name) != value:
                parser.error(f"--out {options.out} holds runs with {name}={value}. Received: {settings.get(name)}.")
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def evaluate(lm, name, options, seed):
    """What `passkey.json` holds of one run, and the settings it was made with."""
    if name == "fam" and options.use_span is not None:
        lm = rebuilt(lm, name, options, options.use_span, options.batch_size)
    held, spread = hold(lm, options, seed)
    overwritten, places = overwrite(lm, options, seed)
    return {
        "hold": held,
        "spread": spread,
        "overwrite": overwritten,
        "places": places,
        "settings": {key: getattr(options, key) for key in EVALUATION},
    }


def evaluated(path, options):
    """What `evaluate` found, read from `path`, or None if that has not been done, or with other settings."""
    scores = json.loads(path.read_text()) if path.exists() else {"settings": None}
    return scores if scores.pop("settings") == {key: getattr(options, key) for key in EVALUATION} else None


def means(by_seed, *place):
    """The mean over seeds of what stands at one place of `passkey.json`, or None where it was not asked."""
    found = []
    for run in by_seed.values():
        for key in place:
            run = run.get(str(key), {})
        found += [run] if run != {} else []
    return np.mean(found, axis=0) if found else None


def show(results, options):
    """Prints the two tables."""
    lengths, distances = options.lengths, options.distances
    print(
        "\n| hold, whole keys right after | "
        + " | ".join(map(str, lengths))
        + " |\n"
        + "|---" * (len(lengths) + 1)
        + "|"
    )
    for name, by_seed in results.items():
        print(f"| {name} | " + " | ".join(f"{means(by_seed, 'hold', n):.2f}" for n in lengths) + " |")
    print("\n| overwrite, right (previous key), age | distance " + " | ".join(map(str, distances)) + " |")
    print("|---" * (len(distances) + 1) + "|")
    for name, by_seed in results.items():
        for age in options.ages:
            cells = [means(by_seed, "overwrite", age, n) for n in distances]
            cells = ["" if cell is None else f"{cell[1]:.2f} ({cell[2]:.2f})" for cell in cells]
            print(f"| {name}, {age} | " + " | ".join(cells) + " |")


def draw(results, options, path):
    figure = Figure(figsize=(12, 4.2))
    left, right = figure.subplots(1, 2, sharey=True)
    for name, by_seed in results.items():
        style = dict(linewidth=2.5, color="black") if name == "fam" else {}
        table = np.array([[run["hold"][str(n)] for n in options.lengths] for run in by_seed.values()])
        (line,) = left.plot(options.lengths, table.mean(axis=0), "o-", label=name, **style)
        left.fill_between(options.lengths, table.min(axis=0), table.max(axis=0), alpha=0.15, color=line.get_color())
        for number, age in enumerate(options.ages):
            found = {n: means(by_seed, "overwrite", age, n) for n in options.distances}
            found = {n: cell[1] for n, cell in found.items() if cell is not None}
            style = dict(color=line.get_color(), alpha=1 - number / (len(options.ages) + 1))
            right.plot(list(found), list(found.values()), "o-", label=f"{name}, age {age}", **style)
    beside = dict(loc="upper left", bbox_to_anchor=(1, 1))  # It names a line for every age.
    names = (left, options.lengths, "only", {}), (right, options.distances, "latest", beside)
    for axes, blocks, what, place in names:
        axes.set_xscale("log")
        axes.set_xticks(blocks, [str(n) for n in blocks])
        axes.minorticks_off()
        axes.set_xlabel(f"blocks since the {what} key")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, **place)
    left.set_ylabel("whole keys right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    options = parse()
    for seed in range(options.seeds):
        for name in options.models:
            folder = options.out / f"{name}-{seed}"
            result = folder / "scores.json"
            if evaluated(result, options):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            start = time.time()
            print(f"{name}, seed {seed}, {keras.config.backend()}", flush=True)
            keras.utils.set_random_seed(seed)
            lm = train(name, options, seed, folder)
            print(f"  trained ({time.time() - start:.0f} s)", flush=True)
            result.write_text(json.dumps(evaluate(lm, name, options, seed)))
            print(f"  {result.read_text()} ({time.time() - start:.0f} s)", flush=True)
    results = {}
    for name in MODELS:
        for path in sorted(options.out.glob(f"{name}-*/scores.json")):
            if scores := evaluated(path, options):
                results.setdefault(name, {})[path.parent.name.rpartition("-")[2]] = scores
    (options.out / "passkey.json").write_text(json.dumps(results, indent=1))
    show(results, options)
    draw(results, options, options.out / "passkey.png")


if __name__ == "__main__":
    main()
