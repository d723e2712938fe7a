"""Token ids from anywhere: kept exactly up to the largest int32, refused beyond it and below 0, never wrapped."""

import keras_hub
import numpy as np
import pytest
from helpers.refusals import refused
from keras import ops

from keras_fam.data import DocumentStream, PassKeyScores, PassKeyTask, pack, passkey_text, repeat_random_segment

pytestmark = pytest.mark.shared_out

TASK = PassKeyTask(16, key_length=2)
LARGEST = 2**31 - 1


def tokens_of(tmp_path, ids):
    (tmp_path / "a.txt").write_text("text")
    return DocumentStream([tmp_path / "a.txt"], lambda text: ids, 1, 8)


def segment(**changes):
    arguments = dict(token_ids=[1, 2, 3], rng=np.random.default_rng(0), segment_length=2, prompt_ids=[4])
    return repeat_random_segment(**{**arguments, **changes})[0]


# Each takes ids `[2]` and gives them back as they came out.
TAKERS = {
    "examples[0]": lambda ids, _: pack([(ids, [1.0] * len(ids))], 8)[0]["token_ids"][0, :2],
    "token_ids": lambda ids, _: segment(token_ids=ids)[:2],
    "prompt_ids": lambda ids, _: segment(prompt_ids=ids)[3:5],
    "tokenizer": lambda ids, tmp_path: next(iter(tokens_of(tmp_path, ids)))[0]["token_ids"][0, :2],
}
FORMS = {
    "list": list,
    "tuple": tuple,
    "int64": lambda ids: np.array(ids, "int64"),
    "uint64": lambda ids: (np.array(ids, object) % 2**64).astype("uint64"),
    "object": lambda ids: np.array(ids, object),
    "int32": lambda ids: np.array(ids, "int64").astype("int32"),
    "tensor": lambda ids: ops.convert_to_tensor(np.array(ids, "int64").astype("int32")),
    "tensor of uint32": lambda ids: ops.convert_to_tensor(np.array(ids).astype("uint32")),
}
SMALL = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16, "uint32": np.uint32}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TAKERS)
def test_the_largest_id_comes_back(tmp_path, name, form):
    ids = TAKERS[name](FORMS[form]([LARGEST, 0]), tmp_path)
    assert ids.dtype == "int32" and ids.tolist() == [LARGEST, 0]


@pytest.mark.parametrize("dtype", SMALL)
def test_narrow_dtypes(tmp_path, dtype):
    for name, taker in TAKERS.items():
        assert taker(np.array([100, 7], dtype), tmp_path).tolist() == [100, 7], name
    if dtype.startswith("int"):
        refused(lambda: segment(token_ids=np.array([1, -3], dtype)), "token_ids", "-3")


@pytest.mark.parametrize(
    "form, wrong",
    [
        ("list", 2**32 + 5),
        ("list", 2**31),
        ("list", -1),
        ("list", 2**64),
        ("list", 2**63),
        ("list", -(2**70)),
        ("tuple", 2**32 + 5),
        ("int64", 2**32 + 5),
        ("int64", -1),
        ("uint64", 2**63 + 1),
        ("uint64", 2**31),
        ("object", 2**64 + 7),
        ("object", -1),
        ("int32", -1),
        ("tensor", -2),
        ("tensor of uint32", 2**31 + 5),
    ],
)
@pytest.mark.parametrize("name", TAKERS)
def test_ids_out_of_range(tmp_path, name, form, wrong):
    refused(lambda: TAKERS[name](FORMS[form]([1, wrong]), tmp_path), f"`{name}`", wrong, LARGEST, error=ValueError)


def test_ids_too_large_and_negative_at_once():
    """NumPy makes floats of these; they are integers all the same."""
    refused(lambda: pack([([2**63, -1], [1.0, 1.0])], 8), "`examples[0]`", "-1", error=ValueError)


