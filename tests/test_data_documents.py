"""Documents as streams: nothing lost, nothing mixed, in order, in every form, in bounded memory."""

import builtins
import re
import tracemalloc

import keras
import numpy as np
import pytest
from helpers.data_streams import documents, equal, letters, write
from helpers.order import OrderSpy, order_of
from helpers.presets import gemma_tokenizer, gpt2_tokenizer
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fam.data import DocumentStream, tokenizing
from keras_fam.data.tokenizing import read_pieces

pytestmark = pytest.mark.shared_out


def words(text):
    """One token a word, with the whitespace in front of it."""
    return [sum(letters(word)) for word in re.findall(r"\s*\S+|\s+$", text)]


TEXTS = st.lists(st.text(st.sampled_from("ab \né"), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    texts=TEXTS,
    batch_size=st.integers(1, 4),
    length=st.integers(1, 9),
    chunk_size=st.integers(1, 12),
    seed=st.none() | st.integers(0, 9),
    special=st.booleans(),
)
def test_whole_documents_come_back(tmp_path_factory, texts, batch_size, length, chunk_size, seed, special):
    paths = write(tmp_path_factory.mktemp("texts"), texts)
    ends = dict(start_token_id=1, end_token_id=2) if special else {}
    stream = DocumentStream(paths, letters, batch_size, length, seed, chunk_size=chunk_size, **ends)
    expected = [[1] * special + letters(text) + [2] * special for text in texts]
    for _ in range(2):
        batches = list(stream)
        rows = documents(batches)
        assert sorted(sum(rows, [])) == sorted(expected)
        assert len(batches) == stream.num_batches == max(sum(-(-len(d) // length) for d in row) for row in rows)
        if seed is None:
            places = [[expected.index(document) for document in row] for row in rows]
            assert len(set(map(tuple, expected))) < len(expected) or places == [sorted(row) for row in places]


def test_documents_are_dealt_by_size(tmp_path):
    texts = ["a" * size for size in (10, 40, 10, 10, 9)]
    stream = DocumentStream(write(tmp_path, texts), letters, batch_size=2, sequence_length=10)
    assert [[len(document) for document in row] for row in documents(stream)] == [[40], [10, 10, 10, 9]]
    assert stream.num_batches == 4
    stream = DocumentStream(write(tmp_path, texts), letters, batch_size=7, sequence_length=10)
    batches = list(stream)
    assert [len(row) for row in documents(batches)] == [1] * 5 + [0, 0]
    assert [batch[0]["document_start"].tolist() for batch in batches[1:]] == [[0] + [1] * 6] * 3


def test_shuffling(tmp_path):
    """Another order in every epoch, the same for the same seed; without a seed the order given."""
    paths = write(tmp_path, ["abcdefgh"[: 3 + n % 5] * 3 + str(n) for n in range(12)])
    plain, one, same, other = (DocumentStream(paths, letters, 2, 7, seed) for seed in (None, 1, 1, 2))
    epochs = {stream: [documents(stream) for _ in range(3)] for stream in (plain, one, same, other)}
    assert epochs[plain][0] == epochs[plain][1] == epochs[plain][2]
    assert epochs[one] == epochs[same] != epochs[other]
    orders = [*epochs[one], *epochs[plain]]
    assert epochs[one][0] != epochs[one][1] != epochs[one][2] != epochs[plain][0]
    for rows in orders:
        assert [sorted(row) for row in rows] == [sorted(row) for row in epochs[plain][0]]


def test_an_unfinished_epoch_is_read_again(tmp_path):
    paths = write(tmp_path, [str(n) * 20 for n in range(9)])
    stream = DocumentStream(paths, letters, 1, 4, seed=0)
    first = [batch for _, batch in zip(range(5), stream)]
    equal(first, [batch for _, batch in zip(range(5), stream)])
    equal(stream, DocumentStream(paths, letters, 1, 4, seed=0))


# === Pieces ===


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abc  \n\té."), min_size=1, max_size=60), chunk_size=st.integers(1, 20))
def test_pieces_split_no_word(tmp_path_factory, text, chunk_size):
    [path] = write(tmp_path_factory.mktemp("texts"), [text])
    pieces = list(read_pieces(path, chunk_size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) < 2 * chunk_size for piece in pieces)
    for left, right in zip(pieces, pieces[1:]):
        if left[-1:].strip() and right[:1].strip():
            place = len("".join(pieces[: pieces.index(right)]))
            assert max(map(len, text.split())) >= chunk_size, (pieces, place)


@pytest.mark.parametrize("tokenizer", [gpt2_tokenizer, gemma_tokenizer], ids=["gpt2", "gemma"])
def test_pieces_give_the_tokens_of_the_whole_text(tmp_path, tokenizer):
    tokenizer = tokenizer()
    text = "the quick brown fox  jumps over the lazy dog,\n\nthe key remember \n " * 8
    paths = write(tmp_path, [text])
    expected = np.asarray(tokenizer(text)).tolist()
    for chunk_size in (10, 17, 64, 10_000):
        [[tokens]] = documents(DocumentStream(paths, tokenizer, 1, 16, chunk_size=chunk_size))
        assert tokens == expected


def test_byte_order_marks_and_line_ends(tmp_path):
    (tmp_path / "windows.txt").write_bytes("\ufeffa\r\nb".encode())
    [[tokens]] = documents(DocumentStream([str(tmp_path / "windows.txt")], letters, 1, 8))
    assert tokens == letters("a\nb")


def test_memory_does_not_grow_with_the_document(tmp_path, monkeypatch):
    size, chunk_size = 2_000_000, 4096
    paths = write(tmp_path, ["some words " * (size // 11)])
    asked, tokenized = [], []

    def tokenizer(text):
        tokenized.append(len(text))
        return np.frombuffer(text.encode(), "uint8")

    class Opened:
        """A text file that notes how much of it is asked for."""

        def __init__(self, *arguments, **options):
            self.file = builtins.open(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def read(self, count=-1):
            asked.append(count)
            return self.file.read(count)

    monkeypatch.setattr(tokenizing, "open", Opened, raising=False)
    tracemalloc.start()
    try:
        stream = DocumentStream(paths, tokenizer, 1, 1024, chunk_size=chunk_size)
        assert asked == [chunk_size] and not tokenized
        batches = iter(stream)
        next(batches)
        assert len(asked) <= 3 and sum(tokenized) < 3 * chunk_size
        assert sum(1 for _ in batches) == stream.num_batches - 1 == size // 1024
        assert set(asked) == {chunk_size} and max(tokenized) < 2 * chunk_size
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()


# === Forms ===


@pytest.fixture
def paths(tmp_path):
    return write(tmp_path, ["the quick brown fox " * count for count in (3, 9, 1, 4)] + ["x"])


def make(paths, seed=0):
    return DocumentStream(paths, gpt2_tokenizer(), 2, 8, seed, chunk_size=16)


def test_all_forms_give_the_same_batches(paths):
    stream, by_index = make(paths), make(paths)
    dataset, loader = make(paths).as_tf_data(), make(paths).as_torch_loader()
    for _ in range(2):
        batches = list(stream)
        equal((by_index[index] for index in range(by_index.num_batches)), batches)
        equal(dataset.as_numpy_iterator(), batches)
        equal((keras.tree.map_structure(lambda x: x.numpy(), batch) for batch in loader), batches)
    assert [spec.shape.as_list() for spec in keras.tree.flatten(dataset.element_spec)] == [[2], *[[2, 8]] * 4]


@pytest.mark.parametrize("form", ["py_dataset", "tf_data", "torch_loader"])
def test_fit_reads_every_document_once_an_epoch(paths, form):
    stream = make(paths)
    data = {"py_dataset": lambda: stream, "tf_data": stream.as_tf_data, "torch_loader": stream.as_torch_loader}[form]()
    model = OrderSpy.model(gpt2_tokenizer().vocabulary_size())
    history = model.fit(data, epochs=3, shuffle=False, verbose=0).history
    assert len(history["loss"]) == 3 and np.isfinite(history["loss"]).all()
    expected = make(paths)
    assert model.get_layer("spy").order() == order_of(batch for _ in range(3) for batch in expected)
    loss = model.evaluate(data, verbose=0)
    assert np.isfinite(loss)


def test_fit_in_steps_goes_on(paths):
    stream = make(paths)
    steps = stream.num_batches // 2
    model = OrderSpy.model(gpt2_tokenizer().vocabulary_size())
    model.fit(stream, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert model.get_layer("spy").order() == order_of(batch for _, batch in zip(range(2 * steps), make(paths)))


def test_shuffled_batches_are_refused(paths):
    """Keras shuffles a PyDataset unless told otherwise."""
    model = OrderSpy.model(gpt2_tokenizer().vocabulary_size())
    with pytest.raises(Exception, match="shuffle=False"):
        model.fit(make(paths), verbose=0)


def test_batches_in_order(paths):
    stream = make(paths)
    refused(lambda: stream[1], "shuffle=False", "index=1")
    first, second = stream[0], stream[1]
    refused(lambda: stream[1], "index=1")
    equal([stream[0], stream[1]], [first, second])  # a new epoch, beside the first one
    third = stream[2]
    equal([stream[2]], [third])
    for index in range(3, stream.num_batches):
        stream[index]
    refused(lambda: stream[stream.num_batches], "index", stream.num_batches, error=IndexError)
    for index in (-1, 0.0, None):
        refused(lambda index=index: stream[index], "index", index)


# === Bad arguments and files ===


@pytest.mark.parametrize(
    "name, value, received",
    [
        ("paths", [], "none"),
        ("paths", "text.txt", "text.txt"),
        ("paths", None, None),
        ("paths", [3], 3),
        ("tokenizer", None, None),
        ("tokenizer", "gpt2", "gpt2"),
        ("batch_size", 0, 0),
        ("batch_size", 2.0, 2.0),
        ("sequence_length", 0, 0),
        ("sequence_length", "8", "8"),
        ("seed", -1, -1),
        ("seed", 0.5, 0.5),
        ("start_token_id", -1, -1),
        ("end_token_id", "2", "2"),
        ("chunk_size", 0, 0),
        ("chunk_size", None, None),
        ("verbose", True, True),
        ("verbose", 3, 3),
    ],
    ids=str,
)
def test_bad_streams(paths, name, value, received):
    options = dict(paths=paths, tokenizer=letters, batch_size=2, sequence_length=8)
    refused(lambda: DocumentStream(**{**options, name: value}), name, received)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["empty"]),
        (b"\xef\xbb\xbf", ["empty"]),
        (b"text \xff text", ["UTF-8", "0xff"]),
        ("text".encode("utf-16"), ["UTF-8"]),
        (b"text\0text", ["NUL"]),
    ],
    ids=str,
)
def test_bad_files(paths, tmp_path, content, words):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(content)
    refused(lambda: DocumentStream([*paths, bad], letters, 2, 8), "paths", "bad.txt", *words, error=ValueError)


def test_missing_files(paths, tmp_path):
    for missing in (tmp_path / "missing.txt", tmp_path):
        refused(
            lambda missing=missing: DocumentStream([*paths, missing], letters, 2, 8),
            *("paths", missing),
            error=FileNotFoundError,
        )


def test_files_that_turn_bad_further_on(paths, tmp_path):
    for name, content in (("nul.txt", b"a " * 20_000 + b"\0"), ("bytes.txt", b"a " * 20_000 + b"\xff")):
        (tmp_path / name).write_bytes(content)
        stream = DocumentStream([tmp_path / name], letters, 1, 1000, chunk_size=64)
        refused(lambda stream=stream: list(stream), "paths", name, error=ValueError)


def test_documents_without_tokens(tmp_path):
    [path] = write(tmp_path, ["   "])
    stream = DocumentStream([path], str.split, 1, 8)
    refused(lambda: list(stream), "paths", path, "none")
    refused(lambda: stream[0], "none")


def test_tokenizers_that_give_no_token_ids(paths):
    for tokenizer, received in ((str.split, "dtype"), (lambda text: [[1, 2]], (1, 2)), (lambda text: [0.5], "float")):
        stream = DocumentStream(paths, tokenizer, 2, 8)
        refused(lambda stream=stream: next(iter(stream)), "tokenizer", received)


def test_tokenizers_that_add_or_cut(paths):
    tokenizer = gpt2_tokenizer()
    tokenizer.sequence_length = 4
    refused(lambda: DocumentStream(paths, tokenizer, 2, 8), "tokenizer", "sequence_length=4")
    tokenizer = gemma_tokenizer()
    tokenizer.add_bos = True
    refused(lambda: DocumentStream(paths, tokenizer, 2, 8), "tokenizer", "add_bos=True")
