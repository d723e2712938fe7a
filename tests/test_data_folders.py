"""Corpora in folders: which files are read, in which order, by which subset; and how many batches there are."""

import os
import random

import keras
import numpy as np
import pytest
from helpers.data_streams import documents, equal, letters, write
from helpers.order import OrderSpy, order_of
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fam.data import DocumentStream

pytestmark = pytest.mark.shared_out

FILES = ["b.txt", "a.txt", "deep/er/c.txt", "deep/a.txt", "deep/notes.md", "z.text", "deep/[1].txt"]


@pytest.fixture
def corpus(tmp_path):
    """Seven files in folders, five of them `*.txt`, and a folder with the name of one."""
    for number, name in enumerate(FILES):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("abcdefg"[number] * (number + 1))
    (tmp_path / "corpus" / "folder.txt").mkdir()
    return tmp_path / "corpus"


def names(stream, corpus):
    return [os.path.relpath(path, corpus) for path in stream.paths]


# === Which files ===


TEXTS_BELOW = ["a.txt", "b.txt", "deep/[1].txt", "deep/a.txt", "deep/er/c.txt"]


@pytest.mark.parametrize(
    "paths, expected",
    [
        ("", TEXTS_BELOW),
        ("deep", ["deep/[1].txt", "deep/a.txt", "deep/er/c.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", TEXTS_BELOW),
        ("**/*.md", ["deep/notes.md"]),
        ("?.t*", ["a.txt", "b.txt", "z.text"]),
        ("z.text", ["z.text"]),
        ("deep/[1].txt", ["deep/[1].txt"]),  # a file, though it reads as a pattern
        (["b.txt", "deep/notes.md", "a.txt", "b.txt"], ["b.txt", "deep/notes.md", "a.txt", "b.txt"]),
        (("b.txt",), ["b.txt"]),
    ],
    ids=str,
)
def test_files_found(corpus, paths, expected):
    for form in (str, lambda path: path):
        given_paths = form(corpus / paths) if isinstance(paths, str) else [form(corpus / path) for path in paths]
        stream = DocumentStream(given_paths, letters, 1, 8)
        assert names(stream, corpus) == expected
        assert ["".join(map(chr, d)) for d in documents(stream)[0]] == [(corpus / p).read_text() for p in expected]


def test_no_files_found(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("text")
    for paths in (tmp_path / "empty", str(tmp_path / "empty"), str(corpus / "*.pdf"), str(corpus / "missing"), ""):
        refused(lambda paths=paths: DocumentStream(paths, letters, 1, 8), "`paths`", paths, error=ValueError)
    for paths in (b"text", bytearray(b"text"), 3, {"a": 1}, iter([]), np.array(["a"])):
        refused(lambda paths=paths: DocumentStream(paths, letters, 1, 8), "`paths`", error=TypeError)
    for wrong in (None, b"a", ["a"], float("nan")):
        paths = [corpus / "a.txt", wrong]
        refused(lambda paths=paths: DocumentStream(paths, letters, 1, 8), "`paths`", wrong, error=TypeError)
    for wrong in ("", "*.txt", corpus / "deep", "nul\0"):
        paths = [corpus / "a.txt", wrong]
        refused(lambda paths=paths: DocumentStream(paths, letters, 1, 8), "`paths`", error=FileNotFoundError)


# === Every token once ===


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab \né"), min_size=1, max_size=40), min_size=1, max_size=8),
    batch_size=st.integers(1, 12),
    length=st.integers(1, 9),
    seed=st.none() | st.integers(0, 9),
    shuffle=st.none() | st.booleans(),
    split=st.none() | st.sampled_from([0.01, 0.3, 0.5, 0.99]),
)
def test_an_epoch_reads_every_token_once(tmp_path_factory, texts, batch_size, length, seed, shuffle, split):
    """`documents` holds what it reads against the rules of a stream: order, `document_start`, targets, weights."""
    folder = tmp_path_factory.mktemp("texts")
    paths = write(folder, texts)
    options = dict(seed=seed, shuffle=shuffle, chunk_size=7)
    if split is None or len(texts) == 1:
        streams = [DocumentStream(folder, letters, batch_size, length, **options)]
    else:
        streams = DocumentStream.both(folder, letters, batch_size, length, split, **options)
    expected = sorted(letters(path.read_text()) for path in paths)
    for _ in range(3):
        read = []
        for stream in streams:
            batches = list(stream)
            assert len(batches) == len(stream) == stream.num_batches
            read += sum(documents(batches), [])
        assert sorted(read) == expected


# === Subsets ===


def subsets(paths, split, seed):
    def make(subset):
        return DocumentStream(paths, letters, 2, 8, seed, validation_split=split, subset=subset)

    training, validation = make("training"), make("validation")
    assert [s.paths for s in DocumentStream.both(paths, letters, 2, 8, split, seed)] == [
        training.paths,
        validation.paths,
    ]
    assert make("training").paths == training.paths
    for stream in (training, validation):
        assert stream.paths == [str(path) for path in paths if str(path) in stream.paths]  # in the order given
    assert sorted(training.paths + validation.paths) == sorted(map(str, paths))
    return training.paths, validation.paths


def test_subsets_share_no_document(tmp_path):
    paths = write(tmp_path, ["text"] * 20)
    for split, count in ((0.1, 2), (0.25, 5), (0.5, 10), (0.9, 18), (0.001, 1), (0.999, 19)):
        for seed in (None, 0, 1, 2):
            assert len(subsets(paths, split, seed)[1]) == count
    held_out = {seed: tuple(subsets(paths, 0.25, seed)[1]) for seed in range(20)}
    assert len(set(held_out.values())) == 20
    assert {path for found in held_out.values() for path in found} == set(map(str, paths))
    assert subsets(paths, 0.25, None)[1] == [str(path) for path in paths[-5:]]
    assert [len(found) for found in subsets(paths[:2], 0.5, 3)] == [1, 1]


def test_the_split_is_of_documents_not_of_order(tmp_path):
    """Whether the documents are shuffled changes no subset."""
    paths = write(tmp_path, ["text"] * 10)
    split = dict(seed=4, validation_split=0.3, subset="validation")
    found = [DocumentStream(paths, letters, 1, 8, shuffle=shuffle, **split).paths for shuffle in (None, False, True)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(validation_split=0.5), ["`validation_split`", "`subset`", "None"]),
        (dict(subset="training"), ["`validation_split`", "`subset`", "'training'"]),
        (dict(subset="test", validation_split=0.5), ["`subset`", "'test'"]),
        (dict(subset="both", validation_split=0.5), ["`subset`", "DocumentStream.both"]),
        (dict(subset=["training"], validation_split=0.5), ["`subset`", "['training']"]),
        *[
            (dict(subset="training", validation_split=wrong), ["`validation_split`", wrong])
            for wrong in (0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), "0.5", True)
        ],
        (dict(shuffle=1), ["`shuffle`", 1]),
        (dict(shuffle="yes"), ["`shuffle`", "yes"]),
    ],
    ids=str,
)
def test_bad_subsets(corpus, changes, words):
    refused(lambda: DocumentStream(corpus, letters, 1, 8, **changes), *words)


