"""A run goes on from a weights file as if it had never stopped, and runs with other options may begin there."""

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, forward, inputs, numpy, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

IDS = token_ids(8, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STOCK = {"dropout": 0.0, "num_layers": 1}


def language_model(rank=None, targets=None, **options):
    keras.utils.set_random_seed(0)
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock=STOCK, **options))
    if rank:
        lm.enable_lora(rank, targets)
    lm.compile(keras.optimizers.Adam(0.05), LOSS)
    return lm


def fit(lm, epochs=1, **options):
    lm.fit(inputs(IDS), IDS, batch_size=4, epochs=epochs, verbose=0, **options)
    return lm


def values(lm):
    return {v.path: numpy(v) for v in lm.weights}


def assert_equal(lm, expected, tolerance=0.0):
    for path, value in values(lm).items():
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=tolerance, err_msg=path)


# === LoRA ===


@pytest.mark.parametrize("name", ["model.weights.h5", "model.weights.json", "model.keras"])
def test_lora_goes_on_from_a_file(name, tmp_path):
    expected = values(fit(language_model(2), epochs=4))
    lm = fit(language_model(2), epochs=2)
    if name.endswith(".keras"):
        lm.save(tmp_path / name)
    else:  # So small shards that the LoRA kernels need several.
        lm.save_weights(tmp_path / name, **({"max_shard_size": 4e-6} if name.endswith("json") else {}))
    resumed = language_model(2)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / name)
    assert_equal(resumed, values(lm))
    assert_equal(fit(resumed, epochs=2), expected, 1e-6)


class Interrupted(Exception):
    pass


def interrupt(epoch, logs):
    if epoch == 1:
        raise Interrupted


def test_backup_and_restore(tmp_path):
    """The run is interrupted behind its second epoch, before that is saved, and goes on from the first."""
    expected = values(fit(language_model(2), epochs=3))
    lm = language_model(2)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(Interrupted):
        fit(lm, epochs=3, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=interrupt), backup])
    resumed = fit(language_model(2), epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    assert_equal(resumed, expected, 1e-6)
    assert int(numpy(resumed.optimizer.iterations)) == 6


def test_a_part_of_a_larger_model_goes_on_too(tmp_path):
    def model():
        backbone = fam_backbone("gpt2", stock=STOCK)
        backbone.enable_lora(2)
        return keras.Model(backbone.input, keras.layers.Dense(3, "relu", name="head")(backbone.output))

    first, second = model(), model()
    for index, variable in enumerate(v for v in first.variables if "lora" in v.path):
        variable.assign(np.random.default_rng(index).standard_normal(variable.shape))
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    assert_equal(second, values(first))


def test_int8_kernels_are_not_rounded_again(tmp_path):
    def model():
        lm = language_model()
        lm.quantize("int8")
        lm.enable_lora(2)
        return lm

    first, second = model(), model()
    for index, variable in enumerate(v for v in first.variables if "lora" in v.path):
        variable.assign(np.random.default_rng(index).standard_normal(variable.shape))
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    assert_equal(second, values(first))


def lora_kernels(lm):
    return {v.path: numpy(v) for v in lm.trainable_variables if "lora" in v.path}


# The file's LoRA: none, of another rank, on other layers.
@pytest.mark.parametrize("saved", [{}, {"rank": 3}, {"rank": 2, "targets": ["query"]}], ids=str)
def test_lora_begins_anew_on_a_file_without_it(saved, tmp_path):
    lm = fit(language_model(**saved))
    lm.save_weights(tmp_path / "a.weights.h5")
    resumed = language_model(2, ["query", "value"])
    with pytest.warns(UserWarning) if saved else pytest.warns(UserWarning, match="optimizer"):
        resumed.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(forward(resumed, IDS), forward(lm, IDS), atol=1e-5)
    before = lora_kernels(resumed)
    assert all(value.any() for path, value in before.items() if path.endswith("_a"))
    after = lora_kernels(fit(resumed, epochs=2))
    assert all((after[path] != before[path]).any() for path in before)


def test_files_with_lora_serve_models_without(tmp_path):
    lm = fit(language_model(2), epochs=2)
    lm.save_weights(tmp_path / "a.weights.h5")
    lm.save(tmp_path / "a.keras")
    lm.backbone.save_to_preset(tmp_path / "preset")
    plain = language_model()
    with pytest.warns(UserWarning, match="optimizer"):
        plain.load_weights(tmp_path / "a.weights.h5")
    loaded = keras.models.load_model(tmp_path / "a.keras", compile=False)
    preset = keras_fam.FAMCausalLM(keras_fam.FAMBackbone.from_preset(str(tmp_path / "preset")))
    for model in (plain, loaded, preset):
        np.testing.assert_allclose(forward(model, IDS), forward(lm, IDS), atol=1e-5)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.weights.h5", "preset/model.weights.h5")]
    assert sizes[1] < sizes[0]  # A preset has merged kernels alone.


# === Random state passing ===


def asked(lm, **options):
    """The steps that a schedule is asked for, and the probability that is set then."""
    seen = []
    schedule = keras_fam.RandomStatePassingSchedule(lambda step: seen.append(step) or min(1.0, step / 8))
    fit(lm, callbacks=[schedule], **options)
    return seen, lm.backbone.random_state_passing


def test_a_schedule_goes_on_with_the_run(tmp_path):
    lm = language_model(random_state_passing=0.5)
    assert asked(lm, epochs=2) == ([0, 1, 2, 3], 3 / 8)
    assert asked(lm) == ([4, 5], 5 / 8)
    lm.save_weights(tmp_path / "a.weights.h5")
    resumed = language_model(random_state_passing=0.5)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "a.weights.h5")
    assert resumed.backbone.random_state_passing == 5 / 8
    assert asked(resumed) == ([6, 7], 7 / 8)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="Keras refuses steps_per_execution on torch")
