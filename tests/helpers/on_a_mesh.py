"""Runs on jax with 8 devices: `python -m helpers.on_a_mesh FOLDER` writes layouts and results for the tests."""

import contextlib
import json
import sys
from pathlib import Path

import keras
import numpy as np

import keras_fam
from helpers.models import FAMILIES, fam_backbone, inputs, numpy, token_ids
from helpers.training import LOSS, ROWS, fit, language_model

SHAPE, NAMES = (4, 2), ("batch", "model")


def scope(kind, family):
    """One device, or all in a mesh: each with all weights, or with its own part of them."""
    devices = keras.distribution.list_devices()
    if kind == "one":
        return contextlib.nullcontext()
    if kind == "data":
        return keras.distribution.DataParallel(devices=devices).scope()
    mesh = keras.distribution.DeviceMesh(SHAPE, NAMES, devices)
    layout_map = keras_fam.FAMBackbone.get_layout_map(mesh, FAMILIES[family][0])
    return keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name=NAMES[0]).scope()


def axes(value):
    """The mesh's dimension that each axis of a jax array is split over, or None."""
    spec = value.sharding.spec if hasattr(value.sharding, "spec") else ()
    return [*spec, *[None] * (len(value.shape) - len(spec))]


def layouts(family):
    """By path: a variable's shape, how it is split, and the shape of one device's part."""
    with scope("model", family):
        carried = fam_backbone(family, stateful_batch_size=4, memory_gate=0.0, sink_token_id=1)
        lm = keras_fam.FAMCausalLM(carried)
        lm.enable_lora(2)
        lm.compile(keras.optimizers.Adam(name="adam"), LOSS)
        lm.optimizer.build(lm.trainable_variables)
        passing = fam_backbone(family, random_state_passing=0.5)
    variables = [*lm.variables, *passing.variables, *lm.optimizer.variables]
    return {v.path: [list(v.shape), axes(v.value), list(v.value.addressable_shards[0].data.shape)] for v in variables}


def trained(family):
    """What `fit` leaves, of a model with LoRA whose steps go on from each other."""
    lm = language_model(family, ROWS, lora=True)
    lm.compile(keras.optimizers.SGD(0.1), LOSS)
    return fit(lm)


def served(family):
    """What is generated, what a stream predicts, and what it remembers."""
    lm = keras_fam.FAMCausalLM(fam_backbone(family, stock={"num_layers": 1}))
    lm.compile(sampler="greedy")
    lengths = np.array([[5], [3], [6], [5]] * (ROWS // 4))
    given = inputs(token_ids(ROWS, 11), (np.arange(11) < lengths).astype("int32"))
    found = {"generated": lm.generate(given, stop_token_ids=None)["token_ids"]}
    state, logits = lm.initial_state(ROWS), []
    for start, stop in ((0, 4), (4, 6)):
        piece, state = lm.stream(token_ids(ROWS, 6, seed=1)[:, start:stop], state)
        logits.append(numpy(piece))
    found["logits"], found["axes of key"] = np.concatenate(logits, axis=1), np.array(axes(state.layers[0].key), "str")
    return {**found, **numpy(state.layers[0]._asdict())}


# Where layouts differ: Gemma's kernels and norms, GPT-2's biases and learned positions, Llama's kernels, untied head.
# What is the same in all families is done with one of them.
RUNS = {
    "gemma3": dict.fromkeys(("one", "data", "model"), (trained, served)),
    "gpt2": dict.fromkeys(("one", "model"), (trained,)),
    "llama": dict.fromkeys(("one", "model"), (trained,)),
}


def main(folder):
    keras.utils.set_random_seed(0)
    (folder / "layouts.json").write_text(json.dumps({family: layouts(family) for family in FAMILIES}))
    for family, runs in RUNS.items():
        for kind, works in runs.items():
            for work in works:
                with scope(kind, family):
                    np.savez(folder / f"{family} {kind} {work.__name__}.npz", **work(family))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
