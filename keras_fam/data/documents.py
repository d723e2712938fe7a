"""Long documents as continuous streams of batches, for corpora larger than memory."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import keras
import numpy as np

from keras_fam.checks import check_integer, check_sequence
from keras_fam.data.tokenizing import check_tokenizer, read_pieces

Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


class DocumentStream(keras.utils.PyDataset):
    """Batches in which each row reads on through whole documents: row i of batch t + 1 continues row i of batch t.

    It is for training and scoring with memory that is carried from batch to batch. Every file is one document. A
    document begins at the start of a batch and its last batch is padded; then its row takes its next document.
    Documents are dealt to rows once, by file size, so that rows end at about the same time; a row that has ended is
    padding until all have. Files are read and tokenized piece by piece: what is held of a document is some `chunk_size`
    characters.

    Batches are `(inputs, targets, weights)`, with L the sequence length: inputs a dict of `"token_ids"` and
    `"padding_mask"`, int32 `[batch_size, L]`, and `"document_start"`, int32 `[batch_size]`, 1 for rows that begin a
    document or have none left; targets, the next tokens, int32 `[batch_size, L]`, at the last place the first token of
    the next batch; weights, float32 `[batch_size, L]`, 0 on padding and on a document's last token.

    `fit(stream, shuffle=False)` reads every document once an epoch. Without `shuffle=False` Keras would take the
    batches in random order: the stream refuses. Keras has to know the number of batches, so at its first use all
    documents are tokenized once only to count them; `as_tf_data` and `as_torch_loader` give the same batches without.

    Args:
        paths: sequence of paths of text files in UTF-8.
        tokenizer: a KerasHub tokenizer, or a callable from a str to token ids; without padding or special tokens.
        batch_size: int, rows.
        sequence_length: int, tokens per row and batch, L.
        seed: int, to read each row's documents in another random order in every epoch, or None for the order given.
        start_token_id, end_token_id: int, put in front of and behind every document, or None.
        chunk_size: int, characters that are read at once. Only a word of at least this length may be cut between two
            pieces.

    Raises:
        FileNotFoundError: a file that is not there.
        TypeError, ValueError: an argument of another type or out of range; no paths; a file that is empty or no UTF-8
            text. Of each file the first chunk is checked at construction, the rest when it is read.

    Example:

    ```python
    with open("long.txt", "w") as file:
        file.write("a long document " * 100)
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    stream = keras_fam.data.DocumentStream(["long.txt"], tokenizer, batch_size=1, sequence_length=64)
    for inputs, targets, weights in stream:
        tokens = inputs["token_ids"]
    ```
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        tokenizer: Any,
        batch_size: int,
        sequence_length: int,
        seed: int | None = None,
        start_token_id: int | None = None,
        end_token_id: int | None = None,
        chunk_size: int = 65_536,
    ):
        super().__init__()
        self.tokenize = check_tokenizer(tokenizer)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.sequence_length = check_integer("sequence_length", sequence_length, 1)
        self.seed = None if seed is None else check_integer("seed", seed, 0)
        self.start_ids = _special("start_token_id", start_token_id)
        self.end_ids = _special("end_token_id", end_token_id)
        self.chunk_size = check_integer("chunk_size", chunk_size, 1)
        self.paths = _check_paths(paths)
        for path in self.paths:
            _check_text(path, self.chunk_size)
        self.rows = _deal(self.paths, self.batch_size)
        self._num_batches = None
        self._lock = threading.Lock()
        self._epochs = self._counted_epochs()
        self._readers = []  # (index of the next batch, reader), the one used last at the end

    # === Reading ===

    def __iter__(self) -> Iterator[Batch]:
        """One epoch's batches."""
        return self._epochs()

    def _counted_epochs(self) -> Callable[[], Iterator[Batch]]:
        """A function that reads an epoch; the next one has another order once an epoch was read to its end."""
        epoch = 0

        def read():
            nonlocal epoch
            yield from self._read(epoch)
            epoch += 1

        return read

    def _read(self, epoch):
        rows = self.rows
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, epoch])
            rows = [[row[i] for i in rng.permutation(len(row))] for row in rows]
        for windows in zip_longest(*(self._row(row) for row in rows)):
            yield self._batch(windows)

    def _row(self, paths):
        """Yields `(start, ids)` for each batch of a row: ids with the next token, so up to `sequence_length + 1`."""
        for path in paths:
            start, ids = 1, np.zeros(0, "int32")
            for piece in self._tokens(path):
                ids = np.concatenate([ids, piece])
                while len(ids) > self.sequence_length:
                    yield start, ids[: self.sequence_length + 1]
                    start, ids = 0, ids[self.sequence_length :]
            if not len(ids):
                raise ValueError(f"`paths` must name files with at least one token. Received: {path!r}, with none.")
            yield start, ids

    def _tokens(self, path):
        yield self.start_ids
        for text in read_pieces(path, self.chunk_size):
            yield check_sequence("tokenizer", self.tokenize(text))
        yield self.end_ids

    def _batch(self, windows):
        shape = (self.batch_size, self.sequence_length)
        token_ids, padding_mask, targets = (np.zeros(shape, "int32") for _ in range(3))
        weights, document_start = np.zeros(shape, "float32"), np.ones(self.batch_size, "int32")
        for row, window in enumerate(windows):
            if window is None:
                continue
            document_start[row], ids = window
            length = min(len(ids), self.sequence_length)
            token_ids[row, :length] = ids[:length]
            padding_mask[row, :length] = 1
            targets[row, : len(ids) - 1] = ids[1:]
            weights[row, : len(ids) - 1] = 1.0
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask, "document_start": document_start}
        return inputs, targets, weights

    # === As a PyDataset ===

    @property
    def num_batches(self) -> int:
        """Batches per epoch, the same in every epoch. The first use tokenizes all documents to count them."""
        if self._num_batches is None:
            self._num_batches = max(sum(map(self._count, row)) for row in self.rows)
        return self._num_batches

    def _count(self, path):
        return -(-sum(map(len, self._tokens(path))) // self.sequence_length)

    def __getitem__(self, index: int) -> Batch:
        """The batch after the one last asked for; index 0 begins an epoch.

        Keras begins and abandons passes to look at shapes, so a few may be open side by side.
        """
        index = check_integer("index", index, 0)
        with self._lock:
            if index == 0:
                reader = self._epochs()
            else:
                latest = [place for place, (at, _) in enumerate(self._readers) if at == index][-1:]
                if not latest:
                    raise ValueError(
                        "A DocumentStream must be read in order from index 0 on: pass shuffle=False to `fit`. "
                        f"Received: index={index}."
                    )
                reader = self._readers.pop(latest[0])[1]
            batch = next(reader, None)
            if batch is None:
                raise IndexError(f"`index` must be below the number of batches. Received: index={index}.")
            if index + 1 == self._num_batches:
                next(reader, None)  # to its end: the epoch is over
            self._readers = [*self._readers[-3:], (index + 1, reader)]
        return batch

    # === As other datasets ===

    def as_tf_data(self):
        """The same batches as a `tf.data.Dataset`; every iteration over it is one epoch. Needs tensorflow."""
        import tensorflow as tf

        ids = tf.TensorSpec((self.batch_size, self.sequence_length), tf.int32)
        inputs = {"token_ids": ids, "padding_mask": ids, "document_start": tf.TensorSpec((self.batch_size,), tf.int32)}
        signature = (inputs, ids, tf.TensorSpec(ids.shape, tf.float32))
        return tf.data.Dataset.from_generator(self._counted_epochs(), output_signature=signature)

    def as_torch_loader(self):
        """The same batches as a `torch.utils.data.DataLoader`; every iteration over it is one epoch. Needs torch."""
        import torch

        read = self._counted_epochs()

        class Batches(torch.utils.data.IterableDataset):
            def __iter__(self):
                for batch in read():
                    yield keras.tree.map_structure(torch.from_numpy, batch)

        return torch.utils.data.DataLoader(Batches(), batch_size=None, collate_fn=lambda batch: batch)


# === Documents ===


def _check_paths(paths):
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Sequence):
        raise TypeError(f"`paths` must be a list of paths. Received: paths={paths!r} of type {type(paths).__name__}.")
    if not paths:
        raise ValueError("`paths` must hold at least one path. Received: none.")
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"`paths` must hold paths. Received: {path!r} of type {type(path).__name__}.")
    return [os.fspath(path) for path in paths]


def _check_text(path, chunk_size):
    """Looks at a file's size and at its first chunk."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`paths` must name existing files. Received: {path!r}.")
    pieces = read_pieces(path, chunk_size)
    if next(pieces, None) is None:
        raise ValueError(f"`paths` must name files that hold text. Received: {path!r}, which is empty.")
    pieces.close()


def _deal(paths, batch_size):
    """Each row's documents, in the order given: the largest file first, to the row with the fewest bytes so far."""
    rows, loads = [[] for _ in range(batch_size)], np.zeros(batch_size)
    sizes = [os.path.getsize(path) for path in paths]
    for index in sorted(range(len(paths)), key=lambda i: -sizes[i]):
        row = int(loads.argmin())
        rows[row].append(index)
        loads[row] += sizes[index]
    return [[paths[index] for index in sorted(row)] for row in rows]


def _special(name, token_id):
    return np.array([] if token_id is None else [check_integer(name, token_id, 0)], "int32")
