"""Model families: how each KerasHub backbone embeds tokens, and what its decoder layers are made of.

To add a family, write a class like `GemmaFamily` and pass it to `register_family`; nothing else changes.
"""

from keras_fam.families.gemma import GemmaFamily
from keras_fam.families.gpt2 import GPT2Family

_FAMILIES = [GemmaFamily, GPT2Family]


def register_family(family: type) -> None:
    """Adds a model family.

    Args:
        family: class with the attributes and methods of `keras_fam.families.gemma.GemmaFamily`; `backbone_cls` tells
            which backbones it adapts.

    Example:

    ```python
    keras_fam.register_family(MyFamily)
    ```
    """
    _FAMILIES.append(family)


def family_of(backbone_cls: type) -> type:
    """The family class for a stock backbone class.

    Raises:
        ValueError: no family adapts that class.
    """
    for family in _FAMILIES:
        if backbone_cls is family.backbone_cls:
            return family
    supported = ", ".join(family.backbone_cls.__name__ for family in _FAMILIES)
    raise ValueError(
        f"`backbone` must be of a supported family: {supported}. Received: backbone of class {backbone_cls.__name__}. "
        "To add a family, write an adapter class like `keras_fam.families.gemma.GemmaFamily` and pass it to "
        "`keras_fam.register_family`."
    )
