"""The public surface says what it takes and gives: to an editor by annotations, to a reader by `help` alone."""

import inspect
import re
import types

import keras
import pytest

import keras_fam

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