def test_bad_calls_of_both(corpus):
    refused(lambda: DocumentStream.both(corpus / "deep" / "er", letters, 1, 8, 0.5), "`validation_split`", "1 document")
    refused(lambda: DocumentStream.both(corpus, letters, 1, 8, 0.5, subset="training"), "subset", error=TypeError)
    refused(lambda: DocumentStream.both(corpus, letters, 1, 8, None), "`validation_split`", "None")


# === Order ===


def orders(stream):
    return [documents(stream) for _ in range(4)]


def test_shuffle_and_seed(tmp_path):
    paths = write(tmp_path, [str(n) * 9 for n in range(8)])

    def stream(**options):
        return DocumentStream(paths, letters, 2, 4, **options)

    plain, no_shuffle, still = orders(stream()), orders(stream(seed=1, shuffle=False)), orders(stream(shuffle=False))
    assert plain == no_shuffle == still == [plain[0]] * 4
    shuffled, asked, other = orders(stream(seed=1)), orders(stream(seed=1, shuffle=True)), orders(stream(seed=2))
    assert shuffled == asked != other
    assert len({str(epoch) for epoch in shuffled}) > 2
    for epoch in shuffled:
        assert [sorted(row) for row in epoch] == [sorted(row) for row in plain[0]]
    keras.utils.set_random_seed(3)
    drawn = orders(stream(shuffle=True))
    keras.utils.set_random_seed(3)
    assert orders(stream(shuffle=True)) == drawn != orders(stream(shuffle=True))
    assert len({str(epoch) for epoch in drawn}) > 2


