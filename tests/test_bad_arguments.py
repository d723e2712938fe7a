"""Every argument of every public name, with every kind of nonsense: refused by name, or of a meaning written down.

The names and arguments are read off the package: what is added to it and not to the tables of `helpers.calls` fails.
Refused means a TypeError or ValueError, or the error of a file that is not there, that names the argument and what was
received, before a layer computes anything, with every model as it was. What is left out, and why, is in `LEFT_OUT`.
"""

import importlib
import pkgutil

import keras
import pytest
from helpers.bad_arguments import default_is_none, has_keywords, nonsense, parameters, public_callables, wrong
from helpers.calls.data import DATA
from helpers.calls.evaluation import EVALUATION
from helpers.calls.layers import LAYERS
from helpers.calls.models import MODELS
from helpers.calls.world import World
from helpers.refusals import snapshot

import keras_fam
import keras_fam.tools
from keras_fam.data.passkey_stream import PassKeyStream

pytestmark = pytest.mark.shared_out

CALLS = {**MODELS, **LAYERS, **EVALUATION, **DATA}
LEFT_OUT = {
    "what functions return: `stream`, `evaluate` and others look at it where they are given it": """
        Example LayerState PassKeyBlock PassKeyScore PassKeyText Report Score StreamState""",
    "Keras's own arguments, which it is handed as they are; of the causal model, see `RUNS`": """
        *.compile *.fit *.evaluate *.predict *.quantize *.test_on_batch""",
    "called by Keras, KerasHub or torch alone": """
        *.build *.compile_from_config *.compute_loss *.compute_mask *.compute_output_shape *.compute_output_spec
        *.from_config *.load_own_variables *.make_predict_function *.make_test_function *.make_train_function
        *.named_parameters *.preprocess_samples *.rematerialized_call *.save_own_variables *.test_step *.train_step
        ChunkedCrossentropy.__call__ FAMCausalLM.generate_step RandomStatePassingSchedule.on_train_batch_begin
        RandomStatePassingSchedule.on_train_begin""",
    "called by `keras_fam.evaluation.evaluate` alone, with what the task itself made": """
        *.check *.make""",
    "called by the package alone, with what was checked": """
        *.begin *.call_around *.check_inputs *.inference *.losses_of_block *.own_state *.piece *.read_into *.state_spec
        *.stream_pieces FAMBackbone.start_of_memory FAMDecoderBlock.adapt_memory FAMDecoderBlock.advance
        FAMDecoderBlock.attention_map FAMDecoderBlock.begin_stream FAMDecoderBlock.carry_state
        FAMDecoderBlock.keep_last_fam FAMDecoderBlock.layer_spec FAMDecoderBlock.memory_share
        FAMDecoderBlock.read_piece""",
}
RUNS = ("compile", "evaluate", "fit", "predict")
OF_KERAS = {"training", "mask"}  # Arguments of every layer's call.
ON_ALL_BACKENDS = {*MODELS, *LAYERS}
torch_alone = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="what is taken is tried on every backend by the tests of each feature"
)


def tools():
    """The function of each command-line tool."""
    names = [each.name for each in pkgutil.iter_modules(keras_fam.tools.__path__)]
    modules = {name: importlib.import_module(f"keras_fam.tools.{name}") for name in names}
    return {name: getattr(module, name) for name, module in modules.items() if hasattr(module, name)}


def found():
    """`{name: callable}` of all that is public and takes arguments."""
    left_out = " ".join(LEFT_OUT.values()).split()
    names = public_callables((keras_fam, keras_fam.data, keras_fam.evaluation), left_out)
    names |= {f"FAMCausalLM.{name}": getattr(keras_fam.FAMCausalLM, name) for name in RUNS}
    return {**names, "PassKeyStream.__getitem__": PassKeyStream.__getitem__, **tools()}


PUBLIC = found()
NAMES = [name for name in CALLS if name in PUBLIC]  # All of them, if the tables are whole.


