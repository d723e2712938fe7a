"""One model in several threads: streams of their own, generation and saving give what they give one after the other."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from helpers.models import fam_backbone, numpy, token_ids

import keras_fam

CHUNKS = [token_ids(1, length, seed=length) for length in (3, 5, 4, 9, 2, 7)]


def language_model():
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", sink_token_id=1, stock={"num_layers": 1}))
    lm.compile(sampler="greedy")
    return lm


def streamed(lm, seed):
    """Logits and last state of a stream of chunks in an order of its own."""
    state, logits = lm.initial_state(1), []
    for index in np.random.default_rng(seed).permutation(len(CHUNKS)):
        piece, state = lm.stream(CHUNKS[index], state)
        logits.append(numpy(piece))
    return [*logits, *map(numpy, keras.tree.flatten(state))]


def generated(lm, seed):
    ids = token_ids(2, 6, seed=seed)
    made = lm.generate({"token_ids": ids, "padding_mask": np.ones_like(ids)}, max_length=14, stop_token_ids=None)
    return [made["token_ids"], made["padding_mask"]]


def saved(lm, path):
    """A state on its way through a file, several times."""
    state = lm.stream(CHUNKS[0], lm.initial_state(1))[1]
    for _ in range(5):
        keras_fam.save_state(path, state)
        state = keras_fam.load_state(path)
    return list(map(numpy, keras.tree.flatten(state)))


def test_threads_give_what_they_give_one_after_the_other(tmp_path):
    lm = language_model()
    jobs = [
        *((streamed, seed) for seed in range(4)),
        *((generated, seed) for seed in range(2)),
        (saved, tmp_path / "state.npz"),
    ]
    alone = language_model()
    expected = [function(alone, argument) for function, argument in jobs]
    for _ in range(3):  # The first round compiles in every thread.
        with ThreadPoolExecutor(len(jobs)) as threads:
            running = [threads.submit(function, lm, argument) for function, argument in jobs]
            found = [job.result() for job in running]
        for one, other in zip(found, expected):
            assert len(one) == len(other)
            for x, y in zip(one, other):
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