@pytest.mark.parametrize(
    "wrong, received",
    [
        ([1.0, 2.0], "float64"),
        ([1, None], "object"),
        ([float("nan"), 1], "float64"),
        (["1", "2"], "<U1"),
        ([True, False], "bool"),
        (np.array([1, 2.5], object), "object"),
        ([[1, 2]], (1, 2)),
        ([[1], [2, 3]], "list"),
        (7, "()"),
        (None, "NoneType"),
        ({1: 2}, "dict"),
        ({1, 2}, "set"),
        ("12", "str"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_ids(tmp_path, name, wrong, received):
    call = TAKERS[name] if name != "examples[0]" else lambda ids, _: pack([(ids, [1.0, 1.0])], 8)
    refused(lambda: call(wrong, tmp_path), f"`{name}`", received)


def test_tensors_of_floats_and_of_other_ranks(tmp_path):
    for name, taker in TAKERS.items():
        refused(lambda taker=taker: taker(ops.ones((2,)), tmp_path), f"`{name}`", "float32")
        if name != "examples[0]":
            refused(lambda taker=taker: taker(ops.ones((2, 1), "int32"), tmp_path), f"`{name}`", (2, 1))


@pytest.mark.parametrize("read", [lambda stream: next(iter(stream)), len, lambda stream: stream[0]], ids=str)
def test_every_way_of_reading_a_stream_looks_at_ids(tmp_path, read):
    for wrong in ([2**32 + 5], [3, -1], [0.5], [[1, 2]], None):
        stream = tokens_of(tmp_path, wrong)
        refused(lambda stream=stream: read(stream), "`tokenizer`")


def test_special_tokens_of_streams(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for name in ("start_token_id", "end_token_id"):
        for wrong in (2**31, 2**32 + 5, -1, 10**30):
            options = {name: wrong}
            refused(
                lambda o=options: DocumentStream([tmp_path / "a.txt"], lambda text: [5], 1, 8, **o), f"`{name}`", wrong
            )
        batches = iter(DocumentStream([tmp_path / "a.txt"], lambda text: [5], 1, 2, **{name: LARGEST}))
        assert sorted(next(batches)[0]["token_ids"][0].tolist()) == [5, LARGEST]


def test_digits_of_keys():
    rng = np.random.default_rng(0)
    takers = {"keys": [TASK.answers, lambda keys: TASK.examples(1, 2, rng, keys)]}
    block = next(TASK.question_blocks(1, 1, rng))
    takers["answers"] = [lambda answers: PassKeyScores(TASK).add(block, answers)]
    for name, calls in takers.items():
        for call in calls:
            for form in FORMS.values():
                call(form([[9, 0]]))
            for wrong in (2**32 + 5, -1, 2**64, 2**31):
                refused(lambda call=call, wrong=wrong: call([[0, wrong]]), f"`{name}`", wrong)
                refused(lambda call=call, wrong=wrong: call(np.array([[0, wrong]], object)), f"`{name}`", wrong)
            refused(lambda call=call: call([[0, 1.0]]), f"`{name}`", "float64")
            refused(lambda call=call: call([[0], [1, 2]]), f"`{name}`", "list")
    refused(lambda: TASK.answers(None), "`keys`", "dtype object")
    assert TASK.answers(ops.convert_to_tensor([[9, 0]])).tolist() == [[10, 1]]


def test_weights_of_examples():
    for wrong, received in ((None, "()"), ([1e39, 1], "1.e+39"), ([[1], [1, 2]], "list"), (["a", "b"], "a")):
        refused(lambda wrong=wrong: pack([([1, 2], wrong)], 8), "`examples[0]`", received)
    inputs, _, weights = pack([(ops.convert_to_tensor([3, 4]), ops.convert_to_tensor([0.5, 0.25]))], 8)
    assert inputs["token_ids"][0, :2].tolist() == [3, 4] and weights[0, 0] == 0.25
    refused(lambda: segment(weight=1e39), "`weight`", "1e+39")


def test_tokens_of_text_keys_are_counted():
    """`passkey_text` counts tokens, whatever they are, and looks at no id."""
    text = passkey_text(lambda text: [-1] * len(text), 2, 600, rng=np.random.default_rng(0))
    assert text == passkey_text(keras_hub.tokenizers.ByteTokenizer(), 2, 600, rng=np.random.default_rng(0))
    for wrong, received in ((None, "NoneType"), (7, "int"), (np.zeros((2, 3), int), (2, 3))):
        refused(lambda wrong=wrong: passkey_text(lambda text: wrong, 2, 600), "`tokenizer`", received)
