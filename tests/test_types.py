"""The public surface says what it takes and gives: to an editor by annotations, to a reader by `help` alone."""

import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest

import keras_fam
from keras_fam.memory.options import MEMORY_ARGUMENTS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="signatures alone: once is enough")


def public(namespace, prefix):
    """`(name, callable or property)` of all that `dir` shows of a module or class, and that this package defines."""
    for name in dir(namespace):
        if name.startswith("_"):
            continue
        path, value = f"{prefix}.{name}", inspect.getattr_static(namespace, name)
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        if isinstance(value, types.ModuleType):
            yield from public(value, path)
        elif isinstance(value, property):
            yield from [(path, value)] if is_own(value.fget) else []
        elif inspect.isclass(value) and is_own(value) and inspect.ismodule(namespace):
            yield path, value
            yield from public(value, path)
        elif inspect.isroutine(value) and is_own(value):
            yield path, value


def is_own(value):
    return (getattr(value, "__module__", None) or "").startswith("keras_fam")


SURFACE = dict(public(keras_fam, "keras_fam"))


def parameters(value):
    """`(parameters without self and cls, return annotation)`."""
    signature = inspect.signature(value.fget if isinstance(value, property) else value)
    return [each for each in signature.parameters.values() if each.name not in ("self", "cls")], signature


def test_the_surface_is_found():
    assert {"keras_fam.FAMCausalLM.fit", "keras_fam.data.pack", "keras_fam.evaluation.Task.predict"} <= set(SURFACE)
    assert "keras_fam.Chat.state" not in SURFACE and len(SURFACE) > 150


@pytest.mark.parametrize("name", SURFACE)
def test_it_is_annotated(name):
    value = SURFACE[name]
    names, signature = parameters(value)
    empty = inspect.Parameter.empty
    assert [each.name for each in names if each.annotation is empty] == []
    assert inspect.isclass(value) or signature.return_annotation is not empty


@pytest.mark.parametrize("name", SURFACE)
def test_help_stands_alone(name):
    """A summary line, and every argument in `Args` (of a class of fields in `Attributes`)."""
    value = SURFACE[name]
    text = inspect.getdoc(value)
    assert text and text.splitlines()[0].strip().endswith((".", ":")), text
    names, _ = parameters(value)
    section = "Attributes" if inspect.isclass(value) and issubclass(value, tuple) else r"(?:Call )?[Aa]rg(?:ument)?s"
    sections = "\n".join(re.findall(rf"^{section}:\n((?:[ \n].*\n?)+)", text, re.MULTILINE))
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    expected = [stars.get(each.kind, "") + each.name for each in names]
    assert [each for each in expected if not re.search(rf"^ +{re.escape(each)}: ", sections, re.MULTILINE)] == []


# === What Keras and a preset have defaults for ===


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict", "compile", "save", "load_weights", "test_on_batch"])
@pytest.mark.parametrize("cls", [keras_fam.FAMCausalLM, keras_fam.FAMBackbone])
def test_an_editor_offers_what_keras_takes(cls, name):
    own, keras_own = (inspect.signature(getattr(each, name)).parameters for each in (cls, keras.Model))
    assert set(keras_own) <= set(own)


@pytest.mark.parametrize("cls", [keras_fam.FAMCausalLM, keras_fam.FAMBackbone])
def test_an_editor_offers_all_options_of_a_preset(cls):
    assert {"preset", "load_weights", "dtype", *MEMORY_ARGUMENTS} <= set(inspect.signature(cls.from_preset).parameters)


IDS = np.ones((1, 6), "int32")
X = {"token_ids": IDS, "padding_mask": IDS}
CALLS = {
    "fit": ((X, IDS), dict(epochs=3, initial_epoch=2)),
    "evaluate": ((X, IDS), dict(return_dict=True, steps=None)),
    "predict": ((X,), dict(verbose=0)),
    "compile": (("adam", "mse"), dict(jit_compile=False, run_eagerly=False)),
    "load_weights": (("file.weights.h5",), dict(skip_mismatch=True)),
    "save": (("file.h5",), dict(zipped=None)),
    "test_on_batch": ((X, IDS), dict(return_dict=True)),
}


@pytest.mark.parametrize("name", CALLS)
def test_keras_gets_what_was_given_and_nothing_else(lm, monkeypatch, name):
    """Defaults are Keras's; an argument that only a newer one knows reaches it."""
    received = []
    monkeypatch.setattr(keras_hub.models.CausalLM, name, lambda self, *args, **kwargs: received.append(kwargs))
    arguments, given = CALLS[name]
    getattr(lm, name)(*arguments)
    getattr(lm, name)(*arguments, **given, newer=1)
    before, after = received
    assert not set(given) & set(before) and after == {**before, **given, "newer": 1}


# === A user's script ===

SCRIPT = """
import keras
import numpy as np

import keras_fam

lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en", block_size=256, memory_gate=None, dtype="bfloat16")
lm.enable_lora(rank=8)
lm.compile(optimizer=keras.optimizers.AdamW(1e-4), weighted_metrics=["accuracy"], jit_compile=False)
lm.fit(["one", "two"], epochs=2, callbacks=[keras.callbacks.EarlyStopping()], verbose="auto")
print(lm.evaluate(["one"], return_dict=True)["loss"], lm.predict(["one"], verbose=0).shape)
state = lm.initial_state(batch_size=1)
logits, state = lm.stream([[1, 2, 3]], state)
text, state = lm.generate("The pass key", state=state, max_new_tokens=20, return_state=True)
for piece in lm.generate_stream(" and", state=state):
    print(piece, len(state.layers))
print(keras_fam.Chat(lm, system="Be brief.").say("What?").upper())
inputs, targets, weights = keras_fam.data.pack([(np.arange(3), np.ones(3))], length=8)
lm.fit(["one"], epochs="2")  # wrong
lm.evaluate(["one"], return_dict=1.5)  # wrong
lm.generate("The pass key", max_tokens=20)  # wrong
lm.stream([[1, 2, 3]])  # wrong
lm.compile(jit_compile="always")  # wrong
keras_fam.FAMCausalLM.from_preset("gpt2_base_en", block_size="256")  # wrong
keras_fam.Chat(lm).say(3)  # wrong
keras_fam.FAMPrompt(length=3)  # wrong
keras_fam.data.pack([], size=8)  # wrong
"""


def test_a_script_is_checked(tmp_path):
    """mypy, as a user runs it, takes what is right and names each line that is wrong."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "script.py")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    named = {int(line) for line in re.findall(r"script\.py:(\d+): error", output)}
    wrong = {number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")}
    assert named == wrong, output
