"""Every argument of every public name, and what becomes of nonsense in its place."""

import contextlib
import inspect
import re
import signal
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import keras
import keras_hub

import keras_fam
from helpers.nonsense import states_beside, values_beside

REFUSALS = (ValueError, TypeError, FileNotFoundError, FileExistsError)
SECONDS = 20  # That a call may take: nothing is tried that takes for ever.
COMPUTING = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding, keras_hub.layers.ReversibleEmbedding)


@dataclass
class Call:
    """One valid call of a public name, made of a `World`.

    Attributes:
        arguments: callable `(world) -> dict`, all arguments by name.
        on: callable `(world) -> callable`, what is called; None for the public name itself.
        meaning: dict of argument to the kinds of nonsense that mean something there, with a space between two; the
            docstring says what. None needs no mention where it is the default.
        also: dict of argument to the name that messages have for it, where they name a part of it.
        keywords: names of arguments that go through `**kwargs`.
        received: pattern for how a message says what was received; Keras has words of its own.
        fresh: `on` for values that are accepted, where the call changes what it is called on; or None.
    """

    arguments: Callable[[Any], dict]
    on: Callable[[Any], Callable] | None = None
    meaning: dict[str, str] = field(default_factory=dict)
    also: dict[str, str] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()
    received: str = "Received"
    fresh: Callable[[Any], Callable] | None = None

    def kinds(self, argument):
        """The kinds of nonsense that mean something as `argument`."""
        return [kind.strip() for kind in self.meaning.get(argument, "").split(",") if kind.strip()]

    def words(self, argument):
        """Patterns of what a message about `argument` must say."""
        return rf"(?<!\w)(?:{self.also.get(argument, argument)})(?!\w)", self.received


def public_callables(modules, left_out):
    """`{name: callable}` of all public functions, constructors, and methods that the package's own classes define.

    Args:
        modules: modules with `__all__`.
        left_out: collection of names: "Class", "Class.method", or "*.method".
    """
    found = {}
    for module in modules:
        for name in module.__all__:
            item = getattr(module, name)
            if callable(item) and name not in left_out:
                found[name] = item
                found |= dict(_methods(name, item, left_out)) if inspect.isclass(item) else {}
    return {name: item for name, item in found.items() if parameters(item)}


def _methods(name, cls, left_out):
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == keras_fam.__name__]
    for method in dict.fromkeys(method for base in own for method in vars(base)):
        shown = "__call__" if method == "call" else method
        item = inspect.getattr_static(cls, method)
        public = not method.startswith("_") or method == "__getitem__"
        called = isinstance(item, (classmethod, staticmethod)) or inspect.isfunction(item)
        if isinstance(item, property) and item.fset is not None:
            yield f"{name}.{method}", item.fset
        if public and called and f"{name}.{shown}" not in left_out and f"*.{shown}" not in left_out:
            yield f"{name}.{shown}", getattr(cls, method)


def parameters(item):
    """The names of a callable's arguments, without `self` and `**kwargs`."""
    given = inspect.signature(item).parameters.values()
    return [
        each.name for each in given if each.name != "self" and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]


def has_keywords(item):
    return any(each.kind == each.VAR_KEYWORD for each in inspect.signature(item).parameters.values())


def default_is_none(item, argument):
    given = inspect.signature(item).parameters.get(argument)
    return given is not None and given.default is None


def nonsense(valid):
    """`{kind: value}` in place of a valid value."""
    if isinstance(valid, keras_fam.StreamState):
        return {**values_beside(valid), **states_beside(valid)}
    return values_beside(valid)


def wrong(call, arguments, argument, value, words, size):
    """What is wrong with the answer of `call` to nonsense: a str, or None if it is refused as it should be.

    Args:
        call: callable.
        arguments: dict, valid arguments.
        argument: str, the one that `value` is put in the place of.
        value: nonsense.
        words: patterns of what the message must say: the argument's name, and that something was received.
        size: int, bytes of Python and NumPy that it may take to refuse.
    """
    with computing() as computed:
        try:
            with time_limit(SECONDS), memory_limit(size):
                call(**{**arguments, argument: value})
        except REFUSALS as error:
            message = str(error)
            if not all(re.search(word, message) for word in words):
                return f"{type(error).__name__} without the argument's name or what was received: {message[:300]}"
            if len(message) > 2000:
                return f"a message of {len(message)} characters"
            if not says(message, value):
                return f"nothing of the value in {message[:300]}"
            return f"computed before it said {message[:100]}" if computed else None
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted"


def says(message, value):
    """Whether a message tells what was received: a single value itself, or at least its type."""
    if isinstance(value, (list, dict, tuple)) or hasattr(value, "shape"):
        return True
    told = message.partition("Received")[2] or message
    names = (str(value)[:80], repr(value)[:80], type(value).__name__, getattr(value, "__name__", type(value).__name__))
    return any(name in told for name in names) or (isinstance(value, (int, float, complex)) and "shape ()" in told)


@contextlib.contextmanager
def computing():
    """A list that is not empty once a layer with weights has computed anything of values."""
    computed = []

    def counted(cls):
        plain = cls.call

        def call(self, inputs, *args, **kwargs):
            if not isinstance(inputs, keras.KerasTensor):
                computed.append(self.name)
            return plain(self, inputs, *args, **kwargs)

        return mock.patch.object(cls, "call", call)

    with contextlib.ExitStack() as stack:
        for cls in COMPUTING:
            stack.enter_context(counted(cls))
        yield computed


@contextlib.contextmanager
def memory_limit(size):
    """Fails if more bytes of Python and NumPy are taken than `size`."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > size:
            raise MemoryError(f"took {peak:,} bytes")


@contextlib.contextmanager
def time_limit(seconds):
    """Ends what takes longer by an error."""

    def over(number, frame):
        raise RuntimeError(f"took longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
