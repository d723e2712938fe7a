"""Presets: stock ones get memory while they load, saved FAM presets load as they are."""

import functools
import inspect
import numbers
import os
from typing import Any

import keras
import keras_hub
from keras_hub.src.utils.preset_utils import get_preset_loader

from keras_fam.arguments import DEFAULT, given
from keras_fam.checks import check_flag, check_keywords, check_path, check_positive
from keras_fam.families import family_of
from keras_fam.files.atomic import atomic_write
from keras_fam.files.folders import read_folder, replace_folder
from keras_fam.files.old_weights import with_names_of_today
from keras_fam.memory.options import MEMORY_ARGUMENTS, RUN_ARGUMENTS, ModelOptions
from keras_fam.types import MixedIn, Path

# Where the gate of a stock preset starts, if none is given. It costs the models of `docs/attach.md` less than 0.1 nats.
MEMORY_GATE = -9.0

# What a save writes as a whole: none of it is kept beside a newer one. Tokenizers and a user's own files are.
_SUPERSEDED = (
    *("config.json", "metadata.json", "task.json", "task.weights.h5", "model.weights.h5", "model.weights.json"),
    "model_[0-9][0-9][0-9][0-9][0-9].weights.h5",
)


def _of_one_save(load):
    """Reads all files of one save, even if the preset's folder is replaced meanwhile."""

    @functools.wraps(load)
    def read(cls, load_saved, preset, *arguments):
        return read_folder(preset, lambda: load(cls, load_saved, preset, *arguments))

    return read


@_of_one_save
def load_backbone(cls, load_saved, preset, load_weights, arguments):
    """`FAMBackbone.from_preset`: see there. `load_saved` is KerasHub's own `from_preset`."""
    memory, rest = _split(arguments)
    loader, stock_cls = _find(cls, preset)
    if stock_cls is None:
        _check_agreement(loader.config["config"], memory)
        backbone = load_saved(preset, load_weights, **memory, **rest)
        if memory.get("random_state_passing"):  # A saved run leaves its own among its weights.
            backbone.random_state_passing = memory["random_state_passing"]
        return backbone
    of_stock = inspect.signature(stock_cls).parameters.values()
    check_keywords(rest, (*MEMORY_ARGUMENTS, *(each.name for each in of_stock if each.kind != each.VAR_KEYWORD)))
    return _with_memory(cls, stock_cls, loader, memory, lambda: stock_cls.from_preset(preset, load_weights, **rest))


@_of_one_save
def load_task(cls, load_saved, preset, load_weights, arguments):
    """`FAMCausalLM.from_preset`: see there. `load_saved` is KerasHub's own `from_preset`."""
    memory, rest = _split(arguments)
    loader, stock_cls = _find(cls.backbone_cls, preset)
    if stock_cls is None:
        _check_agreement(loader.config["config"], memory)
        if memory:
            dtype = {name: rest.pop(name) for name in ("dtype",) if name in rest}
            rest["backbone"] = cls.backbone_cls.from_preset(preset, load_weights, **memory, **dtype)
        return load_saved(preset, load_weights, **rest)
    check_keywords(rest, (*MEMORY_ARGUMENTS, "dtype", "preprocessor", "compile", "name", "trainable"))
    backbone_arguments = {"dtype": rest.pop("dtype")} if "dtype" in rest else {}
    if "preprocessor" not in rest:
        rest["preprocessor"] = keras_hub.models.CausalLMPreprocessor.from_preset(preset)
    memory = {"sink_token_id": _start_token_id(rest["preprocessor"]), **memory}
    load = functools.partial(stock_cls.from_preset, preset, load_weights, **backbone_arguments)
    return cls(_with_memory(cls.backbone_cls, stock_cls, loader, memory, load), **rest)


def save_preset(save, preset_dir, max_shard_size):
    """Saves into a new folder beside `preset_dir`, which then takes its place in one step.

    Args:
        save: callable `(preset_dir, max_shard_size=...)`.
        preset_dir: str or path-like. Other files in it are kept, a tokenizer too.
        max_shard_size: see `keras_hub.models.Backbone.save_to_preset`.

    Raises:
        ValueError: `preset_dir` is a file.
    """
    if max_shard_size is not None:
        check_positive("max_shard_size", max_shard_size)
    if os.path.exists(preset_dir) and not os.path.isdir(preset_dir):
        raise ValueError(f"`preset_dir` must be a folder, or new. Received: preset_dir={str(preset_dir)!r}, a file.")
    replace_folder(preset_dir, functools.partial(save, max_shard_size=max_shard_size), _SUPERSEDED)


