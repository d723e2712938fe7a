"""Model families: how each KerasHub backbone embeds tokens, and what its decoder layers are made of.

To add a family, write a subclass of `Family` and pass it to `register_family`; nothing else changes.
"""

from keras_fam.families.family import DecoderParts, Family, backbone_classes
from keras_fam.families.gemma import Gemma3Family, GemmaFamily
from keras_fam.families.gpt2 import GPT2Family
from keras_fam.families.llama import LlamaFamily, MistralFamily, Qwen3Family, QwenFamily

__all__ = ["DecoderParts", "Family", "family_of", "register_family"]

_FAMILIES = [GemmaFamily, Gemma3Family, GPT2Family, LlamaFamily, MistralFamily, QwenFamily, Qwen3Family]


def register_family(family: type[Family]) -> None:
    """Adds a model family.

    Args:
        family: subclass of `keras_fam.families.Family`; its `backbone_cls` tells which backbones it adapts. The family
            that was registered last is taken.

    Raises:
        TypeError: `family` is no such class.
        ValueError: it names no backbone class.

    Example:

    ```python
    keras_fam.register_family(MyFamily)
    ```
    """
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise TypeError(f"`family` must be a subclass of keras_fam.families.Family. Received: family={family!r}.")
    if not family.backbone_cls:
        raise ValueError(
            f"`family` must name the backbone class that it adapts, in `backbone_cls`. Received: {family.__name__} "
            f"with backbone_cls={family.backbone_cls!r}."
        )
    _FAMILIES.insert(0, family)


def family_of(backbone_cls: type, config: dict | None = None) -> type[Family]:
    """The family class for a stock backbone class.

    Args:
        backbone_cls: class of a KerasHub backbone.
        config: its `get_config()`, or None if it is not known yet.

    Raises:
        ValueError: no family adapts that class, or not in the mode that `config` says.
    """
    for family in _FAMILIES:
        if family.adapts(backbone_cls):
            reason = None if config is None else family.unsupported(config)
            if reason is not None:
                raise ValueError(
                    f"`backbone` must be a language model that reads text from left to right. Received: "
                    f"{backbone_cls.__name__}, but {reason}."
                )
            return family
    supported = ", ".join(each.__name__ for family in _FAMILIES for each in backbone_classes(family))
    raise ValueError(
        f"`backbone` must be of a supported family: {supported}. Received: backbone of class {backbone_cls.__name__}. "
        "To add a family, write a subclass of `keras_fam.families.Family` and pass it to `keras_fam.register_family`."
    )
