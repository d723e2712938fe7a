"""Every argument of every public name, with every kind of bad value: refused by name, or of a meaning written down.

The arguments are read off the signatures: one that is added and not in `VALID` fails.
"""

import inspect
import re
import tracemalloc

import numpy as np
import pytest
from helpers.data_streams import letters

import keras_fam
from keras_fam.data import PassKeyTask
from keras_fam.data.passkey_stream import PassKeyStream

RESULTS = {"PassKeyBlock", "PassKeyScore", "PassKeyText"}  # named tuples that functions return: nobody passes arguments
RETURNED = {"PassKeyStream": PassKeyStream}  # made by `PassKeyTask.stream`, whose arguments are its own
TASK = PassKeyTask(16, 2)
RNG = np.random.default_rng(0)
BLOCK = next(TASK.question_blocks(2, 1, RNG))
STREAM = dict(batch_size=2, sequence_length=8, seed=1, validation_split=0.5)


def words(text):
    return re.findall(r"\w+|\W", text)


# === What is called, and with what ===

VALID = {
    "DocumentStream": dict(
        **STREAM,
        paths="*.txt",
        tokenizer=letters,
        start_token_id=1,
        end_token_id=2,
        chunk_size=9,
        shuffle=True,
        subset="training",
        verbose=0,
    ),
    "DocumentStream.both": dict(**STREAM, paths="*.txt", tokenizer=letters),
    "DocumentStream.__getitem__": dict(index=0),
    "PassKeyScores": dict(task=TASK, distances=[2, 8], ages=[1, 100]),
    "PassKeyScores.add": dict(block=BLOCK, answers=TASK.answers(BLOCK.keys)),
    "PassKeyStream.__getitem__": dict(index=3),
    "PassKeyTask": dict(block_size=32, key_length=2, filler_length=9, noise=0.1, filler_weight=0.5, num_keys=2),
    "PassKeyTask.answers": dict(keys=[[1, 2]]),
    "PassKeyTask.examples": dict(
        batch_size=2, blocks=3, rng=RNG, keys=[[1, 2], [3, 4]], question_rate=0.5, introduce=True, answer_noise=0.5
    ),
    "PassKeyTask.prompt": dict(batch_size=2, blocks=3, rng=RNG),
    "PassKeyTask.prompt_blocks": dict(batch_size=2, blocks=3, rng=RNG),
    "PassKeyTask.question_blocks": dict(batch_size=2, blocks=3, rng=RNG, distances=[2, 3], restate=True),
    "PassKeyTask.stream": dict(
        batch_size=2, blocks=3, restart=0.5, seed=1, question_rate=0.5, answer_noise=0.5, restate=0.5
    ),
    "pack": dict(examples=[([1, 2], [1.0, 1.0])], length=4),
    "passkey_text": dict(tokenizer=words, blocks=2, block_size=200, key_length=3, rng=RNG),
    "repeat_random_segment": dict(token_ids=[1, 2, 3], rng=RNG, segment_length=2, prompt_ids=[4], weight=0.1),
}
BAD = {
    "object": object(),
    "None": None,
    "str": "nonsense",
    "negative": -1,
    "zero": 0,
    "fraction": 2.5,
    "huge": 10**12,
    "hugest": 10**400,
    "nan": float("nan"),
    "inf": float("inf"),
    "empty": [],
    "empty dict": {},
    "rank 3": [[[1]]],
    "ragged": [[1], [1, 2]],
    "strings": ["a", "b"],
    "negative ids": [-1, -2],
    "huge array": np.array([2**40, 2**50]),
    "floats": np.array([0.5, 1.5]),
}
# What is no mistake, though it looks like one.
MEANING = {
    ("DocumentStream", "seed"): ["None", "zero", "huge", "hugest"],
    ("DocumentStream", "start_token_id"): ["None", "zero"],
    ("DocumentStream", "end_token_id"): ["None", "zero"],
    ("DocumentStream", "shuffle"): ["None"],
    ("DocumentStream", "verbose"): ["zero"],
    ("DocumentStream.both", "seed"): ["None", "zero", "huge", "hugest"],
    ("DocumentStream.__getitem__", "index"): ["zero"],
    ("PassKeyStream.__getitem__", "index"): ["zero"],
    ("PassKeyTask", "noise"): ["zero"],
    ("PassKeyTask", "filler_weight"): ["zero", "huge", "fraction"],
    ("PassKeyTask.examples", "keys"): ["None"],
    ("PassKeyTask.examples", "question_rate"): ["zero"],
    ("PassKeyTask.examples", "answer_noise"): ["zero"],
    ("PassKeyTask.stream", "restart"): ["zero"],
    ("PassKeyTask.stream", "restate"): ["zero"],
    ("PassKeyTask.stream", "seed"): ["zero", "huge", "hugest"],
    ("PassKeyTask.stream", "question_rate"): ["zero"],
    ("PassKeyTask.stream", "answer_noise"): ["zero"],
    ("passkey_text", "rng"): ["None"],
    ("repeat_random_segment", "prompt_ids"): ["empty"],
    ("repeat_random_segment", "weight"): ["zero", "huge", "fraction"],
}


