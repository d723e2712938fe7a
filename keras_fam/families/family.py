"""What a model family is: its KerasHub backbones, how they embed tokens, what their layers are made of."""

import keras

from keras_fam.families.activations import gelu, silu
from keras_fam.families.rotary import in_float32
from keras_fam.memory.parts import DecoderParts
from keras_fam.types import Tensor

__all__ = ["DecoderParts", "Family", "gelu", "in_float32", "silu"]


class Family:
    """Base class of a family; a subclass adapts one or more KerasHub backbone classes.

    A subclass sets `backbone_cls` and `lora_layer_names`, and says by `parts` what a decoder layer is made of. It knows
    nothing of memory. `docs/add_a_family.md` walks through one.

    Attributes:
        backbone_cls: class or tuple of classes, exactly those; a subclass of one may compute something else.
        lora_layer_names: tuple of str, names of the projections of attention and feed-forward.
        table_length_name: str, what the backbone's configuration calls the rows of its table of learned positions; None
            for rotary positions.
        weight_axes: dict from a pattern of paths to the axes of these weights, by which `FAMBackbone.get_layout_map`
            splits them over devices: `"vd"` for a weight, `"dhc->hc"` for a projection's kernel and bias. The letters
            are in `keras_fam.models.layouts`.

        unsaved_arguments: tuple of str, constructor arguments that the backbone's own `get_config` leaves out.

    Args:
        backbone: a KerasHub backbone of such a class.

    Example:

    ```python
    class MyFamily(keras_fam.families.Family):
        backbone_cls = MyBackbone
        lora_layer_names = ("query", "value")

        def parts(self, layer):
            return DecoderParts(query=layer.query, ...)

    keras_fam.register_family(MyFamily)
    ```
    """

    backbone_cls: type | tuple[type, ...] = ()
    lora_layer_names: tuple[str, ...] = ()
    table_length_name: str | None = None
    unsaved_arguments: tuple[str, ...] = ()
    weight_axes: dict[str, str] = {}

    def __init__(self, backbone):
        self.backbone = backbone

    @classmethod
    def adapts(cls, backbone_cls: type) -> bool:
        """Whether the family is made for this very class."""
        return backbone_cls in backbone_classes(cls)

    @staticmethod
    def unsupported(config: dict) -> str | None:
        """Why a backbone of this configuration cannot be used, in words, or None.

        Args:
            config: `get_config()` of a backbone, or what a preset's file says of it.
        """
        return None

    @property
    def position_table_length(self) -> int | None:
        """Rows of a table of learned positions; None for rotary positions."""
        return None if self.table_length_name is None else getattr(self.backbone, self.table_length_name)

    def parts(self, layer: keras.layers.Layer) -> DecoderParts:
        """What the stock decoder layer `layer` is made of."""
        raise NotImplementedError(f"{type(self).__name__} must say what a decoder layer is made of, in `parts`.")

    @property
    def decoder_layers(self) -> list[keras.layers.Layer]:
        """The stock decoder layers, from below."""
        return self.backbone.transformer_layers

    @property
    def final_norm(self) -> keras.layers.Layer:
        """The norm behind the last layer."""
        return self.backbone.layer_norm

    def scale(self, embeddings: Tensor) -> Tensor:
        """What happens to token embeddings `[b, t, d]` before positions, and so to the prompt."""
        return embeddings

    def embed(self, token_ids: Tensor, places: Tensor | None) -> Tensor:
        """int `[b, t]` to `[b, t, d]`, without dropout.

        Args:
            token_ids: int `[b, t]`.
            places: int `[1 or b, t]`, rows of the table of learned positions; None for rotary positions.
        """
        return self.scale(self.backbone.token_embedding(token_ids))

    @property
    def embeddings_dropout(self) -> keras.layers.Layer | None:
        """The dropout behind the embeddings of tokens, or None."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[b, t, d]` to logits `[b, t, vocabulary]`: tied or untied, soft-capped or not."""
        return self.backbone.token_embedding(hidden, reverse=True)


def backbone_classes(family: type[Family]) -> tuple[type, ...]:
    """The backbone classes that a family adapts."""
    return family.backbone_cls if isinstance(family.backbone_cls, tuple) else (family.backbone_cls,)
