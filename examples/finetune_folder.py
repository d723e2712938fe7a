"""The part of finetune.py that trains on a folder of texts: whole documents, memory that is carried, runs that resume.

Every row of a batch goes on in its document with the memory that the batch before left (`stateful_batch_size`). A tenth
of the documents is held out and read as streams after every checkpoint interval; the adapters that read them best are
kept. A run that was interrupted is started again by the same command: it loses at most one checkpoint interval.
"""

import json
import os
import pathlib

import keras

import keras_fam

SHORT_NAMES = {"gemma3": "gemma3_270m"}
HELD_OUT = 0.1


class KeepBest(keras.callbacks.Callback):
    """Reads the held-out documents at the end of every interval, notes the loss, and keeps the best adapters."""

    def __init__(self, paths, interval, history, adapters, report):
        super().__init__()
        self.paths, self.interval, self.report = [pathlib.Path(path) for path in paths], interval, report
        self.history, self.adapters = history, adapters
        self.nats = {}
        if history.exists():
            self.nats = dict(json.loads(line) for line in history.read_text().splitlines())

    def measure(self, step, loss=None):
        if hasattr(self.model, "jax_state_sync"):  # On jax, `fit` keeps the variables' values to itself.
            self.model.jax_state_sync()
        nats = self.model.perplexity(self.paths, verbose=0).nats
        if not self.nats or nats < min(self.nats.values()):
            self.model.save_lora_weights(self.adapters)
        if step not in self.nats:
            self.nats[step] = nats
            with open(self.history, "a") as file:
                file.write(json.dumps([step, nats]) + "\n")
        trained = "" if loss is None else f"training loss {loss:.4f}, "
        self.report(f"step {step}: {trained}held-out documents {nats:.4f} nats a token")

    def on_epoch_end(self, epoch, logs=None):
        self.measure((epoch + 1) * self.interval, logs["loss"])


def load_model(parser, args):
    """A preset with memory in layers that are computed twice, with LoRA."""
    sizes = dict(block_size=args.block_size, memory_segments=args.memory_segments, fam_length=args.fam_length)
    dtype = {} if args.dtype is None else {"dtype": args.dtype}
    keras.utils.set_random_seed(args.seed)
    try:
        with keras.RematScope("full"):
            lm = keras_fam.FAMCausalLM.from_preset(
                SHORT_NAMES.get(args.preset, args.preset), **sizes, **dtype, stateful_batch_size=args.batch_size
            )
    except (ValueError, FileNotFoundError) as error:
        parser.error(f"argument --preset: expected a causal language model, received: {args.preset!r}\n{error}")
    lm.enable_lora(rank=args.rank)
    lm.compile(optimizer=keras.optimizers.AdamW(args.learning_rate, weight_decay=0.0, beta_2=0.95, global_clipnorm=1.0))
    return lm


def open_documents(parser, args, tokenizer):
    start = getattr(tokenizer, "start_token_id", None)
    try:
        return keras_fam.data.DocumentStream.both(
            *(args.texts, tokenizer, args.batch_size, args.sequence_length),
            validation_split=HELD_OUT,
            seed=args.seed,
            start_token_id=start,
        )
    except (ValueError, FileNotFoundError) as error:
        parser.error(
            f"argument --texts: expected a folder of at least two text files, received: {args.texts!r}\n{error}"
        )


def batches(stream, skip):
    """Batches for ever, without those that were trained on before."""
    while True:
        for batch in stream:
            if skip:
                skip -= 1
            else:
                yield batch


def finetune_folder(parser, args, report):
    """Fine-tunes a preset on a folder of texts, from where an earlier run ended, and loads the best adapters."""
    if args.sequence_length % args.block_size:
        parser.error(
            f"argument --sequence-length: expected a multiple of --block-size {args.block_size} with --texts, "
            f"received: {args.sequence_length}"
        )
    output = pathlib.Path(args.output or "finetuned")
    output.mkdir(parents=True, exist_ok=True)
    lm = load_model(parser, args)
    training, held_out = open_documents(parser, args, lm.preprocessor.tokenizer)
    steps = args.steps or args.epochs * training.num_batches
    interval = min(args.checkpoint_steps, steps)
    report(f"{len(training.paths)} documents to train on in {steps} steps, {len(held_out.paths)} held out")
    print(keras_fam.training_memory(lm, args.batch_size, args.sequence_length), flush=True)

    adapters = output / "best.lora.safetensors"
    best = KeepBest(held_out.paths, interval, output / "history.jsonl", adapters, report)
    backup = keras.callbacks.BackupAndRestore(output / "backup", double_checkpoint=True, delete_checkpoint=False)
    for callback in (best, backup):
        callback.set_model(lm)
    backup.on_train_begin()
    done = int(keras.ops.convert_to_numpy(lm.optimizer.iterations))
    if done:
        report(f"going on behind step {done}")
    else:
        best.measure(0)
    lm.fit(
        batches(training, done),
        steps_per_epoch=interval,
        initial_epoch=done // interval,
        epochs=-(-steps // interval),
        shuffle=False,
        verbose=0,
        callbacks=[best, backup],
    )
    lm.load_lora_weights(adapters)
    step = min(best.nats, key=best.nats.get)
    report(f"best: step {step}, {best.nats[step]:.4f} nats a token, in {os.fspath(adapters)}")
    return lm
