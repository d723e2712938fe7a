"""Long documents as continuous streams of batches, for corpora larger than memory."""

import random
import threading
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_fam.checks import check_flag, check_integer, check_keywords, check_probability
from keras_fam.data.checks import MAX_INT, check_ids, check_size
from keras_fam.data.document_files import Paths, check_text, deal_files, find_files, split_files
from keras_fam.data.tokenizing import check_tokenizer, read_pieces

if TYPE_CHECKING:
    import tensorflow as tf
    import torch

Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]
SUBSETS = ("training", "validation")


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
    batches in random order: the stream refuses. Keras has to know the number of batches, for its progress bar too, so
    at its first use, and before the first step of training, all documents are tokenized once only to count them, with
    a progress bar: a file that is broken further on is found then. `as_tf_data` and `as_torch_loader` give the same
    batches without; there the progress bar of `fit` knows the number from the second epoch on.

    Args:
        paths: the documents, text files in UTF-8: a folder, for all files `*.txt` in and below it, sorted by path; a
            glob pattern such as `"books/**/*.md"`, sorted as well; or a sequence of paths, in its own order.
        tokenizer: a KerasHub tokenizer, or a callable from a str to token ids; without padding or special tokens.
        batch_size: int, rows.
        sequence_length: int, tokens per row and batch, L. A batch has at most 2**31 - 1 tokens.
        seed: int, draws the order of documents and the split, or None for the order given.
        start_token_id: int, put in front of every document, or None.
        end_token_id: int, put behind every document, or None.
        chunk_size: int, characters that are read at once. Only a word of at least this length may be cut between two
            pieces.
        shuffle: bool, whether each row reads its documents in another random order in every epoch. None for whether
            there is a `seed`. True without a seed draws one from Python's `random`, which
            `keras.utils.set_random_seed` fixes.
        validation_split: float in (0, 1), share of the documents that are held out for validation, at least one: drawn
            by `seed`, or the last ones if it is None. Documents stay whole.
        subset: `"training"` or `"validation"`, which documents this stream reads, if `validation_split` is given; None
            if it is not. `DocumentStream.both` makes the two streams.
        verbose: 1 for a progress bar while documents are counted, 2 for its last line alone, 0 for none.

    Raises:
        FileNotFoundError: a file of a list that is not there.
        TypeError, ValueError: an argument of another type or out of range; no files; a file that is empty or no UTF-8
            text; ids of the tokenizer that are no integers in 0 to 2**31 - 1. Of each file the first chunk is checked
            at construction, the rest when it is read.

    Example:

    ```python
    with open("long.txt", "w") as file:
        file.write("a long document " * 100)
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    stream = keras_fam.data.DocumentStream(".", tokenizer, batch_size=1, sequence_length=64)
    for inputs, targets, weights in stream:
        tokens = inputs["token_ids"]
    ```
    """

    def __init__(
        self,
        paths: Paths,
        tokenizer: Any,
        batch_size: int,
        sequence_length: int,
        seed: int | None = None,
        start_token_id: int | None = None,
        end_token_id: int | None = None,
        chunk_size: int = 65_536,
        shuffle: bool | None = None,
        validation_split: float | None = None,
        subset: str | None = None,
        verbose: int = 1,
    ):
        super().__init__()
        self.tokenize = check_tokenizer(tokenizer)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.sequence_length = check_integer("sequence_length", sequence_length, 1)
        check_size(batch_size=self.batch_size, sequence_length=self.sequence_length)
        self.seed = None if seed is None else check_integer("seed", seed, 0, None)
        self.start_ids = _special("start_token_id", start_token_id)
        self.end_ids = _special("end_token_id", end_token_id)
        self.chunk_size = check_integer("chunk_size", chunk_size, 1, MAX_INT)
        self.shuffle = seed is not None if shuffle is None else check_flag("shuffle", shuffle)
        self._order_seed = random.getrandbits(32) if self.shuffle and seed is None else self.seed
        self.verbose = check_integer("verbose", verbose, 0, 2)
        _check_split(validation_split, subset)
        self.paths = find_files(paths)
        if subset is not None and validation_split is not None:
            self.paths = split_files(self.paths, validation_split, subset, self.seed)
        for path in self.paths:
            check_text(path, self.chunk_size)
        self.rows = deal_files(self.paths, self.batch_size)
        self._num_batches: int | None = None
        self._lock = threading.Lock()
        self._epochs = self._counted_epochs()
        self._readers: list[
            tuple[int, Iterator[Batch]]
        ] = []  # (index of the next batch, reader), the one used last at the end

    @classmethod
    def both(
        cls,
        paths: Paths,
        tokenizer: Any,
        batch_size: int,
        sequence_length: int,
        validation_split: float,
        seed: int | None = None,
        **options: Any,
    ) -> tuple["DocumentStream", "DocumentStream"]:
        """The two subsets of one corpus: for `fit(training, validation_data=validation, shuffle=False)`.

        Args:
            paths: see `DocumentStream`, as are the others.
            tokenizer: a tokenizer.
            batch_size: int.
            sequence_length: int.
            validation_split: float in (0, 1).
            seed: int, or None.
            **options: `start_token_id`, `end_token_id`, `chunk_size`, `verbose` and `shuffle`. The last is for training
                alone: validation keeps the order given.

        Returns:
            `(training, validation)`.

        Raises:
            FileNotFoundError, TypeError, ValueError: see `DocumentStream`; less than two documents.

        Example:

        ```python
        for name in ("one", "two", "three"):
            with open(f"{name}.txt", "w") as file:
                file.write(f"a long document, number {name} " * 100)
        tokenizer = keras_hub.tokenizers.ByteTokenizer()
        training, validation = keras_fam.data.DocumentStream.both(".", tokenizer, 1, 64, validation_split=0.3, seed=0)
        len(training.paths), len(validation.paths)  # 2, 1
        ```
        """
        check_keywords(options, ("start_token_id", "end_token_id", "chunk_size", "verbose", "shuffle"))
        shuffle = options.pop("shuffle", None)

        def stream(subset, shuffle):
            split = dict(validation_split=validation_split, subset=subset)
            return cls(paths, tokenizer, batch_size, sequence_length, seed, shuffle=shuffle, **split, **options)

        return stream("training", shuffle), stream("validation", False)

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
        if self.shuffle:
            rng = np.random.default_rng([self._order_seed, epoch])
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
                raise _no_tokens(path)
            yield start, ids

    def _tokens(self, path):
        yield self.start_ids
        for text in read_pieces(path, self.chunk_size):
            yield check_ids("tokenizer", self.tokenize(text), "give")
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
            self._num_batches = self._count()
        return self._num_batches

    def _count(self):
        progress = keras.utils.Progbar(
            len(self.paths), verbose=self.verbose, unit_name="document", stateful_metrics=["tokens"]
        )
        batches, documents, tokens = [0] * len(self.rows), 0, 0
        for row, paths in enumerate(self.rows):
            for path in paths:
                length = 0
                for ids in self._tokens(path):
                    length += len(ids)
                    progress.update(documents, [("tokens", tokens + length)])
                if not length:
                    raise _no_tokens(path)
                documents, tokens = documents + 1, tokens + length
                batches[row] += -(-length // self.sequence_length)
        progress.update(documents, [("tokens", tokens)], finalize=True)
        return max(batches)

    def __len__(self) -> int:
        """See `num_batches`."""
        return self.num_batches

    def __getitem__(self, index: int) -> Batch:
        """The batch after the one last asked for; index 0 begins an epoch.

        Keras begins and abandons passes to look at shapes, so a few may be open side by side.
        """
        index = check_integer("index", index, 0, MAX_INT)
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

    def as_tf_data(self) -> "tf.data.Dataset":
        """The same batches as a `tf.data.Dataset`; every iteration over it is one epoch. Needs tensorflow."""
        import tensorflow as tf

        ids = tf.TensorSpec((self.batch_size, self.sequence_length), tf.int32)
        inputs = {"token_ids": ids, "padding_mask": ids, "document_start": tf.TensorSpec((self.batch_size,), tf.int32)}
        signature = (inputs, ids, tf.TensorSpec(ids.shape, tf.float32))
        return tf.data.Dataset.from_generator(self._counted_epochs(), output_signature=signature)

    def as_torch_loader(self) -> "torch.utils.data.DataLoader":
        """The same batches as a `torch.utils.data.DataLoader`; every iteration over it is one epoch. Needs torch."""
        import torch

        read = self._counted_epochs()

        class Batches(torch.utils.data.IterableDataset):
            def __iter__(self):
                for batch in read():
                    yield keras.tree.map_structure(torch.from_numpy, batch)

        return torch.utils.data.DataLoader(Batches(), batch_size=None, collate_fn=lambda batch: batch)


def _no_tokens(path):
    return ValueError(f"`paths` must name files with at least one token. Received: {path!r}, with none.")


# === Arguments ===


def _special(name, token_id):
    return np.array([] if token_id is None else [check_integer(name, token_id, 0, MAX_INT)], "int32")


def _check_split(validation_split, subset):
    """Both or neither; `validation_split` in (0, 1)."""
    if (validation_split is None) != (subset is None):
        raise ValueError(
            "`validation_split` and `subset` must be given together. Received: "
            f"validation_split={validation_split}, subset={subset!r}."
        )
    if validation_split is None:
        return
    check_probability("validation_split", validation_split)
    if validation_split in (0, 1):
        raise ValueError(f"`validation_split` must lie in (0, 1). Received: validation_split={validation_split}.")
    if not isinstance(subset, str) or subset not in SUBSETS:
        raise ValueError(
            "`subset` must be 'training' or 'validation', and `DocumentStream.both` makes both. Received: "
            f"subset={subset!r}."
        )
