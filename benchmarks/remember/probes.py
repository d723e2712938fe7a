"""What a trained model remembers: keys by distance, and losses on held-out text read as streams."""

import numpy as np
from keras import ops
from texts import DIGITS, Pieces

from keras_fam.plots.loss import loss_by_position


def ask(backbone, state, questions, places):
    """Digits `[rows, 5]` that are likeliest, each behind the digits before it: greedy decoding, if all are right.

    Args:
        questions: int `[rows, length]`, token ids of questions with their answers.
        places: int `[5]`, where the answers' digits are.
    """
    hidden, _ = backbone.stream(questions[:, : places[-1]], state)
    logits = backbone.logits(ops.take(hidden, places - 1, axis=1))
    return np.argmax(ops.convert_to_numpy(ops.cast(logits, "float32")), axis=-1)


class KeyProbe:
    """Many PassKey texts side by side, read as one stream; questions go to a copy of the state."""

    def __init__(self, backbone, arrays, rows, seed):
        self.backbone, self.pieces, self.rows = backbone, Pieces(arrays), rows
        self.rng = np.random.default_rng(seed)
        self.state, self.read, self.keys, self.old = backbone.initial_state(rows), 0, None, None
        self._unfinished = np.zeros((rows, 0), "int32")

    def begin(self):
        """The introduction and each text's key."""
        self._draw()
        self._read([self.pieces.beginning(key) for key in self.keys])

    def restate(self):
        """A new key for each text; the one before is `old`."""
        self.old = self.keys
        self._draw()
        self._read([self.pieces.with_key("statement", key)[0] for key in self.keys])

    def go_on(self, blocks):
        """Reads filler until the end of so many blocks behind the end of the block at hand."""
        size = self.backbone.block_size
        until = (self.read // size + blocks) * size
        filler = self.pieces.filler(2 + (until - self.read) // 4)
        self._read(np.repeat(filler[None, : until - self.read], self.rows, axis=0))

    def right(self):
        """Shares of whole keys and of digits that are answered right, and of old keys that are given."""
        pieces = [self.pieces.with_key("question", key) for key in self.keys]
        questions, places = np.stack([ids for ids, _ in pieces]), np.flatnonzero(pieces[0][1])
        said = ask(self.backbone, self.state, questions.astype("int32"), places)
        digits = said == questions[:, places]
        shares = {"whole": digits.all(axis=1).mean(), "digits": digits.mean()}
        if self.old is not None:
            old = self.pieces.arrays["digits"][self.old]
            shares["old"] = (said == old).all(axis=1).mean()
        return {name: round(float(share), 4) for name, share in shares.items()}

    def _draw(self):
        self.keys = self.rng.integers(10, size=(self.rows, DIGITS))

    def _read(self, rows):
        """Whole blocks go into memory, the rest waits for the next call: so one shape is compiled."""
        ids, size = np.concatenate([self._unfinished, np.stack(rows)], axis=1).astype("int32"), self.backbone.block_size
        self.read += ids.shape[1] - self._unfinished.shape[1]
        whole = ids.shape[1] - ids.shape[1] % size
        if whole:
            self.state = self.backbone.read_into(self.state, ids[:, :whole])
        self._unfinished = ids[:, whole:]


def hold(backbone, arrays, blocks, rows=100, seed=10_000):
    """`{blocks: shares}`: the key of the first block, asked for so many blocks later."""
    probe, found = KeyProbe(backbone, arrays, rows, seed), {}
    probe.begin()
    for length in blocks:
        probe.go_on(length - probe.read // backbone.block_size)
        found[length] = probe.right()
    return found


def overwrite(backbone, arrays, age, distances, rows=100, seed=20_000):
    """`{distance: shares}`: a key that is stated anew after `age` blocks, asked for so many blocks later."""
    probe, found = KeyProbe(backbone, arrays, rows, seed), {}
    probe.begin()
    probe.go_on(age)
    probe.restate()
    start = probe.read // backbone.block_size
    for distance in distances:
        probe.go_on(start + distance - probe.read // backbone.block_size)
        found[distance] = probe.right()
    return found


def text_losses(lm, arrays, rows, length):
    """Nats a token of held-out text, `rows` streams of `length` tokens: of all, and by doubling place in the stream."""
    pieces = arrays["held_out"][: rows * length].reshape(rows, length)
    starts = np.resize(arrays["start"], (rows, 1))
    by_place = loss_by_position(lm, np.concatenate([starts, pieces], axis=1).astype("int32")).mean(axis=0)
    edges = [0, 64]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return {
        "block_size": lm.backbone.block_size,
        "tokens": rows * length,
        "all": round(float(by_place.mean()), 4),
        "by_place": {
            f"{first}-{last}": round(float(by_place[first:last].mean()), 4) for first, last in zip(edges, edges[1:])
        },
    }
