"""The recurrent memory transformer on the texts of `examples/passkey.py`: the same lessons, size, steps and questions.

    KERAS_BACKEND=torch python benchmarks/passkey_peer.py --out passkey_peer --ages 1 100 1000

takes the example's options. The model is that of recurrent-memory-transformer-pytorch, with as many memory tokens as
the example has FAM vectors, trained through its wrapper with gradients through all segments of a step. A row's memory
goes on from step to step, and is disturbed in the last lessons, as there. `passkey_peer.json` holds what the example
writes of a model, and an interrupted run goes on when it is started again with the same `--out`.
"""

import copy
import json
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import keras
import numpy as np
import passkey
import passkey_training
import torch
from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper


class Peer:
    """The peer's model, with the `initial_state` and `stream` that the example's evaluation asks of a model."""

    def __init__(self, options):
        dim = options.hidden_dim
        self.transformer = RecurrentMemoryTransformer(
            dim=dim,
            num_tokens=options.task.vocabulary_size,
            depth=options.layers,
            num_memory_tokens=options.fam_length,
            seq_len=options.block_size,
            dim_head=dim // options.heads,
            heads=options.heads,
            ff_mult=options.intermediate_dim / dim * 1.5,  # Its gated feed-forward takes two thirds of that.
            num_residual_streams=1,  # As in the paper; the package's four take 2.5 times as long.
        )
        self.wrapper = RecurrentMemoryTransformerWrapper(self.transformer)
        self.memory_shape = (options.fam_length, dim)

    def initial_state(self, batch_size):
        """Memory, and the tokens of the segment that is being read. No memory is what reads as zeros."""
        return torch.zeros(batch_size, *self.memory_shape), torch.zeros(batch_size, 0, dtype=torch.int64)

    @torch.no_grad()
    def stream(self, token_ids, state):
        memory, segment = state
        segment = torch.cat([segment, torch.from_numpy(np.asarray(token_ids)).long()], dim=1)
        logits, written, _ = self.transformer(segment, memory)
        logits = logits[:, -token_ids.shape[1] :]
        if segment.shape[1] == self.transformer.seq_len:
            return logits, (written, segment[:, :0])
        return logits, (memory, segment)


def disturbed(memory, strength, rng):
    """What `DisturbedMemory` of the example does to FAM."""
    share = rng.uniform(0, strength, (memory.shape[0], 1, 1)) / np.sqrt(memory.shape[-1])
    noise = torch.from_numpy((share * rng.standard_normal(memory.shape)).astype("float32"))
    return memory + noise * memory.norm(dim=-1, keepdim=True)


def step(peer, optimizer, batch, memory, rng, lesson):
    """One step of the optimizer: `(memory, [weight of digits that are right, of all, sum of weighted losses])`."""
    inputs, targets, weights = batch
    memory = memory * torch.from_numpy(1.0 - inputs["document_start"])[:, None, None].float()
    memory = disturbed(memory, lesson.disturb, rng)
    token_ids, targets = (torch.from_numpy(x).long() for x in (inputs["token_ids"], targets))
    weights = torch.from_numpy(weights)
    asked = weights > 0
    logits, memory = peer.wrapper(token_ids, memory)
    logits, targets, weights = logits[asked], targets[asked], weights[asked]
    optimizer.zero_grad()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights
    (losses.sum() / weights.sum()).backward()
    for weight in peer.wrapper.parameters():
        torch.nn.utils.clip_grad_norm_(weight, lesson.clip)
    optimizer.step()
    right = (logits.argmax(-1) == targets) * weights
    return memory.detach(), np.array([float(each.sum()) for each in (right, weights, losses.detach())])


KEPT = ("epoch", "began", "digits", "smallest", "best", "memory")


def keep(values, path):
    """Writes a file of torch that is whole whenever the run is interrupted."""
    torch.save(values, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def train(peer, options, seed, folder):
    """The lessons of `passkey_training.train`, with its rates and optimizers; the last one's best epoch is kept.

    Each epoch's end is written to `folder`, and training goes on from there.
    """
    length = passkey_training.EPOCH
    settings = dict(betas=(0.9, options.beta_2), weight_decay=options.weight_decay)
    optimizer = torch.optim.AdamW(peer.wrapper.parameters(), **settings)
    plan, epoch, smallest, best = list(passkey_training.lessons(options, seed)), 0, np.inf, None
    place = folder / "epoch.pt"
    kept = torch.load(place) if place.exists() else None
    for number, (lesson, stream) in list(enumerate(plan))[kept["lesson"] if kept else 0 :]:
        began, digits = epoch, 0.0
        if lesson.rows:
            optimizer = torch.optim.AdamW(peer.wrapper.parameters(), amsgrad=True, **settings)
        memory, _ = peer.initial_state(lesson.rows or options.batch_size)
        rng = np.random.default_rng([seed, number])
        if kept:
            epoch, began, digits, smallest, best, memory = (kept[key] for key in KEPT)
            peer.wrapper.load_state_dict(kept["weights"])
            optimizer.load_state_dict(kept["optimizer"])
            rng.bit_generator.state = kept["generator"]
            kept = None
        stream = passkey_training.GoingOn(stream, 0, lesson.evenly)
        end = passkey_training.latest_end(lesson, options, began)
        rate = passkey_training.lesson_rate(lesson, options, began).schedule
        while epoch < end and digits <= lesson.learned:
            optimizer.param_groups[0]["lr"] = rate(epoch)
            counts = np.zeros(3)
            for index in range((epoch - began) * length, (epoch - began + 1) * length):
                memory, counted = step(peer, optimizer, stream[index], memory, rng, lesson)
                counts += counted
            epoch, digits = epoch + 1, float(counts[0] / counts[1])
            loss = float(counts[2] / counts[1])
            weights = peer.wrapper.state_dict()
            if lesson.rows and number == len(plan) - 1 and loss < smallest:
                smallest, best = loss, copy.deepcopy(weights)
            now = dict(zip(KEPT, (epoch, began, digits, smallest, best, memory), strict=True))
            now |= dict(lesson=number, weights=weights, optimizer=optimizer.state_dict())
            keep(now | dict(generator=rng.bit_generator.state), place)
            print(f"  step {epoch * length}, {lesson}: loss {loss:.4f}, digits {digits:.3f}", flush=True)
    if best is not None:
        peer.wrapper.load_state_dict(best)


def main():
    options = passkey.parse()
    results = {}
    for seed in range(options.seeds):
        folder = options.out / f"recurrent_memory-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        result = folder / "scores.json"
        if not passkey.evaluated(result, options):
            start = time.time()
            print(f"recurrent memory, seed {seed}", flush=True)
            keras.utils.set_random_seed(seed)
            peer = Peer(options)
            train(peer, options, seed, folder)
            result.write_text(json.dumps(passkey.evaluate(peer, "recurrent_memory", options, seed)))
            print(f"  {result.read_text()} ({time.time() - start:.0f} s)", flush=True)
        results[str(seed)] = passkey.evaluated(result, options)
    (options.out / "passkey_peer.json").write_text(json.dumps({"recurrent_memory": results}, indent=1))
    passkey.show({"recurrent_memory": results}, options)


if __name__ == "__main__":
    main()
