"""A save killed at any step leaves the old file or the new one; the next save removes what the killed one left.

The saves run in a process of their own, which forks for every step: torch on one thread can be forked.
"""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, numpy, token_ids, weights_by_path
from helpers.refusals import files

import keras_fam
from keras_fam.files import folders

USER_FILES = {"README.md": "mine", os.path.join("notes", "today.txt"): "mine too"}


def test_a_save_killed_at_every_step(tmp_path):
    if keras.config.backend() != "torch" or not hasattr(os, "fork"):
        pytest.skip("runs in a forked process on torch, whatever the backend of these tests: once is enough")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {kind: (int(old), int(new)) for kind, old, new in (line.split(",") for line in done.stdout.splitlines())}
    assert set(counts) == set(KINDS) and all(old >= 5 and new >= 1 for old, new in counts.values()), counts


# === In the process of its own ===


def lora_backbone(seed):
    backbone = fam_backbone("gpt2", stock={"num_layers": 1})
    backbone.enable_lora(2)
    for index, variable in enumerate(backbone.trainable_variables):
        variable.assign(np.random.default_rng([seed, index]).standard_normal(variable.shape))
    return backbone


def stream_state(seed):
    backbone = fam_backbone("gpt2", stock={"num_layers": 1})
    return backbone.stream(token_ids(1, 7, seed), backbone.initial_state(1))[1]


def language_model(seed):
    """Of another block size for each seed: the configuration and the weights lie in different files."""
    return keras_fam.FAMCausalLM(
        fam_backbone("gpt2", block_size=4 - 2 * seed, fam_length=2, seed=seed, stock={"num_layers": 1})
    )


def values(model):
    backbone = getattr(model, "backbone", model)
    return [np.array(backbone.block_size), *(value for _, value in sorted(weights_by_path(backbone).items()))]


def load_lora(path):
    backbone = fam_backbone("gpt2", stock={"num_layers": 1})
    backbone.load_lora_weights(path)
    return backbone


# How one is made, saved and loaded, and the arrays that tell an old one from a new one.
LORA = lora_backbone, lambda model, path: model.save_lora_weights(path), load_lora, values
LM_PRESET = (
    language_model,
    lambda model, path: model.save_to_preset(path),
    lambda path: keras_fam.FAMCausalLM.from_preset(path, preprocessor=None),
    values,
)
KINDS = {
    "state.npz": (
        stream_state,
        lambda state, path: keras_fam.save_state(path, state),
        keras_fam.load_state,
        lambda state: keras.tree.flatten(numpy(state)),
    ),
    "weights.lora.h5": LORA,
    "weights.lora.safetensors": LORA,
    "lm.keras": (language_model, lambda model, path: model.save(path), keras.saving.load_model, values),
    "lm": LM_PRESET,
    "lm without exchange": LM_PRESET,
}


def killed(call, step):
    """Whether `call()` was killed before its file-system operation number `step`, in a process of its own."""
    child = os.fork()
    if child == 0:
        taken, fsync = [0], os.fsync

        def take():
            taken[0] += 1
            if taken[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def synced(descriptor):
            take()
            fsync(descriptor)

        def watch(event, _):
            if event == "open" or event.startswith(("os.", "shutil.", "fcntl.", "ctypes.")) and event != "os.kill":
                take()

        os.fsync = synced
        sys.addaudithook(watch)
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def content(path):
    """What a load would read: the same content need not be loaded twice."""
    if os.path.isdir(path):
        return tuple(sorted(files(path).items()))
    return open(path, "rb").read() if os.path.exists(path) else None


def main(kind, where):
    make, save, load, arrays = KINDS[kind]
    old, new = make(0), make(1)
    expected = [[np.asarray(x) for x in arrays(each)] for each in (old, new)]
    if kind == "lm without exchange":
        folders.exchange = lambda first, second: False
    loaded = {}

    def once(key, load):
        if key is None or key not in loaded:
            loaded[key] = load()
        return loaded[key]

    counts, step, path = [0, 0], 0, os.path.join(where, kind)
    save(old, path)
    if os.path.isdir(path):
        os.mkdir(os.path.join(path, "notes"))
    user_files = USER_FILES if os.path.isdir(path) else {}
    for name, text in user_files.items():
        with open(os.path.join(path, name), "w") as file:
            file.write(text)
    going = True
    while going:
        step += 1
        going = killed(lambda: save(new, path), step)
        found = once(content(path), lambda: [np.asarray(x) for x in arrays(load(path))])
        same = [len(each) == len(found) and all(map(np.array_equal, each, found)) for each in expected]
        assert sum(same) == 1, f"step {step}: a mixture"
        counts[same.index(True)] += 1
        for name, text in user_files.items():
            with open(os.path.join(path, name)) as file:
                assert file.read() == text
        save(old, path)
        assert os.listdir(where) == [kind], os.listdir(where)
    assert same == [False, True]
    print(kind, *counts, sep=",")


if __name__ == "__main__":
    for number, each in enumerate(KINDS):
        os.mkdir(os.path.join(sys.argv[1], str(number)))
        main(each, os.path.join(sys.argv[1], str(number)))
