"""Damaged files of states and adapters: refused in words, in little time and memory, or loaded with the same values."""

import collections
import io
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from helpers.models import fam_backbone, numpy, randomize
from helpers.mutations import bomb, mutate, npy_of_shape, npz, refused_as, state_npz, watched
from helpers.refusals import refused

import keras_fam

pytestmark = pytest.mark.shared_out

OPTIONS = dict(block_size=2, memory_segments=0, fam_length=1, stock={"num_layers": 1})
KINDS = ["state.npz", "state_v1.npz", "weights.lora.safetensors", "weights.lora.h5", "weights_v1.lora.h5"]


def lora_backbone():
    backbone = fam_backbone("gpt2", **OPTIONS)
    backbone.enable_lora(2)
    randomize(backbone, seed=1)
    return backbone


@pytest.fixture(scope="module")
def backbone():
    """A model whose LoRA has other values than the files hold."""
    backbone = fam_backbone("gpt2", **OPTIONS)
    backbone.enable_lora(2)
    return backbone


@pytest.fixture(scope="module")
def state_arrays():
    """The arrays of a state of one layer, by name."""
    state = fam_backbone("gpt2", **OPTIONS).initial_state(2)
    layer = {f"layers/0/{field}": numpy(array) for field, array in state.layers[0]._asdict().items()}
    return layer | {field: numpy(array) for field, array in list(state._asdict().items())[1:]}


@pytest.fixture(scope="module")
def lora_arrays():
    return {variable.path: numpy(variable) for variable in lora_backbone().trainable_variables}


@pytest.fixture(scope="module")
def whole(state_arrays, lora_arrays, tmp_path_factory):
    """The content of an undamaged file of each kind."""
    folder, trained = tmp_path_factory.mktemp("whole"), lora_backbone()
    for name in ("weights.lora.safetensors", "weights.lora.h5"):
        trained.save_lora_weights(folder / name)
    with h5py.File(folder / "weights_v1.lora.h5", "w") as store:
        store.attrs.update(rank=2, target_layer_names=list(trained._lora_target_layer_names))
        for path, array in lora_arrays.items():
            store[path] = array
    (folder / "state_v1.npz").write_bytes(state_npz(state_arrays, version=1))
    backbone = fam_backbone("gpt2", **OPTIONS)
    keras_fam.save_state(folder / "state.npz", backbone.stream([[1, 2, 3]], backbone.initial_state(1))[1])
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


# === Random damage ===


def outcome(path, content, expected, backbone):
    """ "refused", "same" or "other": what became of one damaged file."""
    path.write_bytes(content)
    state = path.suffix == ".npz"
    try:
        with watched():
            loaded = keras.tree.flatten(keras_fam.load_state(path)) if state else backbone.load_lora_weights(path)
    except ValueError as error:
        assert ("`path`" if state else "`filepath`") in str(error) and path.name in str(error)
        return "refused"
    values = [numpy(x) for x in (loaded if state else backbone.trainable_variables)]
    assert all(np.isfinite(x.astype("float32")).all() for x in values)
    return "same" if all(map(np.array_equal, values, expected)) else "other"


