"""What `train.py` reads: token ids of texts and of PassKey in words, made beforehand, and batches of both.

    python benchmarks/remember/texts.py --preset FOLDER --texts FILE [FILE ...] --held-out FILE --out tokens.npz

A machine that trains needs no tokenizer then.
"""

import argparse
from pathlib import Path

import numpy as np

from keras_fam.data.passkey_prompts import FILLER, INTRODUCTION, QUESTION, STATEMENT

DIGITS = 5


def prepare(tokenizer, start_token_id, texts, held_out, length, count=None):
    """All token ids as a dict of int arrays `[length]`; -1 is a digit.

    Args:
        tokenizer: a KerasHub tokenizer with a token for each digit.
        start_token_id: int.
        texts: list of str, to train on: `"train"`, int `[count, length]`, are pieces of all of them in a row.
        held_out: str.
        length: int, tokens of a piece.
        count: int, how many pieces, evenly from all texts; all if None.
    """

    def ids(text):
        return np.asarray(tokenizer(text), "int32")

    def with_digits(template):
        found = [ids(template.format(key=str(digit) * DIGITS)) for digit in (1, 2)]
        return np.where(found[0] == found[1], found[0], -1)

    pieces = {
        "start": np.asarray([start_token_id]),
        "introduction": ids(INTRODUCTION),
        "statement": with_digits("\n" + STATEMENT),
        "question": with_digits("\n" + QUESTION + " {key}."),
        "digits": np.concatenate([ids(f"1{digit}")[-1:] for digit in range(10)]),
        "first": ids("\n" + FILLER[0]),
        **{f"filler{number}": ids(" " + sentence) for number, sentence in enumerate(FILLER)},
    }
    train = np.concatenate([ids(text) for text in texts])
    train = train[: len(train) // length * length].reshape(-1, length)
    if count is not None:
        train = train[np.linspace(0, len(train) - 1, count).round().astype(int)]
    return {**pieces, "train": train, "held_out": ids(held_out)}


class Pieces:
    """PassKey texts in words, put together of token ids."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.sentences = [arrays[f"filler{number}"] for number in range(len(FILLER))]

    def with_key(self, name, key):
        """The piece `name` with the digits of `key`, int `[5]`, as token ids, and where they are."""
        ids = self.arrays[name].copy()
        places = ids < 0
        ids[places] = np.resize(self.arrays["digits"][key], places.sum())
        return ids, places

    def filler(self, sentences):
        """So many sentences of filler on a line of their own."""
        rest = [self.sentences[number % len(FILLER)] for number in range(1, sentences)]
        return np.concatenate([self.arrays["first"], *rest])

    def beginning(self, key):
        """Introduction and statement: what a text begins with."""
        arrays = self.arrays
        return np.concatenate([arrays["start"], arrays["introduction"], self.with_key("statement", key)[0]])


class KeyRow:
    """One endless PassKey text, taken piece by piece: what is read, what should be said, and where that counts."""

    def __init__(self, pieces, rng):
        self.pieces, self.rng = pieces, rng
        self.restart()

    def restart(self):
        self.key = self.rng.integers(10, size=DIGITS)
        self.queue, self.length = [], 0
        self._add(self.pieces.beginning(self.key))

    def take(self, count, sentences, restate, noise):
        """The next `count` tokens and one more, which the next call begins with: read, said, counts, `[count + 1]`."""
        while self.length <= count:
            self._add(self.pieces.filler(self.rng.integers(1, 2 * sentences)))
            if self.rng.random() < restate:
                self.key = self.rng.integers(10, size=DIGITS)
                self._add(self.pieces.with_key("statement", self.key)[0])
            else:
                said, places = self.pieces.with_key("question", self.key)
                shown = self.rng.integers(10, size=DIGITS) if self.rng.random() < noise else self.key
                # The space before the digits and the full stop behind them belong to the answer.
                answer = places | np.roll(places, -1) | np.roll(places, 1)
                self._add(self.pieces.with_key("question", shown)[0], said, answer)
        read, said, counts = (np.concatenate(each) for each in zip(*self.queue))
        self.queue = [(read[count:], said[count:], counts[count:])]
        self.length -= count
        return read[: count + 1], said[: count + 1], counts[: count + 1]

    def _add(self, read, said=None, counts=None):
        said = read if said is None else said
        self.queue.append((read, said, np.zeros(len(read), bool) if counts is None else counts))
        self.length += len(read)


class TextRow:
    """Pieces of texts from their beginning on, each behind a start token.

    The first is left at a random place, so that rows are not all as old.
    """

    def __init__(self, arrays, rng):
        self.pieces, self.start, self.rng = arrays["train"], arrays["start"], rng
        self.restart()
        self.end = int(rng.integers(self.end))

    def restart(self):
        self.piece, self.place = int(self.rng.integers(len(self.pieces))), 0
        self.ids = np.concatenate([self.start, self.pieces[self.piece]])
        self.end = len(self.ids)

    def take(self, count, *_):
        ids = self.ids[self.place : self.place + count + 1]
        self.place += count
        return ids, ids, np.ones(count + 1, bool)

    def ends(self, count):
        """Whether less than `count` tokens are left."""
        return self.place + count >= self.end


def batches(arrays, key_rows, text_rows, length, text_weight, seed, stage, states=None, words=None):
    """Endless batches for `fit`: rows of PassKey texts, then rows of texts, each going on from batch to batch.

    Args:
        arrays: dict, of `prepare`.
        key_rows: int.
        text_rows: int.
        length: int, tokens of a row.
        text_weight: float, what a token of texts weighs; a token of an answer weighs 1.
        seed: int, or a list of them.
        stage: dict that may change between batches: `restart`, the share of rows of PassKey that begin a new text;
            `sentences` of filler in the mean between two questions; `restate`, the share of these that are statements;
            `noise`, the share of answers that are read with random digits.
        states: float `[pieces, piece_length, hidden_dim]`, of `teacher.hidden_states`, if rows of text are taught.
        words: int `[count]`, the token ids that targets are places in, if it is not the whole vocabulary. What is not
            among them is taken for the next that is.

    Yields:
        `(inputs, targets, weights)`, inputs a dict of `"token_ids"` and `"padding_mask"`, int `[rows, length]`, and
        `"document_start"`, int `[rows]`; with a teacher also `"taught"`, bool `[rows]`, the rows of text, and
        `"teacher"`, float32 `[rows, length, hidden_dim]`, what the teacher has for these.
    """
    rng = np.random.default_rng(seed)
    pieces = Pieces(arrays)
    rows = [KeyRow(pieces, rng) for _ in range(key_rows)] + [TextRow(arrays, rng) for _ in range(text_rows)]
    starts = np.ones(len(rows), "int32")
    row_weights = np.asarray([1.0] * key_rows + [text_weight] * text_rows, "float32")[:, None]
    while True:
        taught = {} if states is None else _taught(states, rows[key_rows:], key_rows, length)
        drawn = [row.take(length, stage["sentences"], stage["restate"], stage["noise"]) for row in rows]
        read, said, counts = (np.stack(each) for each in zip(*drawn))
        token_ids, targets = read[:, :-1].astype("int32"), said[:, 1:].astype("int32")
        if words is not None:
            targets = np.minimum(np.searchsorted(words, targets), len(words) - 1).astype("int32")
        inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids), "document_start": starts, **taught}
        yield inputs, targets, counts[:, 1:] * row_weights
        starts = (rng.random(len(rows)) < stage["restart"]).astype("int32")
        starts[key_rows:] = [row.ends(length) for row in rows[key_rows:]]
        for row, new in zip(rows, starts):
            if new:
                row.restart()


def _taught(states, text_rows, key_rows, length):
    """What rows of text are taught in their next step."""
    of_text = np.zeros((key_rows + len(text_rows), length, states.shape[-1]), "float32")
    for row, told in zip(text_rows, of_text[key_rows:]):
        told[:] = states[row.piece, row.place : row.place + length]
    return {"taught": np.arange(len(of_text)) >= key_rows, "teacher": of_text}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--texts", nargs="+", required=True, help="text files to train on")
    parser.add_argument("--held-out", required=True, help="text file that losses are measured on")
    parser.add_argument("--length", type=int, default=8192, help="tokens of a piece of a text")
    parser.add_argument("--pieces", type=int, help="how many are trained on, evenly from all texts; else all")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    import keras_hub

    tokenizer = keras_hub.models.Tokenizer.from_preset(options.preset)
    *texts, held_out = (Path(path).read_text(encoding="utf-8") for path in (*options.texts, options.held_out))
    arrays = prepare(tokenizer, tokenizer.start_token_id, texts, held_out, options.length, options.pieces)
    np.savez_compressed(options.out, **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