def test_one_stream_keeps_its_seed(tmp_path):
    """Readings that were broken off begin the same epoch again, whatever else is drawn meanwhile."""
    stream = DocumentStream(write(tmp_path, [str(n) * 9 for n in range(8)]), letters, 2, 4, shuffle=True)
    first = [batch for _, batch in zip(range(3), stream)]
    random.random()
    equal(first, [batch for _, batch in zip(range(3), stream)])


def test_validation_keeps_its_order(tmp_path):
    paths = write(tmp_path, [str(n) * 9 for n in range(9)])
    training, validation = DocumentStream.both(paths, letters, 1, 4, 0.5, seed=1)
    assert training.shuffle and not validation.shuffle
    assert orders(validation) == [documents(validation)] * 4
    training, _ = DocumentStream.both(paths, letters, 1, 4, 0.5, seed=1, shuffle=False)
    assert orders(training) == [documents(training)] * 4


# === In training ===


class Steps(keras.callbacks.Callback):
    """The number of steps that the progress bar is told, and the steps that were begun."""

    def on_train_begin(self, logs=None):
        self.told, self.begun = None, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.told = self.params["steps"]

    def on_train_batch_begin(self, batch, logs=None):
        self.begun += 1


def test_fit_knows_the_number_of_batches(tmp_path, capsys):
    paths = write(tmp_path, ["abcdefgh" * n for n in (1, 3, 5, 2, 4)])
    stream, steps = DocumentStream(paths, letters, 2, 5, seed=0), Steps()
    model = OrderSpy.model(128)
    model.fit(stream, epochs=2, shuffle=False, verbose=1, callbacks=[steps])
    assert steps.told == len(stream) == len(list(stream)) and steps.begun == 2 * len(stream)
    assert f"{len(stream)}/{len(stream)}" in capsys.readouterr().out


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_counting_shows_its_progress(tmp_path, capsys, verbose):
    paths = write(tmp_path, ["abcdefgh" * n for n in (1, 3, 5)])
    stream = DocumentStream(paths, letters, 2, 5, verbose=verbose)
    for _ in stream:
        pass
    assert not capsys.readouterr().out
    assert len(stream) == len(list(stream))
    shown = capsys.readouterr().out
    assert ("3/3" in shown and "tokens: 72" in shown) if verbose else not shown
    assert ("0/3" in shown) == (verbose == 1)
    assert len(stream) and not capsys.readouterr().out


def test_fit_with_validation_data(tmp_path):
    paths = write(tmp_path, ["abcdefgh" * n for n in (1, 3, 5, 2, 4)])
    training, validation = DocumentStream.both(paths, letters, 2, 5, 0.4, seed=0)
    model = OrderSpy.model(128)
    history = model.fit(training, validation_data=validation, epochs=2, shuffle=False, verbose=0).history
    alone = DocumentStream(paths, letters, 2, 5, seed=0, validation_split=0.4, subset="training")
    assert model.get_layer("spy").order() == order_of(batch for _ in range(2) for batch in alone)
    np.testing.assert_allclose(history["val_loss"][-1], model.evaluate(validation, verbose=0), rtol=1e-5)


@pytest.mark.parametrize(
    "content", [b"a " * 20_000 + b"\xff", b"a " * 20_000 + b"\0", b" " * 9], ids=["bytes", "nul", ""]
)
def test_a_file_broken_further_on_is_found_before_the_first_step(tmp_path, content):
    paths = write(tmp_path, ["fine text"] * 3)
    (tmp_path / "broken.txt").write_bytes(content)
    tokenizer = letters if content.strip() else lambda text: [ord(word[0]) for word in text.split()]
    stream = DocumentStream([*paths, tmp_path / "broken.txt"], tokenizer, 2, 5, chunk_size=16)
    model, steps = OrderSpy.model(128), Steps()
    refused(lambda: len(stream), "`paths`", "broken.txt", error=ValueError)
    with pytest.raises(ValueError, match="broken.txt"):
        model.fit(stream, shuffle=False, verbose=0, callbacks=[steps])
    assert getattr(steps, "begun", 0) == 0
    assert model.get_layer("spy").order() == 0