def outcomes(kind, content, seeds, backbone, folder):
    path = folder / kind
    path.write_bytes(content)
    if path.suffix == ".npz":
        expected = [numpy(x) for x in keras.tree.flatten(keras_fam.load_state(path))]
    else:
        before = [numpy(x) for x in backbone.trainable_variables]
        backbone.load_lora_weights(path)
        expected = [numpy(x) for x in backbone.trainable_variables]
    counts = collections.Counter()
    for seed in seeds:
        if path.suffix != ".npz":
            for variable, value in zip(backbone.trainable_variables, before):
                variable.assign(value)
        found = outcome(path, mutate(content, seed), expected, backbone)
        if found == "refused" and path.suffix != ".npz":
            assert all(map(np.array_equal, [numpy(x) for x in backbone.trainable_variables], before))
        counts[found] += 1
    # Format 1 of HDF5 has neither a checksum nor one of its own: there alone, damage within the values is not seen.
    assert kind == "weights_v1.lora.h5" or not counts["other"], counts
    assert counts["refused"] > len(seeds) // 4
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_randomly_damaged_files(kind, whole, backbone, tmp_path):
    outcomes(kind, whole[kind], range(150), backbone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_randomly_damaged_files(kind, whole, backbone, tmp_path, capsys):
    counts = outcomes(kind, whole[kind], range(1000, 11_000), backbone, tmp_path)
    with capsys.disabled():
        print(f"\n{kind}: {dict(counts)}")


# === State files made with intent ===

CHANGES = {  # What is changed in the arrays of a state.
    "NaN": {"layers/0/fam": lambda x: x * np.nan},
    "infinity": {"layers/0/key": lambda x: x + np.inf},
    "infinity in bfloat16": {"layers/0/key": lambda x: (x + np.inf).astype(ml_dtypes.bfloat16)},
    "complex": {"layers/0/fam": lambda x: x.astype("complex64")},
    "integers": {"layers/0/fam": lambda x: x.astype("int32")},
    "objects": {"layers/0/fam": lambda x: x.astype(object)},
    "a position below 0": {"position": lambda x: x - 1},
    "positions that differ": {"position": lambda x: np.arange(2, dtype="int32")},
    "a long position": {"position": lambda x: x.astype("int64")},
    "numbers for `valid`": {"valid": lambda x: x.astype("float32")},
    "another row": {"layers/0/value": lambda x: np.concatenate([x, x])},
    "one row less": {"started": lambda x: x[:1]},
    "another head": {"layers/0/fam_key": lambda x: np.concatenate([x, x], axis=2)},
    "another width": {"layers/0/key": lambda x: x[..., :1]},
    "another rank": {"layers/0/key": lambda x: x[0]},
    "a ring beyond `valid`": {"valid": lambda x: x[:, :1]},
    "a count below 0": {"tokens_read": lambda x: x - 1},
    "a count beyond its base": {"tokens_read": lambda x: x + 2**30},
    "a count of three numbers": {"tokens_read": lambda x: np.concatenate([x, x[:, :1]], axis=1)},
    "a block size that does not divide the ring": {"block_size": lambda x: x + 1},
    "block sizes that differ": {"block_size": lambda x: np.arange(1, 3, dtype="int32")},
    "no block": {"block_size": lambda x: x * 0},
    "a FAM that is longer": {"layers/0/fam": lambda x: np.concatenate([x, x], axis=1)},
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_states_that_cannot_be(change, version, state_arrays, tmp_path):
    """With a right checksum: whoever damages a file on purpose can compute one."""
    arrays = {name: CHANGES[change].get(name, lambda x: x)(array) for name, array in state_arrays.items()}
    whole, path = state_npz(state_arrays, version=version), tmp_path / "state.npz"
    path.write_bytes(whole)
    keras_fam.load_state(path)
    path.write_bytes(state_npz(arrays, version=version))
    refused_as(change, lambda: keras_fam.load_state(path), "path", "state.npz")


def state_contents(arrays):
    """Files that are wrong as files."""
    whole = state_npz(arrays)
    more = {**arrays, "layers/1/fam": arrays["layers/0/fam"]}
    less = {name: array for name, array in arrays.items() if name != "valid"}
    yield "a member too many", state_npz(more)
    yield "a member too few", state_npz(less)
    for name in ("tokens_read", "block_size"):
        yield f"no {name}", state_npz({key: array for key, array in arrays.items() if key != name})
    for layers in (10**9, 0, -1, 1.0, True, "1", None, 2):
        yield f"{layers!r} layers", state_npz(arrays, layers=layers)
    for key in ("dtypes", "shapes"):
        for value in (
            None,
            [],
            {},
            3,
            dict.fromkeys(arrays),
            dict.fromkeys(arrays, "float32"),
            dict.fromkeys(arrays, []),
        ):
            yield f"{key} {value!r:.40}", state_npz(arrays, **{key: value})
    for value in (None, "", 0, "0" * 64):
        yield f"checksum {value!r}", state_npz(arrays, sha256=value)
    yield "another format", state_npz(arrays, format="keras_fam.StreamState/3")
    yield "format 1 with a checksum", state_npz(arrays, format="keras_fam.StreamState/1")
    for header in ([], 3, "text", None, {"format": []}, {}):
        yield f"header {header!r}", npz(header, arrays)
    yield "a deep header", npz({}, {**arrays, "header": np.frombuffer(b"[" * 100_000, np.uint8)})
    for shape in ("(1000000000000,)", "(2, 4611686018427387904, 8)", "(-1,)", "(0x7,)", "(" * 60, "(1,) * 3"):
        yield f"shape {shape[:20]}", npz_with(arrays, npy_of_shape(shape))
    yield "no array", npz_with(arrays, b"text")
    yield "a pickle", npz_with(arrays, npy_of_shape("(1,)", "|O"))
    yield "a bomb", bomb(whole, "layers/0/fam.npy")
    yield "something behind the end", whole + b"text"
    yield "a long directory", whole[:-10] + (2**31).to_bytes(4, "little") + whole[-6:]
    yield "twice the same member", twice(whole)


def npz_with(arrays, content):
    """A state file, one of whose members is `content`."""
    dtypes = {name: array.dtype.name for name, array in arrays.items()}
    header = {"format": "keras_fam.StreamState/1", "layers": 1, "dtypes": dtypes}
    return npz(header, {**arrays, "layers/0/fam": content})


def twice(content):
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("valid.npy", archive.read("valid.npy"))
    return file.getvalue()


def test_state_files_made_with_intent(state_arrays, tmp_path):
    for number, (what, content) in enumerate(state_contents(state_arrays)):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        refused_as(what, lambda path=path: keras_fam.load_state(path), "path", path.name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_could_not_be_loaded_is_not_saved(value, tmp_path):
    state = fam_backbone("gpt2", **OPTIONS).initial_state(1)
    layer = state.layers[0]._replace(fam=state.layers[0].fam * value)
    refused(
        lambda: keras_fam.save_state(tmp_path / "state.npz", state._replace(layers=(layer,))), "state", "layers/0/fam"
    )
    assert list(tmp_path.iterdir()) == []
