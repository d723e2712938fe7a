"""A long stream in a process that may be killed: `python -m helpers.reads_and_saves FILE TOKENS DTYPE`."""

import os
import sys

import numpy as np

import keras_fam
from helpers.models import VOCABULARY, fam_backbone

SAVED = 25_000  # tokens between two saves
SIZES = dict(block_size=32, memory_segments=1, fam_length=4)


def model(dtype):
    """GPT-2, whose places go round in its table of positions; its memory is bounded, so that the age is no matter."""
    stock = {"num_layers": 1, "max_sequence_length": 96, "dtype": dtype}
    return fam_backbone("gpt2", **SIZES, sink_token_id=1, memory_span=4.0, stock=stock)


def text(first, last):
    """The text's tokens `[1, last - first]` at these places, however it is cut."""
    places = np.arange(first, last, dtype="uint64")
    return ((places * 2654435761 % 2**32) >> 16).astype("int32")[None] % VOCABULARY


def read(backbone, state, last, length):
    """Reads on to token `last` in chunks of lengths that `length(place)` gives; yields the state behind each."""
    while (place := state.tokens[0]) < last:
        state = backbone.read_into(state, text(place, min(last, place + length(place))))
        yield state


def random_length(place):
    return int(np.random.default_rng(place).integers(1, 3000))


def main(path, tokens, dtype):
    backbone = model(dtype)
    begun = keras_fam.load_state(path) if os.path.exists(path) else backbone.initial_state(1)
    saved = begun.tokens[0]
    for state in read(backbone, begun, tokens, random_length):
        if state.tokens[0] - saved >= SAVED or state.tokens[0] == tokens:
            keras_fam.save_state(path, state)
            saved = state.tokens[0]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
