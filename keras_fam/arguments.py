"""Arguments that have a name in a signature and a default elsewhere: in Keras, in KerasHub or in a preset."""

from typing import Any


class _Default:
    """The value of an argument that was not given."""

    def __repr__(self) -> str:
        return "<default>"


DEFAULT: Any = _Default()


def given(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some arguments of a call, to hand on, without those that were not given: their defaults are stated elsewhere.

    Args:
        arguments: `locals()` of a function, before it has changed any.
        *names: names of its parameters.

    Returns:
        dict of name to value.
    """
    return {name: arguments[name] for name in names if arguments[name] is not DEFAULT}