def arguments(name):
    """All arguments of a public name: of its signature, and those that go through `**kwargs`."""
    return [*parameters(PUBLIC[name]), *CALLS[name].keywords]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_words():
    """Keras adds the names of all arguments to an error of a call: a message would name any of them."""
    filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    yield
    if filtered:
        keras.config.enable_traceback_filtering()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def models(world):
    """Holds that a test leaves the shared models as they were."""
    shared = [world.lm, world.text_lm, world.lora_lm, world.passing, world.block, world.attention]
    before = [snapshot(model) for model in shared]
    yield
    assert [snapshot(model) for model in shared] == before


def target(world, name, accepted=False):
    """What is called under a public name."""
    call = CALLS[name]
    on = (accepted and call.fresh) or call.on
    return PUBLIC[name] if on is None else on(world)


# === The tables are whole ===


def test_every_public_name_has_a_valid_call():
    assert sorted(CALLS) == sorted(PUBLIC)


def test_every_argument_has_a_valid_value(world):
    for name, call in CALLS.items():
        assert sorted(call.arguments(world)) == sorted(set(arguments(name)) - OF_KERAS), name
        assert not call.keywords or has_keywords(PUBLIC[name]), name


def test_meanings_are_of_arguments_and_kinds(world):
    for name, call in CALLS.items():
        valid = call.arguments(world)
        for argument in call.meaning:
            assert set(call.kinds(argument)) <= set(nonsense(valid[argument])), (name, argument)
        assert set(call.also) <= set(valid), name


# === The calls ===


@torch_alone
@pytest.mark.parametrize("name", NAMES)
def test_valid_calls(world, name):
    target(world, name, accepted=True)(**CALLS[name].arguments(world))


def pairs():
    return [(name, argument) for name in NAMES for argument in arguments(name) if argument not in OF_KERAS]


@pytest.mark.parametrize("name, argument", pairs())
@pytest.mark.usefixtures("models")
def test_nonsense(world, name, argument):
    if name not in ON_ALL_BACKENDS and keras.config.backend() != "torch":
        pytest.skip("no tensors: the same on every backend, so tried on torch alone")
    call, valid = CALLS[name], CALLS[name].arguments(world)
    called, failures = target(world, name), {}
    size = 10**6 if name in DATA else 10**8  # An import may be behind a model's first refusal.
    for kind, value in nonsense(valid[argument]).items():
        if kind in accepted(name, argument, valid[argument]):
            continue
        answer = wrong(called, CALLS[name].arguments(world), argument, value, call.words(argument), size)
        if answer is not None:
            failures.setdefault(answer, []).append(kind)
    assert not failures


def accepted(name, argument, valid):
    """The kinds of nonsense that mean something."""
    kinds = CALLS[name].kinds(argument)
    if default_is_none(PUBLIC[name], argument):
        kinds.append("None")
    if isinstance(valid, bool):
        kinds.append("True")
    return kinds


@torch_alone
@pytest.mark.parametrize("name", [name for name in NAMES if any(CALLS[name].meaning.values())])
def test_meanings(world, name):
    """What the table of meanings says is taken, is taken."""
    for argument in CALLS[name].meaning:
        for kind in CALLS[name].kinds(argument):
            valid = CALLS[name].arguments(world)
            target(world, name, accepted=True)(**{**valid, argument: nonsense(valid[argument])[kind]})


@pytest.mark.parametrize("name", [name for name in NAMES if has_keywords(PUBLIC[name]) and "__call__" not in name])
@pytest.mark.usefixtures("models")
def test_arguments_that_do_not_exist(world, name):
    with pytest.raises((TypeError, ValueError), match="nonsense"):
        target(world, name)(**CALLS[name].arguments(world), nonsense=3)


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
def test_sizes_that_are_too_large_together(world, name, sizes):
    """Each may be large; what they make together may not."""
    with pytest.raises(ValueError) as caught:
        target(world, name)(**{**CALLS[name].arguments(world), **sizes})
    message = str(caught.value)
    assert "2147483647" in message and all(f"`{size}`" in message for size in sizes if size != "keys"), message