def test_a_schedule_counts_steps_and_not_executions():
    lm = language_model(random_state_passing=0.5)
    lm.compile("sgd", LOSS, steps_per_execution=2)
    assert asked(lm, epochs=2) == ([0, 2], 2 / 8)


def test_a_schedule_reaches_any_model_with_state_passing():
    backbone = fam_backbone("gpt2", stock=STOCK, random_state_passing=0.5)
    model = keras.Model(backbone.input, backbone.logits(backbone(backbone.input)))
    model.compile("sgd", LOSS)
    fit(model, callbacks=[keras_fam.RandomStatePassingSchedule(lambda step: 0.25)])
    assert backbone.random_state_passing == 0.25


def test_a_schedule_wants_a_model_with_state_passing():
    with pytest.raises(ValueError, match="random_state_passing above 0"):
        asked(language_model())


# === Weights between runs ===

RUNS = [{}, dict(stateful_batch_size=4), dict(stateful_batch_size=2), dict(random_state_passing=1.0)]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_state_of_a_run_belongs_to_the_run(run, tmp_path):
    """Weights load from any run into any other; memory only where it has the same place."""
    first = fit(language_model(**run)) if run.get("stateful_batch_size") != 2 else language_model(**run)
    first.save_weights(tmp_path / "a.weights.h5")
    for other in RUNS:
        second = language_model(**other)
        second.optimizer.build(second.trainable_variables)
        second.load_weights(tmp_path / "a.weights.h5")
        before, after = values(first), values(second)
        state = ("carried", "last_fam", "random_state_passing")
        for path, value in after.items():
            if other == run or not any(word in path for word in state):
                np.testing.assert_array_equal(value, before[path], err_msg=path)
            elif "probability" not in path and not run.get("random_state_passing"):
                assert not value.any(), path
        if "stateful_batch_size" not in other:
            fit(second)


def test_a_row_that_carries_nothing_begins_with_the_prompt():
    """The first step of a run in the middle of a document: nothing to go on from, and no FAM of zeros."""
    ids = IDS[:2]
    fresh, begun = (language_model(stateful_batch_size=2) for _ in range(2))
    lessons = [{**inputs(ids), "document_start": np.full((2,), start, "int32")} for start in (0, 1)]
    for lm, lesson in zip((fresh, begun), lessons):
        lm.train_on_batch(lesson, ids)
    assert_equal(fresh, values(begun), 1e-6)
