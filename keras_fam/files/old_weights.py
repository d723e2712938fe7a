"""Weights files of version 0.1, whose layers had other names, under the names of today."""

import contextlib
import os
import re
import shutil
import tempfile

import h5py

_OLD_LAYER = re.compile(r"fam_decoder_block(_\d+)?")
_PARTS = {
    "attention/query_dense": "query",
    "attention/key_dense": "key",
    "attention/value_dense": "value",
    "attention/output_dense": "output",
    "ffw_linear": "down",
}
_NORMS = ("pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm")


@contextlib.contextmanager
def with_names_of_today(path):
    """A weights file to read: `path` itself, or, of version 0.1, a copy whose groups have the names of today.

    Args:
        path: str or path-like, a `.weights.h5` file of a `FAMBackbone` or `FAMCausalLM`.
    """
    groups = _old_groups(path)
    if not groups:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            for group in groups:
                _rename(file[group])
                file.move(group, group.replace("fam_decoder_block", "fam_decoder_layer"))
        yield copy


def _old_groups(path):
    """Paths of the groups of converted layers in a file of version 0.1; none in any other file."""
    if not str(path).endswith(".weights.h5") or not os.path.isfile(path) or not h5py.is_hdf5(path):
        return []
    with h5py.File(path, "r") as file:
        folders = [folder for folder in ("layers", "layers/fam_backbone/layers", "backbone/layers") if folder in file]
        return [f"{folder}/{name}" for folder in folders for name in file[folder] if _OLD_LAYER.fullmatch(name)]


def _rename(layer):
    gated = "ffw_gating_2" in layer
    names = {**_PARTS, "ffw_gating": "gate" if gated else "up", "ffw_gating_2": "up", **{name: name for name in _NORMS}}
    for old, new in names.items():
        if old in layer:
            layer.move(old, f"part_{new}")
    if "vars" in layer:  # What a training run left; it went by a number and not by a name.
        del layer["vars"]
