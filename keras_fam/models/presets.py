"""Presets: stock ones get memory while they load, saved FAM presets load as they are."""

import inspect
import os
import shutil
import tempfile
import uuid

import keras
import keras_hub
from keras_hub.src.utils.preset_utils import get_preset_loader

from keras_fam.checks import check_keywords
from keras_fam.families import family_of
from keras_fam.memory.options import MEMORY_ARGUMENTS, ModelOptions


def load_backbone(cls, load_saved, preset, load_weights, arguments):
    """`FAMBackbone.from_preset`: see there. `load_saved` is KerasHub's own `from_preset`."""
    memory, rest = _split(arguments)
    stock_cls, saved = _inspect(cls, preset, memory)
    if stock_cls is None:
        _check_agreement(saved, memory)
        return load_saved(preset, load_weights, **rest)
    check_keywords(rest, (*MEMORY_ARGUMENTS, *inspect.signature(stock_cls).parameters))
    stock = stock_cls.from_preset(preset, load_weights=load_weights, **rest)
    return cls(stock, **memory)


def load_task(cls, load_saved, preset, load_weights, arguments):
    """`FAMCausalLM.from_preset`: see there. `load_saved` is KerasHub's own `from_preset`."""
    memory, rest = _split(arguments)
    stock_cls, saved = _inspect(cls.backbone_cls, preset, memory)
    if stock_cls is None:
        _check_agreement(saved, memory)
        return load_saved(preset, load_weights, **rest)
    check_keywords(rest, (*MEMORY_ARGUMENTS, "dtype", "preprocessor", "compile", "name", "trainable"))
    backbone_arguments = {"dtype": rest.pop("dtype")} if "dtype" in rest else {}
    stock = stock_cls.from_preset(preset, load_weights=load_weights, **backbone_arguments)
    if "preprocessor" not in rest:
        rest["preprocessor"] = keras_hub.models.CausalLMPreprocessor.from_preset(preset)
    return cls(cls.backbone_cls(stock, **memory), **rest)


def save_preset(save, preset_dir, max_shard_size):
    """Saves into a new folder beside `preset_dir` and only then moves it there, file by file if the folder exists.

    Args:
        save: callable `(preset_dir, max_shard_size=...)`.
        preset_dir: str or path-like.
        max_shard_size: see `keras_hub.models.Backbone.save_to_preset`.
    """
    preset_dir = os.path.abspath(os.fspath(preset_dir))
    os.makedirs(os.path.dirname(preset_dir), exist_ok=True)
    complete = tempfile.mkdtemp(dir=os.path.dirname(preset_dir), prefix=f".{os.path.basename(preset_dir)}.")
    try:
        save(complete, max_shard_size=max_shard_size)
        os.chmod(complete, 0o755)
        if not os.path.exists(preset_dir):
            os.rename(complete, preset_dir)
            return
        for folder, _, files in os.walk(complete):
            target = os.path.join(preset_dir, os.path.relpath(folder, complete))
            os.makedirs(target, exist_ok=True)
            for file in files:
                os.replace(os.path.join(folder, file), os.path.join(target, file))
    finally:
        shutil.rmtree(complete, ignore_errors=True)


class SavesWhole:
    """`save` of a model, that leaves the file that was there before whole until it is replaced."""

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs) -> None:
        """See `keras.Model.save`. A local `.keras` file is replaced in one step."""
        path = str(filepath)
        if not path.endswith(".keras") or "://" in path or (os.path.exists(path) and not overwrite):
            return super().save(filepath, overwrite=overwrite, **kwargs)
        folder, name = os.path.split(os.path.abspath(path))
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}.{name}")
        try:
            super().save(temporary, **kwargs)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


def _inspect(fam_cls, preset, memory):
    """`(stock backbone class, None)`, or `(None, config)` of a saved FAM preset.

    Refuses an unsupported family, and memory arguments that do not fit it, before any weight is loaded.
    """
    loader = get_preset_loader(preset)
    backbone_cls = loader.check_backbone_class()
    if issubclass(backbone_cls, fam_cls):
        return None, loader.config["config"]
    if "registered_name" in loader.config:  # KerasHub's own format; another one is checked once it is converted.
        config = loader.config["config"]
        family = family_of(backbone_cls, config)
        parameters = inspect.signature(fam_cls).parameters
        options = ModelOptions(**{name: memory.get(name, parameters[name].default) for name in MEMORY_ARGUMENTS})
        options.check_model(config.get("vocabulary_size"), config.get(family.table_length_name))
    else:
        family_of(backbone_cls)
    return backbone_cls, None


def stock_config(fam_cls: type, preset: str) -> tuple[type, dict]:
    """The stock backbone's class and configuration, out of a stock preset or a saved FAM preset; no weight is read."""
    loader = get_preset_loader(preset)
    backbone_cls, config = loader.check_backbone_class(), loader.config
    if issubclass(backbone_cls, fam_cls):
        stock = config["config"]["backbone"]
        return keras.saving.get_registered_object(stock["registered_name"]), stock["config"]
    if "registered_name" in config:
        return backbone_cls, config["config"]
    return backbone_cls, loader.converter.convert_backbone_config(config)  # Another format than KerasHub's own.


def _split(arguments):
    """Keyword arguments that shape the memory, and the rest."""
    memory = {name: value for name, value in arguments.items() if name in MEMORY_ARGUMENTS}
    return memory, {name: value for name, value in arguments.items() if name not in MEMORY_ARGUMENTS}


def _check_agreement(saved, memory):
    for name, value in memory.items():
        if value != saved[name]:
            raise ValueError(
                f"`{name}` must agree with the saved FAM preset, which has {name}={saved[name]!r}, or be left out. "
                f"Received: {name}={value!r}."
            )
