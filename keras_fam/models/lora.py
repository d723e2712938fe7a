"""LoRA fine-tuning: what trains, and one file with everything that was trained."""

import math
import os

import keras
from keras import ops

from keras_fam.checks import check_flag, check_integer, check_names
from keras_fam.files import adapter_file
from keras_fam.types import MixedIn


class LoRAWeights(MixedIn):
    """The LoRA methods of `FAMBackbone`: Keras's own layer LoRA, or adapters of FAM alone; with FAM prompt and gates.

    Attributes:
        lora_memory_only: bool. Whether `enable_lora` was called with `memory_only=True`.
    """

    lora_memory_only = False
    _lora_rank: int | None = None
    _lora_target_layer_names: list[str] = []

    def default_lora_layer_names(self) -> list[str]:
        """Attention and feed-forward of every layer, as in the paper."""
        return list(self.family.lora_layer_names)

    def enable_lora(self, rank: int, target_layer_names: list[str] | None = None, memory_only: bool = False) -> None:
        """Freezes the model but for LoRA on its projections, the target layers' biases, the FAM prompt and gates.

        What trains is float32, whatever the model's dtype, and cast where it is used: in bfloat16 most steps of a
        small learning rate would be rounded away.

        Args:
            rank: int >= 1.
            target_layer_names: list of str or None, names of layers; None is attention and feed-forward.
            memory_only: bool. LoRA acts on the prompt and FAM alone, and biases stay frozen: tokens go through the same
                layers as before, to the last bit, and differ only by what they read of FAM. It is never merged into
                kernels: presets and files keep it beside them.

        Raises:
            TypeError, ValueError: `rank` is no integer or below 1; a name that no layer has; LoRA is enabled already;
                `memory_only` without FAM.
        """
        rank, memory_only = check_integer("rank", rank, 1), check_flag("memory_only", memory_only)
        layers = self._flatten_layers(include_self=False)
        enabled = [layer.lora_rank for layer in layers if getattr(layer, "lora_enabled", False)]
        if enabled or self.lora_enabled:
            raise ValueError(
                "`enable_lora` can be called once. Received: enable_lora on a model whose LoRA is enabled with rank "
                f"{enabled[0] if enabled else self._lora_rank}."
            )
        if memory_only and self.fam_prompt is None:
            raise ValueError(
                "`memory_only` must be False without FAM. Received: memory_only=True for a model with fam_length=0."
            )
        names = target_layer_names
        names = self.default_lora_layer_names() if names is None else check_names("target_layer_names", names)
        known = {layer.name for layer in layers if hasattr(layer, "enable_lora") and hasattr(layer, "kernel")}
        if memory_only:
            known = {layer.name for each in self.transformer_layers for layer, *_ in each.projections().values()}
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ValueError(
                f"`target_layer_names` must name layers of this model, out of {sorted(known)}. Received: "
                f"{unknown or names}."
            )
        self._lora_target_layer_names, self.lora_memory_only = names, memory_only
        if memory_only:
            self._adapt_memory(rank, names)
        else:
            super().enable_lora(rank, names)
            for layer in layers:
                if layer.name in names and getattr(layer, "bias", None) is not None:
                    _widen(layer, "bias")
        if self.fam_prompt is not None:
            self.fam_prompt.trainable = True
            _widen(self.fam_prompt, "embeddings")
        for gate in self._gates():
            gate.trainable = True

    @property
    def lora_enabled(self) -> bool:
        """Whether `enable_lora` was called."""
        return self.lora_memory_only or bool(getattr(self, "_lora_enabled_layers", None))

    def save_lora_weights(self, filepath: str | os.PathLike) -> None:
        """Saves all that LoRA fine-tuning trains: LoRA kernels, biases, FAM prompt and gates, by variable path.

        Args:
            filepath: str or path-like ending in `.lora.safetensors`, or in `.lora.h5`. Replaced in one step.

        Raises:
            ValueError: LoRA is not enabled, another ending, or weights with NaN or infinity.
        """
        if not self.lora_enabled:
            raise ValueError("`save_lora_weights` needs LoRA: call `enable_lora(rank)` first. Received: no LoRA layer.")
        arrays = {variable.path: ops.convert_to_numpy(variable) for variable in self.trainable_variables}
        adapter_file.save(filepath, arrays, self._lora_rank, self._lora_target_layer_names)

    def load_lora_weights(self, filepath: str | os.PathLike) -> None:
        """Loads what `save_lora_weights` saved, enabling LoRA if it is not; nothing is changed if a check fails.

        Args:
            filepath: str or path-like.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no LoRA file, another rank, another `memory_only`, or variables that do not match this model's.
        """
        values, rank, names = adapter_file.load(filepath)
        memory_only = any("/memory_" in path and path.endswith("/lora_kernel_a") for path in values)
        own = (self._lora_rank, sorted(self._lora_target_layer_names), self.lora_memory_only)
        if self.lora_enabled and own != (rank, sorted(names), memory_only):
            raise ValueError(
                f"`filepath` must fit this model's LoRA of rank {self._lora_rank} on {self._lora_target_layer_names}"
                f"{_for_memory(self.lora_memory_only)}. Received: {str(filepath)!r} of rank {rank} on {names}"
                f"{_for_memory(memory_only)}."
            )
        self._check_stored(filepath, values, rank, names, memory_only)
        if not self.lora_enabled:
            self.enable_lora(rank, names, memory_only)
        for variable in self.trainable_variables:
            variable.assign(values[variable.path])

    def _adapt_memory(self, rank, names):
        self.trainable = True
        for layer in self._flatten_layers(include_self=False):
            layer.trainable = False
        for layer in self.transformer_layers:
            layer.adapt_memory(rank, names)
        self._lora_rank = rank

    def _gates(self):
        return [layer.memory_gate for layer in self.transformer_layers if layer.memory_gate is not None]

    def _check_stored(self, filepath, values, rank, names, memory_only):
        """Every stored variable must be one that this model trains, or will train once LoRA is enabled."""
        expected, unknown = {}, set(names)
        for name, shapes in self._adapted(rank, names, memory_only):
            expected.update(shapes)
            unknown.discard(name)
        if self.fam_prompt is not None:
            expected[self.fam_prompt.embeddings.path] = tuple(self.fam_prompt.embeddings.shape)
        expected.update({gate.path: () for gate in self._gates()})
        stored = {path: value.shape for path, value in values.items()}
        if stored != expected or unknown:
            differing = sorted(set(stored.items()) ^ set(expected.items()))[:4] or sorted(unknown)
            raise ValueError(
                f"`filepath` must hold the variables that LoRA trains in this model. Received: {str(filepath)!r}, "
                f"which differs in {differing}."
            )

    def _adapted(self, rank, names, memory_only):
        """What LoRA trains of each layer that has one of these names: `(name, {path: shape})`."""
        if memory_only:
            for layer in self.transformer_layers:
                for projection, read, made in layer.projections().values():
                    if projection.name in names:
                        path = f"{layer.name}/memory_{projection.name}"
                        yield projection.name, _kernels(path, (math.prod(read),), math.prod(made), rank)
            return
        for layer in self._flatten_layers(include_self=False):
            if layer.name in names and hasattr(layer, "enable_lora") and hasattr(layer, "kernel"):
                *read, made = layer.kernel.shape
                bias = {} if layer.bias is None else {f"{layer.path}/bias": tuple(layer.bias.shape)}
                yield layer.name, _kernels(layer.path, read, made, rank) | bias


def _kernels(path, read, made, rank):
    return {f"{path}/lora_kernel_a": (*read, rank), f"{path}/lora_kernel_b": (rank, made)}


def _for_memory(memory_only):
    return ", of FAM alone" if memory_only else ""


def _widen(layer, name):
    """Makes a weight of `layer` float32 if it is narrower."""
    narrow = getattr(layer, name)
    if keras.backend.standardize_dtype(narrow.dtype) not in ("bfloat16", "float16"):
        return
    kept = dict(name=narrow.name, shape=narrow.shape, trainable=narrow.trainable, regularizer=narrow.regularizer)
    layer._tracker.unlock()
    layer._untrack_variable(narrow)
    setattr(layer, name, layer.add_weight(**kept, dtype="float32"))
    layer._tracker.lock()
    getattr(layer, name).assign(ops.cast(narrow, "float32"))
