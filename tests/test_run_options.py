"""Options of a run: presets and weights files load with others than they were saved with, and train on."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, inputs, token_ids, weights_by_path
from helpers.refusals import refused

import keras_fam

pytestmark = pytest.mark.shared_out

IDS = token_ids(2, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RUNS = {
    "plain": {},
    "passing": dict(random_state_passing=0.5),
    "two rows": dict(stateful_batch_size=2),
    "three rows": dict(stateful_batch_size=3),
}
NOTHING = dict(random_state_passing=0.0, stateful_batch_size=None)
OF_A_RUN = ("random_state_passing", "last_fam", "carried")


def train(lm):
    """One step on as many rows as the model carries, so that the run leaves something."""
    ids = np.resize(IDS, (lm.backbone.stateful_batch_size or 2, 8))
    lm.compile(keras.optimizers.SGD(0.1), LOSS)
    return np.ravel(lm.train_on_batch(inputs(ids), ids))[0]


def assert_options(backbone, options):
    assert backbone.random_state_passing == options.get("random_state_passing", 0.0)
    assert backbone.stateful_batch_size == options.get("stateful_batch_size")


@pytest.mark.parametrize("saved", RUNS)
def test_presets_load_into_any_run(saved, tmp_path):
    """The weights of the model whole; what the run left, where the other run has the same place."""
    first = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"dropout": 0.0, "num_layers": 1}, **RUNS[saved]))
    train(first)
    first.save_to_preset(tmp_path / "preset")
    before = weights_by_path(first)
    for name, options in RUNS.items():
        given = {} if name == saved else {**NOTHING, **options}  # Those of the preset, if none are given.
        lm = keras_fam.FAMCausalLM.from_preset(str(tmp_path / "preset"), preprocessor=None, **given)
        assert_options(lm.backbone, options)
        for path, value in weights_by_path(lm).items():
            if name == saved or not any(word in path for word in OF_A_RUN):
                np.testing.assert_array_equal(value, before[path], err_msg=path)
        if saved == "plain" and name != "three rows":
            assert np.isfinite(train(lm))


def test_what_is_given_is_given_with_and_without_weights(tmp_path):
    fam_backbone("gpt2", random_state_passing=0.5).save_to_preset(tmp_path / "preset")
    preset = str(tmp_path / "preset")
    load = keras_fam.FAMBackbone.from_preset
    for load_weights in (True, False):
        assert load(preset, load_weights=load_weights, random_state_passing=0.25).random_state_passing == 0.25
    lm = keras_fam.FAMCausalLM.from_preset(preset, preprocessor=None, random_state_passing=0.125)
    assert lm.backbone.random_state_passing == 0.125
    # Two runs in one: refused as a new model refuses it.
    refused(lambda: load(preset, stateful_batch_size=2), "stateful_batch_size", 0.5)
    refused(lambda: load(preset, random_state_passing=2.0), "random_state_passing", 2.0)
