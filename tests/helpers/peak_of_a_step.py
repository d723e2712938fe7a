"""In a process of its own: by how many bytes a training step grows it, beside what `training_memory` says.

python tests/helpers/peak_of_a_step.py '{"remat": false, "rank": 8, "length": 2048}'
"""

import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / part) for part in ("", "tests", "benchmarks")]

import keras
import numpy as np
from measure import MIB, PeakMemory

import keras_fam
from helpers.models import fam_backbone


def main(remat, rank, length, vocabulary_size):
    with keras.RematScope("full" if remat else None):
        stock = dict(vocabulary_size=vocabulary_size, num_layers=4, hidden_dim=256, intermediate_dim=2048, head_dim=64)
        memory = dict(block_size=256, memory_segments=2, fam_length=16)
        lm = keras_fam.FAMCausalLM(fam_backbone("gemma", stock=stock, **memory))
    if rank:
        lm.enable_lora(rank)
    lm.compile(optimizer="adam")

    def step(length):
        ids = np.ones((1, length), "int32")
        lm.train_on_batch({"token_ids": ids, "padding_mask": ids}, ids)

    step(32)  # What any first step loads and builds is not this length's.
    said = keras_fam.training_memory(lm, 1, length)
    with PeakMemory() as peak:
        step(length)
    # The optimizer's slots are there already.
    print(json.dumps({"measured": peak.mib * MIB, "said": said.activations + said.loss + said.gradients}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