class SavesWhole(MixedIn):
    """A model whose `save` leaves the file that was there before whole until it is replaced."""

    def load_weights(self, filepath: Path, skip_mismatch: bool = DEFAULT, **kwargs: Any) -> None:
        """Loads what `save_weights` saved; see `keras.Model.load_weights`. Files of version 0.1 are taken too.

        Args:
            filepath: str or path-like, a file ending in `.weights.h5`, or in `.weights.json` for one of several shards;
                or a `.keras` file.
            skip_mismatch: bool. Whether layers whose weights do not fit are left as they are.
            **kwargs: what Keras takes too, such as `objects_to_skip`.

        Raises:
            FileNotFoundError: no such file.
            TypeError, ValueError: no path, or no flag; weights that do not fit this model's.
        """
        check_path("filepath", filepath)
        options = given(locals(), "skip_mismatch")
        check_flag("skip_mismatch", options.get("skip_mismatch", False))
        with with_names_of_today(filepath) as path:
            super().load_weights(path, **options, **kwargs)

    def save(self, filepath: Path, overwrite: bool = True, zipped: bool | None = DEFAULT, **kwargs: Any) -> None:
        """Saves the model, with its optimizer's state; see `keras.Model.save`.

        Args:
            filepath: str or path-like, ending in `.keras`. A local file is replaced in one step.
            overwrite: bool. Whether a file that is there already is replaced without asking.
            zipped: bool or None, whether to save one file and no folder; None is one file for `.keras`.
            **kwargs: what a newer Keras takes.

        Raises:
            TypeError, ValueError: no path, or no flag; another ending.
        """
        kwargs |= given(locals(), "zipped")
        path = str(check_path("filepath", filepath))
        check_flag("overwrite", overwrite)
        if kwargs.get("zipped") is not None:
            check_flag("zipped", kwargs["zipped"])
        if not path.endswith(".keras") or "://" in path or (os.path.exists(path) and not overwrite):
            return super().save(filepath, overwrite=overwrite, **kwargs)
        with atomic_write(path) as file:
            super().save(file.name, **kwargs)


def _find(fam_cls, preset):
    """`(loader, stock backbone class)`; without a class for a saved FAM preset. Refuses an unsupported family."""
    loader = get_preset_loader(preset)
    backbone_cls = loader.check_backbone_class()
    if issubclass(backbone_cls, fam_cls):
        return loader, None
    # The configuration in KerasHub's own format; of another one more is known once it is converted.
    family_of(backbone_cls, loader.config["config"] if "registered_name" in loader.config else None)
    return loader, backbone_cls


def _with_memory(fam_cls, stock_cls, loader, memory, load):
    """A stock backbone with memory; arguments that do not fit it are refused before any weight is loaded."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(fam_cls).parameters.items()}
    if "registered_name" in loader.config:
        config = loader.config["config"]
        table_length = config.get(family_of(stock_cls).table_length_name)
        options = ModelOptions(**_fitting(memory, defaults, table_length))
        options.check_model(config.get("vocabulary_size"), table_length)
    stock = load()
    return fam_cls(stock, **_fitting(memory, defaults, family_of(type(stock))(stock).position_table_length))


def _fitting(memory, defaults, table_length):
    """All memory options for a stock preset: those given, and defaults that fit them and a table of positions.

    What was given is left as it is, to be refused by name where it does not fit.
    """
    options = {name: memory.get(name, defaults[name]) for name in MEMORY_ARGUMENTS}
    if "memory_gate" not in memory and options["fam_length"]:
        options["memory_gate"] = MEMORY_GATE
    size, segments, length = (options[name] for name in ("block_size", "memory_segments", "fam_length"))
    if not all(isinstance(value, numbers.Integral) for value in (size, segments, length)):
        return options
    if table_length is not None and "block_size" not in memory:
        size = max(1, min(size, table_length // max(1, segments + 1)))
    elif table_length is not None and "memory_segments" not in memory:
        segments = max(0, min(segments, table_length // max(1, size) - 1))
    if "fam_length" not in memory:
        length = max(1, min(length, size))
    return {**options, "block_size": size, "memory_segments": segments, "fam_length": length}


def _start_token_id(preprocessor):
    """The start token of a preprocessor's tokenizer, or None."""
    return getattr(getattr(preprocessor, "tokenizer", None), "start_token_id", None)


def stock_config(fam_cls: type, preset: str) -> tuple[type, dict]:
    """The stock backbone's class and configuration, out of a stock preset or a saved FAM preset; no weight is read."""
    loader, stock_cls = _find(fam_cls, preset)
    if stock_cls is None:
        stock = loader.config["config"]["backbone"]
        return keras.saving.get_registered_object(stock["registered_name"]), stock["config"]
    if "registered_name" in loader.config:
        return stock_cls, loader.config["config"]
    return stock_cls, loader.converter.convert_backbone_config(loader.config)  # Another format than KerasHub's own.


def _split(arguments):
    """Keyword arguments that shape the memory, and the rest."""
    memory = {name: value for name, value in arguments.items() if name in MEMORY_ARGUMENTS}
    return memory, {name: value for name, value in arguments.items() if name not in MEMORY_ARGUMENTS}


def _check_agreement(saved, memory):
    """Options that shape the memory must be those of the saved preset; options of a run may be others."""
    for name, value in memory.items():
        if name in RUN_ARGUMENTS:
            continue
        if value != saved.get(name):
            raise ValueError(
                f"`{name}` must agree with the saved FAM preset, which has {name}={saved.get(name)!r}, or be left out. "
                f"Received: {name}={value!r}."
            )
