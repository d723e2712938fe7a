"""Give a KerasHub language model FAM working memory, LoRA fine-tune it on long text, and measure what it gained.

On a preset and a text of your own (a preset's name, handle or folder; a text file in UTF-8):

    python examples/finetune.py --preset gpt2_base_en --text book.txt --output finetuned
    python examples/finetune.py --preset gemma_2b_en --text book.txt --block-size 512 --sequence-length 8192

With no arguments it needs no network and some minutes of two CPU cores. The text is the Python Language Reference that
every CPython carries. A small GPT-2 and a small Gemma are first trained on it as stock KerasHub models, on windows no
longer than one token of a converted model sees, saved as presets, and go the same way as yours from there:

    python examples/finetune.py
    KERAS_BACKEND=torch python examples/finetune.py --family gemma --epochs 4

Held-out text is scored four times, always on the same tokens: the stock weights under block sliding window attention
(BSWA, which is FAM with no FAM vectors), FAM before and after LoRA fine-tuning, and, as the control, BSWA after the
same fine-tuning: same strings, same order, same number of steps. Losses are mean nats per next token.
"""

import argparse
import io
import json
import os
import tempfile
import time

import keras
import keras_hub
import numpy as np
import sentencepiece
import tokenizers
from pydoc_data.topics import topics

import keras_fam

START = time.time()
PRESET_DEFAULTS = {
    "block_size": 256,
    "memory_segments": 2,
    "fam_length": 32,
    "rank": 64,
    "epochs": 1,
    "learning_rate": 2e-4,
    "sequence_length": 4096,
    "batch_size": 1,
}
DEMO_DEFAULTS = {
    "block_size": 64,
    "memory_segments": 1,
    "fam_length": 16,
    "rank": 16,
    "epochs": 1,
    "learning_rate": 2e-3,
    "sequence_length": 1024,
    "batch_size": 1,
}
DEMO_VOCABULARY = 1024
DEMO_HELD_OUT = ("formatstrings", "debugger", "typesmapping", "execmodel")
SAMPLE_TOKENS = 48


class TokenLoss(keras.metrics.SparseCategoricalCrossentropy):
    """Mean loss of the next tokens in nats, from place `start` of each sequence on."""

    def __init__(self, start, name):
        super().__init__(name=name, from_logits=True)
        self.start = start

    def update_state(self, y_true, y_pred, sample_weight=None):
        weight = None if sample_weight is None else sample_weight[:, self.start :]
        return super().update_state(y_true[:, self.start :], y_pred[:, self.start :], weight)


# === What both modes do ===


def finetune(name, preset, train, held_out, args, output):
    """Fine-tunes FAM and, as the control, BSWA on the strings `train`; prints the losses and a sample; saves FAM."""
    rows = []
    if args.control:
        before, after, _ = finetune_one(f"{name} BSWA", preset, 0, train, held_out, args)
        rows += [("(a) stock weights under BSWA", before), ("(d) BSWA after the same LoRA fine-tuning", after)]
    before, after, lm = finetune_one(f"{name} FAM", preset, args.fam_length, train, held_out, args)
    rows += [("(b) FAM before fine-tuning", before), ("(c) FAM after LoRA fine-tuning", after)]

    lm.backbone.save_lora_weights(os.path.join(output, "fam.lora.h5"))
    lm.save_to_preset(os.path.join(output, "fam"))
    report(f"{name}: saved the preset {os.path.join(output, 'fam')} and the LoRA weights {output}/fam.lora.h5")
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
    compile_lm(lm, args.learning_rate, [TokenLoss(0, "nats"), TokenLoss(first_beyond(lm, args), "nats_beyond")])
    before = score(lm, held_out, args.batch_size)  # fresh LoRA adds nothing yet

    trained = sum(int(np.prod(weight.shape)) for weight in lm.trainable_weights)
    steps = args.epochs * len(train) // args.batch_size
    report(f"{name}: training {trained:,} of {lm.count_params():,} weights for {steps} steps")
    lm.fit(train, batch_size=args.batch_size, epochs=args.epochs, verbose=2)
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


def first_beyond(lm, args):
    """The place in a sequence from which on some of it is out of BSWA's reach; 0 if the sequence is too short."""
    return reach(lm.backbone) if reach(lm.backbone) < args.sequence_length else 0


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
    print(f"{indent(prompt[-240:])}\n{name}: generated:\n{indent(text)}\n", flush=True)


def indent(text):
    return "\n".join(f"    | {line}" for line in text.splitlines())


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


def load_text(path):
    """Reads a text file; raises ValueError if it is none."""
    if not os.path.isfile(path):
        raise ValueError(f"expected an existing text file, received: {path!r}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a text file in UTF-8, received: {path!r} ({error.reason})") from error
    if not text.strip() or "\0" in text:
        raise ValueError(f"expected a text file, received: {path!r}, which is {'binary' if text.strip() else 'empty'}")
    return text


# === A preset and a text of the user's ===