def public_callables():
    """`{name: (callable, owner)}` of what is public and takes arguments; `owner` is the class of a method, or None."""
    items = {name: getattr(keras_fam.data, name) for name in keras_fam.data.__all__ if name not in RESULTS}
    found = {name: (item, None) for name, item in items.items()}
    for name, owner in {**items, **RETURNED}.items():
        for method in vars(owner) if inspect.isclass(owner) else ():
            if callable(getattr(owner, method)) and (not method.startswith("_") or method == "__getitem__"):
                found[f"{name}.{method}"] = (getattr(owner, method), owner)
    return {name: (item, owner) for name, (item, owner) in found.items() if parameters(item)}


def parameters(item):
    return [name for name in inspect.signature(item).parameters if name != "self"]


def bound(name):
    """The callable of a name, methods bound to an instance that is made of valid arguments."""
    item, owner = public_callables()[name]
    if owner is None or inspect.ismethod(item):
        return item
    instance = (
        TASK.stream(**VALID["PassKeyTask.stream"])
        if owner is PassKeyStream
        else (TASK if owner is PassKeyTask else owner(**arguments(owner.__name__)))
    )
    return getattr(instance, name.rpartition(".")[2])


def arguments(name, **changes):
    return {**VALID[name], **changes}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("some text " * 5)


# === Tests ===


def test_every_public_name_is_here():
    assert set(VALID) == set(public_callables())
    assert all(hasattr(getattr(keras_fam.data, name), "_fields") for name in RESULTS)
    assert set(MEANING) <= {(name, argument) for name, found in VALID.items() for argument in found}


@pytest.mark.parametrize("name", VALID)
def test_every_argument_is_here(name):
    item, _ = public_callables()[name]
    named = [p for p in inspect.signature(item).parameters.values() if p.name != "self" and p.kind != p.VAR_KEYWORD]
    assert sorted(VALID[name]) == sorted(parameter.name for parameter in named)


@pytest.mark.parametrize("name", VALID)
def test_valid_calls(name):
    bound(name)(**arguments(name))


def cases():
    for name, (item, _) in public_callables().items():
        for argument in parameters(item):
            for kind in BAD:
                yield pytest.param(name, argument, kind, id=f"{name}-{argument}-{kind}")


@pytest.mark.parametrize("name, argument, kind", cases())
def test_bad_values(name, argument, kind):
    """Refused at the call itself, by name, before anything large is made."""
    call = bound(name)
    if kind in MEANING.get((name, argument), ()):
        call(**arguments(name, **{argument: BAD[kind]}))
        return
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
            call(**arguments(name, **{argument: BAD[kind]}))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert re.search(rf"\b{argument}\b", str(caught.value)) and "Received" in str(caught.value), caught.value
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("DocumentStream", dict(batch_size=2**20, sequence_length=2**20)),
        ("DocumentStream.both", dict(batch_size=2**20, sequence_length=2**20)),
        ("PassKeyTask.examples", dict(batch_size=2**20, blocks=2**20, keys=None)),
        ("PassKeyTask.prompt", dict(batch_size=2**20, blocks=2**20)),
        ("PassKeyTask.prompt_blocks", dict(batch_size=2**28)),  # rows of one block of 16 tokens
        ("PassKeyTask.question_blocks", dict(batch_size=2**28)),
        ("PassKeyTask.stream", dict(batch_size=2**20, blocks=2**20)),
        ("passkey_text", dict(blocks=2**20, block_size=2**20)),
    ],
    ids=str,
)
def test_sizes_that_are_too_large_together(name, sizes):
    """Each may be large; what they make together may not."""
    call = bound(name)
    with pytest.raises(ValueError) as caught:
        call(**arguments(name, **sizes))
    message = str(caught.value)
    assert "2147483647" in message and all(f"`{size}`" in message for size in sizes if size != "keys"), message
