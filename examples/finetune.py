"""Give a KerasHub language model FAM working memory, LoRA fine-tune it on long text, and measure what it gained.

On a preset and a text of your own (a preset's name, handle or folder; a text file in UTF-8):

    python examples/finetune.py --preset gpt2_base_en --text book.txt --output finetuned
    python examples/finetune.py --preset gemma_2b_en --text book.txt --block-size 512 --sequence-length 8192

On a folder of texts, whole documents with memory that is carried from step to step (docs/finetune_gemma.md); a run that
was interrupted goes on with the same command:

    python examples/finetune.py --preset gemma3 --texts FOLDER --output finetuned

With no arguments it needs no network and some minutes of two CPU cores. The text is the Python Language Reference that
every CPython carries. A small GPT-2 and a small Gemma are first trained on it as stock KerasHub models, in windows of
as many tokens as a block and its memory segments hold, saved as presets, and go the same way as yours from there:

    python examples/finetune.py
    KERAS_BACKEND=torch python examples/finetune.py --family gemma --epochs 4

Held-out text is scored four times, always on the same tokens: the stock weights under block sliding window attention
(BSWA, which is FAM with no FAM vectors), FAM before and after LoRA fine-tuning, and, as the control, BSWA after the
same fine-tuning: same strings, same order, same number of steps. Losses are mean nats per next token.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import textwrap
import time

import keras
import keras_hub
import numpy as np
from finetune_folder import finetune_folder
from stock_models import build_stock_model, python_reference

import keras_fam

START = time.time()
VERBOSE = 1 if sys.stdout.isatty() else 2  # a progress bar, or a line per epoch
DEFAULTS = {  # option: with --preset, and without
    "block_size": (256, 64),
    "memory_segments": (2, 1),
    "fam_length": (32, 16),
    "rank": (64, 16),
    "epochs": (1, 1),
    "learning_rate": (2e-4, 2e-3),
    "sequence_length": (4096, 1024),
    "batch_size": (1, 1),
}
SAMPLE_TOKENS = 48


class TokenLoss(keras.metrics.SparseCategoricalCrossentropy):
    """Mean loss of the next tokens in nats, from place `start` of each sequence on."""

    def __init__(self, start, name):
        super().__init__(name=name, from_logits=True)
        self.start = start

    def update_state(self, y_true, y_pred, sample_weight=None):
        weight = None if sample_weight is None else sample_weight[:, self.start :]
        return super().update_state(y_true[:, self.start :], y_pred[:, self.start :], weight)


def finetune(name, preset, train, held_out, args, output):
    """Fine-tunes FAM and, as the control, BSWA on the strings `train`; prints the losses and a sample; saves FAM."""
    rows = []
    if args.control:
        before, after, _ = finetune_one(f"{name} BSWA", preset, 0, train, held_out, args)
        rows += [("(a) stock weights under BSWA", before), ("(d) BSWA after the same LoRA fine-tuning", after)]
    before, after, lm = finetune_one(f"{name} FAM", preset, args.fam_length, train, held_out, args)
    rows += [("(b) FAM before fine-tuning", before), ("(c) FAM after LoRA fine-tuning", after)]

    saved = os.path.join(output, "fam")
    lm.save_to_preset(saved)
    lm.backbone.save_lora_weights(f"{saved}.lora.h5")
    report(f"{name}: saved the preset {saved} and the LoRA weights {saved}.lora.h5")
    print_table(name, sorted(rows), len(held_out), args.sequence_length, reach(lm.backbone))
    print_sample(name, lm, held_out[0], args.sequence_length // 2)


def finetune_one(name, preset, fam_length, train, held_out, args):
    """Returns the losses on held-out text before and after fine-tuning, and the model."""
    report(f"{name}: loading the preset and scoring the held-out text")
    keras.utils.set_random_seed(args.seed)
    lm = keras_fam.FAMCausalLM.from_preset(
        preset, block_size=args.block_size, memory_segments=args.memory_segments, fam_length=fam_length
    )
    lm.preprocessor.sequence_length = args.sequence_length
    lm.preprocessor.add_end_token = False  # the strings are pieces of a longer text
    lm.enable_lora(rank=args.rank)
    start = reach(lm.backbone) if reach(lm.backbone) < args.sequence_length else 0
    compile_lm(lm, args.learning_rate, [TokenLoss(0, "nats"), TokenLoss(start, "nats_beyond")])
    before = score(lm, held_out, args.batch_size)  # fresh LoRA adds nothing yet

    trained = sum(int(np.prod(weight.shape)) for weight in lm.trainable_weights)
    steps = args.epochs * len(train) // args.batch_size
    report(f"{name}: training {trained:,} of {lm.count_params():,} weights for {steps} steps")
    lm.fit(train, batch_size=args.batch_size, epochs=args.epochs, shuffle=False, verbose=VERBOSE)
    report(f"{name}: scoring the held-out text again")
    return before, score(lm, held_out, args.batch_size), lm


def compile_lm(lm, learning_rate, metrics):
    lm.compile(
        optimizer=keras.optimizers.AdamW(learning_rate, weight_decay=0.0, beta_2=0.95, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=metrics,
        sampler=keras_hub.samplers.TopKSampler(k=5, seed=0),
    )


def score(lm, held_out, batch_size):
    logs = lm.evaluate(held_out, batch_size=batch_size, verbose=0, return_dict=True)
    return logs["nats"], logs["nats_beyond"]


def reach(backbone):
    """How many tokens back BSWA can carry anything: each layer reaches over its memory segments and its own block."""
    return len(backbone.transformer_layers) * (backbone.memory_segments + 1) * backbone.block_size


def print_table(name, rows, sequences, length, reached):
    beyond = f"from token {reached:,} on" if reached < length else ""
    print(f"\n{name}: next-token loss in nats per token on held-out text, {sequences} sequences of {length:,} tokens")
    print(f"({sequences * length:,} tokens, the same for all rows; BSWA reaches back {reached:,} tokens)")
    print(f"  {'':42}{'all tokens':>12}{beyond:>20}")
    for label, (loss, loss_beyond) in rows:
        print(f"  {label:42}{loss:12.4f}" + (f"{loss_beyond:20.4f}" if beyond else ""))


def print_sample(name, lm, text, prompt_tokens):
    tokenizer = lm.preprocessor.tokenizer
    prompt = tokenizer.detokenize(tokenizer(text)[:prompt_tokens])
    text = lm.generate(prompt, max_length=prompt_tokens + SAMPLE_TOKENS, strip_prompt=True)
    print(f"\n{name}: FAM goes on from {prompt_tokens} held-out tokens, of which these are the last:")
    print(quoted(prompt[-240:]), f"{name}: generated:", quoted(text), "", sep="\n", flush=True)


def quoted(text):
    return textwrap.indent(text, "    | ", lambda line: True)


def report(message):
    print(f"[{time.time() - START:4.0f} s] {message}", flush=True)


# === Text ===


def cut(tokenizer, text, length):
    """Cuts a text into strings of `length` tokens.

    Each string runs a little over, and the preprocessor truncates it: a string's edges can tokenize differently.
    """
    ids = tokenizer(text)
    longer = length + length // 16 + 16
    return [tokenizer.detokenize(ids[i : i + longer]) for i in range(0, len(ids) - longer + 1, length)]


def whole_batches(strings, batch_size):
    """Drops a last, smaller batch, which would compile everything a second time."""
    return strings[: len(strings) // batch_size * batch_size]


def shuffled(strings, seed):
    return [strings[i] for i in np.random.default_rng(seed).permutation(len(strings))]


def load_text(parser, path):
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"argument --text: expected a text file in UTF-8, received: {path!r} ({error})")
    if not text.strip() or "\0" in text:
        found = "binary" if text.strip() else "empty"
        parser.error(f"argument --text: expected a text file in UTF-8, received: {path!r}, which is {found}")
    return text


def check_enough(parser, option, train, held_out, args):
    if not train or not held_out:
        parser.error(
            f"argument {option}: expected enough text for --batch-size {args.batch_size} times --sequence-length "
            f"{args.sequence_length} tokens to train on and as much to hold out, received: {len(train)} and "
            f"{len(held_out)} sequences of that length"
        )


# === A preset and a text of the user's ===


def finetune_user_preset(parser, args):
    text = load_text(parser, args.text)
    try:
        tokenizer = keras_hub.models.CausalLMPreprocessor.from_preset(args.preset).tokenizer
    except (ValueError, FileNotFoundError) as error:
        parser.error(f"argument --preset: expected a causal language model, received: {args.preset!r}\n{error}")
    strings = cut(tokenizer, text, args.sequence_length)
    tests = max(args.batch_size, len(strings) // 10 // args.batch_size * args.batch_size)
    train = whole_batches(strings[:-tests], args.batch_size)
    held_out = strings[-tests:]
    check_enough(parser, "--text", train, held_out, args)
    args.output = args.output or tempfile.mkdtemp(prefix="keras_fam_")
    report(f"{args.text}: {len(train)} sequences to train on; the text's last {len(held_out)} are held out")
    finetune("your preset", args.preset, shuffled(train, args.seed), held_out, args, args.output)


# === The demonstration ===


def demonstrate(parser, args):
    training_text, held_out_texts = python_reference()
    window = args.block_size * (args.memory_segments + 1)
    for family in [args.family] if args.family else ["gpt2", "gemma"]:
        keras.utils.set_random_seed(args.seed)
        stock = build_stock_model(family, training_text, window)
        tokenizer = stock.preprocessor.tokenizer
        train = whole_batches(cut(tokenizer, training_text, args.sequence_length), args.batch_size)
        held_out = [string for text in held_out_texts for string in cut(tokenizer, text, args.sequence_length)]
        held_out = whole_batches(held_out, args.batch_size)
        check_enough(parser, "--sequence-length", train, held_out, args)
        args.output = args.output or tempfile.mkdtemp(prefix="keras_fam_")

        windows = whole_batches(shuffled(cut(tokenizer, training_text, window), args.seed), 4)
        report(f"{family}: training a stock model of {stock.count_params():,} weights in windows of {window} tokens")
        compile_lm(stock, 2e-3, [])
        stock.fit(windows, batch_size=4, epochs=3, shuffle=False, verbose=VERBOSE)
        output = os.path.join(args.output, family)
        stock.save_to_preset(os.path.join(output, "stock"))
        finetune(family, os.path.join(output, "stock"), shuffled(train, args.seed), held_out, args, output)


# === Command line ===


def number(name, kind):
    """Parses the value of the option `name`."""
    lowest = 0 if name in ("memory_segments", "seed") else 1
    expected = f"an integer of at least {lowest}" if kind is int else "a number above 0"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:  # Refused below, with numbers that are too low.
            value = -1
        if not (lowest if kind is int else 1e-30) <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected {expected}, received: {text!r}")
        return value

    return parse


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="KerasHub preset: name, handle or folder; needs --text or --texts")
    parser.add_argument("--text", help="text file in UTF-8 to fine-tune on; its last tenth is held out")
    parser.add_argument("--texts", help="folder of text files in UTF-8 to fine-tune on; a tenth of them is held out")
    parser.add_argument("--dtype", help="with --texts: dtype of the preset, such as bfloat16")
    parser.add_argument("--steps", type=number("steps", int), help="with --texts: steps in place of --epochs")
    parser.add_argument("--checkpoint-steps", type=number("checkpoint_steps", int), default=100, help="with --texts")
    parser.add_argument("--family", choices=("gpt2", "gemma"), help="without --preset: only this family")
    parser.add_argument("--output", help="folder for presets and LoRA weights (default: a new temporary folder)")
    parser.add_argument("--seed", type=number("seed", int), default=0)
    parser.add_argument("--control", action=argparse.BooleanOptionalAction, default=True, help="fine-tune BSWA as well")
    for name, (default, without) in DEFAULTS.items():
        option = f"--{name.replace('_', '-')}"
        shown = f"default: {default}, and {without} without --preset"
        parser.add_argument(option, type=number(name, type(default)), help=shown)
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    if args.text and args.texts:
        parser.error("arguments --text and --texts: expected one of them, received: both")
    if (args.preset is None) != (args.text is None and args.texts is None):
        given = "--preset" if args.preset else "--text" if args.text else "--texts"
        parser.error(f"arguments --preset and --text or --texts: expected both or neither, received: only {given}")
    if args.family and args.preset:
        parser.error(f"argument --family: expected only without --preset, received: {args.family!r}")
    if args.output and os.path.exists(args.output) and not os.path.isdir(args.output):
        parser.error(f"argument --output: expected a folder, received: {args.output!r}, which is a file")
    for name, (default, without) in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default if args.preset else without)
    if args.sequence_length <= args.block_size:
        parser.error(
            f"argument --sequence-length: expected more than one block of --block-size {args.block_size}, received: "
            f"{args.sequence_length}"
        )
    if args.fam_length > args.block_size:
        parser.error(
            f"argument --fam-length: expected no more than --block-size {args.block_size}, received: {args.fam_length}"
        )
    report(f"backend {keras.backend.backend()}")
    if args.texts:
        finetune_folder(parser, args, report)
    elif args.preset:
        finetune_user_preset(parser, args)
    else:
        demonstrate(parser, args)
    report("done")


if __name__ == "__main__":
    main()