def finetune_user_preset(parser, args):
    try:
        text = load_text(args.text)
    except ValueError as error:
        parser.error(f"argument --text: {error}")
    try:
        tokenizer = keras_hub.models.CausalLMPreprocessor.from_preset(args.preset).tokenizer
    except (ValueError, FileNotFoundError) as error:
        parser.error(
            f"argument --preset: expected a preset of a causal language model, received: {args.preset!r}\n{error}"
        )

    strings = cut(tokenizer, text, args.sequence_length)
    tests = max(args.batch_size, len(strings) // 10 // args.batch_size * args.batch_size)
    train = whole_batches(strings[:-tests], args.batch_size)
    if not train:
        parser.error(
            f"argument --text: expected at least {2 * args.batch_size} sequences of --sequence-length "
            f"{args.sequence_length} tokens (--batch-size {args.batch_size} to train on, as many held out), received: "
            f"{len(strings)} ({len(tokenizer(text))} tokens)"
        )
    report(f"{args.text}: {len(train)} sequences to train on; the text's last {tests} are held out")
    finetune("your preset", args.preset, shuffled(train, args.seed), strings[-tests:], args, args.output)


# === The demonstration ===


def demonstrate(args):
    training_text, held_out_texts = python_reference()
    window = args.block_size * (args.memory_segments + 1)
    for family in [args.family] if args.family else ["gpt2", "gemma"]:
        keras.utils.set_random_seed(args.seed)
        output = os.path.join(args.output, family)
        stock = {"gpt2": build_gpt2, "gemma": build_gemma}[family](training_text, window)
        tokenizer = stock.preprocessor.tokenizer
        windows = whole_batches(shuffled(cut(tokenizer, training_text, window), args.seed), 4)
        report(
            f"{family}: training a stock {type(stock).__name__} of {stock.count_params():,} weights on {len(windows)} windows of {window} tokens"
        )
        compile_lm(stock, 2e-3, [])
        stock.fit(windows, batch_size=4, epochs=3, verbose=2)
        stock.save_to_preset(os.path.join(output, "stock"))

        held_out = [string for text in held_out_texts for string in cut(tokenizer, text, args.sequence_length)]
        train = shuffled(cut(tokenizer, training_text, args.sequence_length), args.seed)
        finetune(
            family,
            os.path.join(output, "stock"),
            whole_batches(train, args.batch_size),
            whole_batches(held_out, args.batch_size),
            args,
            output,
        )


def python_reference():
    """The Python Language Reference: a text to train on, and the held-out topics, which share no paragraph with it."""
    held_out = [topics[name] for name in DEMO_HELD_OUT if name in topics]
    seen = {paragraph for text in held_out for paragraph in text.split("\n\n")}
    kept = []
    for text in sorted((text for text in topics.values() if text not in held_out), key=len, reverse=True):
        new = [paragraph for paragraph in text.split("\n\n") if paragraph not in seen]  # shorter topics repeat longer
        seen.update(new)
        kept.append("\n\n".join(new))
    return "\n\n".join(kept), held_out


def build_gpt2(text, window):
    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator([text], DEMO_VOCABULARY - 1, show_progress=False)
    trained = json.loads(trainer.to_str())["model"]
    # As in GPT-2 the end token comes last: id 0 pads, and generation stops at an end token.
    vocabulary = {**trained["vocab"], "<|endoftext|>": len(trained["vocab"])}
    tokenizer = keras_hub.tokenizers.GPT2Tokenizer(vocabulary, [" ".join(merge) for merge in trained["merges"]])
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        dropout=0.0,
        max_sequence_length=window,
    )
    # Fresh token embeddings have a spread of 0.01, which training as short as this does not outgrow.
    embeddings = backbone.token_embedding.embeddings
    embeddings.assign(5 * embeddings)
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=window, add_end_token=False)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


def build_gemma(text, window):
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n\n")),
        model_writer=proto,
        vocab_size=DEMO_VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        max_sentence_length=len(text.encode()),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=1,
    )
    tokenizer = keras_hub.tokenizers.GemmaTokenizer(proto.getvalue())
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=128,
        intermediate_dim=768,
        head_dim=32,
    )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=window, add_end_token=False)
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor)


# === Command line ===


def number(name, kind):
    """Parses an option's value: positive, but for memory segments, which may be 0."""
    lowest = 0 if name == "memory_segments" else 1 if kind is int else 1e-9

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected {kind.__name__} of at least {lowest:g}, received: {text!r}")
        return value

    return parse


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="KerasHub preset: name, handle or folder; needs --text")
    parser.add_argument("--text", help="text file in UTF-8 to fine-tune on; its last tenth is held out")
    parser.add_argument("--family", choices=("gpt2", "gemma"), help="without --preset: only this family")
    parser.add_argument("--output", help="folder for presets and LoRA weights (default: a new temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action=argparse.BooleanOptionalAction, default=True, help="fine-tune BSWA as well")
    for name, default in PRESET_DEFAULTS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=number(name, type(default)),
            help=f"default: {default}, and {DEMO_DEFAULTS[name]} without --preset",
        )
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    if (args.preset is None) != (args.text is None):
        parser.error("arguments --preset and --text: expected both or neither, received: only one of them")
    if args.family and args.preset:
        parser.error(f"argument --family: expected only without --preset, received: {args.family!r}")
    if args.output and os.path.exists(args.output) and not os.path.isdir(args.output):
        parser.error(f"argument --output: expected a folder, received: {args.output!r}, which is a file")
    for name, default in (PRESET_DEFAULTS if args.preset else DEMO_DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.sequence_length <= args.block_size:
        parser.error(
            f"argument --sequence-length: expected more than one block of --block-size {args.block_size}, received: "
            f"{args.sequence_length}"
        )
    args.output = args.output or tempfile.mkdtemp(prefix="keras_fam_")
    os.makedirs(args.output, exist_ok=True)
    report(f"backend {keras.backend.backend()}; saving in {args.output}")
    if args.preset:
        finetune_user_preset(parser, args)
    else:
        demonstrate(args)
    report("done")


if __name__ == "__main__":
    main()
