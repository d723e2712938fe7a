"""Layout maps: which axis of which variable is split over which dimension of a mesh of devices.

Families and this file name axes by letters:

| letter | axis | split over |
|---|---|---|
| v | vocabulary | the model dimension |
| h, k | query heads, key/value heads | the model dimension |
| f | width of the feed-forward | the model dimension |
| d | hidden dim | the data dimension |
| b | rows of the batch | the data dimension |
| any other | head dim, rank of LoRA, places, blocks, FAM vectors | nothing |

This is the scheme of KerasHub's own maps. A device attends with its own heads and computes its own part of the
feed-forward. Weights are also split over the data dimension, and gathered where they are used.
"""

import keras
import keras_hub

from keras_fam.families import family_of
from keras_fam.models.presets import stock_config
from keras_fam.types import MixedIn

MODEL_LETTERS, DATA_LETTERS = "vhkf", "db"
# What a model with memory has beside the weights of its family. Scalars and norms are whole on every device.
MEMORY_AXES = {
    "fam_prompt/embeddings": "Nd",
    ".*/last_fam": "Nd",
    ".*/carried_fam": "bNd",
    ".*/carried_(key|value)": "bmBkc",
    "carried_state/(started|position)": "b",
    "carried_state/valid": "bmB",
}


class LaidOut(MixedIn):
    """The method of `FAMBackbone` for several devices."""

    @classmethod
    def get_layout_map(
        cls,
        device_mesh: keras.distribution.DeviceMesh,
        backbone: str | type | keras_hub.models.Backbone,
        model_parallel_dim_name: str = "model",
        data_parallel_dim_name: str = "batch",
    ) -> keras.distribution.LayoutMap:
        """How the variables of a model with memory lie on several devices: weights, LoRA, prompt and carried state.

        The map is made before the model, since variables are laid out when they are made. Heads, feed-forward and
        vocabulary are split over the model dimension, the hidden dim and the rows of carried state over the data
        dimension. Norms, scalars and seeds are whole on every device, and so is an axis that does not divide evenly,
        such as the one key head of a small Gemma.

        Args:
            device_mesh: `keras.distribution.DeviceMesh`.
            backbone: what memory will be given to. str, a preset as in `from_preset`, or a KerasHub backbone, whose
                configurations tell which axes divide; or a backbone's class, of which all are taken to.
            model_parallel_dim_name: str, the mesh's dimension for the model.
            data_parallel_dim_name: str, the mesh's dimension for the batch.

        Returns:
            `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`.

        Raises:
            TypeError, ValueError: no mesh, a dimension that it does not have, no backbone, an unsupported family.

        Example:

        ```python
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
        layout_map = keras_fam.FAMBackbone.get_layout_map(mesh, "gpt2_base_en")
        with keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch").scope():
            lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en", block_size=256, memory_segments=2, fam_length=32)
            lm.enable_lora(rank=64)
            lm.compile(optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            lm.fit(texts, batch_size=2)
        ```
        """
        check_mesh(
            device_mesh,
            model_parallel_dim_name=model_parallel_dim_name,
            data_parallel_dim_name=data_parallel_dim_name,
        )
        if isinstance(backbone, str):
            backbone_cls, config = stock_config(cls, backbone)
        elif isinstance(backbone, keras_hub.models.Backbone):
            stock = backbone.family.backbone if isinstance(backbone, LaidOut) else backbone
            backbone_cls, config = type(stock), stock.get_config()
        elif isinstance(backbone, type):
            backbone_cls, config = backbone, {}
        else:
            raise TypeError(
                "`backbone` must be a preset, a KerasHub backbone or a class of backbones. Received: backbone of type "
                f"{type(backbone).__name__}."
            )
        family = family_of(backbone_cls)
        if not family.weight_axes:
            raise ValueError(
                f"`weight_axes` must name the axes of a family's weights to split them. Received: {family.__name__} "
                "with none."
            )
        sizes = sizes_of(config)
        return layout_map(device_mesh, family.weight_axes, sizes, model_parallel_dim_name, data_parallel_dim_name)


def layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    axes: dict[str, str],
    sizes: dict[str, int],
    model_dim: str,
    data_dim: str,
) -> keras.distribution.LayoutMap:
    """The layout map of a model with memory.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        axes: dict, `weight_axes` of a family.
        sizes: dict from letters to the sizes of these axes, as far as they are known. An axis that does not divide
            evenly stays whole: jax refuses such a layout.
        model_dim: str, name of a dimension of the mesh.
        data_dim: str, name of a dimension of the mesh.

    Returns:
        `keras.distribution.LayoutMap`.
    """
    devices = dict(zip(device_mesh.axis_names, device_mesh.shape))
    split = {**dict.fromkeys(MODEL_LETTERS, model_dim), **dict.fromkeys(DATA_LETTERS, data_dim)}
    split = {letter: dim for letter, dim in split.items() if sizes.get(letter, 0) % devices[dim] == 0}
    layouts = keras.distribution.LayoutMap(device_mesh)
    for pattern, letters in variable_axes({**axes, **MEMORY_AXES}).items():
        layouts[pattern] = _layout(letters, split)
    return layouts


def variable_axes(axes: dict[str, str]) -> dict[str, str]:
    """The letters of every variable: `"dhc->hc"` stands for a projection's kernel, bias and LoRA kernels."""
    variables = {}
    for pattern, letters in axes.items():
        kernel, arrow, bias = letters.partition("->")
        if not arrow:
            variables[pattern] = letters
            continue
        # Keras makes kernel + A B, with A `[.., rank]` and B `[rank, last axis]`.
        own = {"kernel": kernel, "bias": bias, "lora_kernel_a": kernel[:-1] + "r", "lora_kernel_b": "r" + kernel[-1]}
        variables.update({f"{pattern}/{name}": letters for name, letters in own.items()})
    return variables


def _layout(letters, split):
    """Names of dimensions for each axis; a dimension splits the first axis that it can."""
    names = []
    for letter in letters:
        name = split.get(letter)
        names.append(None if name in names else name)
    return tuple(names)


def sizes_of(config: dict) -> dict[str, int]:
    """Sizes of axes by letter, as far as the configuration of a KerasHub backbone tells them."""
    names = {
        "v": ("vocabulary_size",),
        "d": ("hidden_dim",),
        "h": ("num_query_heads", "num_heads"),
        "k": ("num_key_value_heads", "num_heads"),
    }
    return {letter: config[name] for letter, keys in names.items() for name in keys if name in config}


def check_mesh(device_mesh: keras.distribution.DeviceMesh, **dims: str) -> None:
    """Refuses what is no mesh, and names of dimensions that it does not have.

    Raises:
        TypeError, ValueError: by name.
    """
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise TypeError(
            f"`device_mesh` must be a keras.distribution.DeviceMesh. Received: device_mesh of type "
            f"{type(device_mesh).__name__}."
        )
    for name, dim in dims.items():
        if not isinstance(dim, str) or dim not in device_mesh.axis_names:
            raise ValueError(
                f"`{name}` must name a dimension of the mesh, out of {list(device_mesh.axis_names)}. Received: "
                f"{name}={dim!r}."
            )
    if len(set(dims.values())) < len(dims):
        raise ValueError(f"{' and '.join(f'`{name}`' for name in dims)} must differ. Received: {dims} for both.")
