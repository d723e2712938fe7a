"""Adapter files made with intent: refused in words, within bounds, with the model as it was and LoRA not enabled."""

import json

import h5py
import numpy as np
import pytest
from helpers.models import fam_backbone, numpy, randomize, weights_by_path
from helpers.mutations import adapter_safetensors, refused_as, safetensors_file
from helpers.refusals import refused, snapshot

from keras_fam.files import adapter_file

pytestmark = pytest.mark.shared_out

OPTIONS = dict(block_size=2, memory_segments=0, fam_length=1, stock={"num_layers": 1})
KERNEL = "transformer_layer_0/self_attention/query/lora_kernel_a"


@pytest.fixture(scope="module")
def fresh():
    """A model that LoRA was never enabled in."""
    return fam_backbone("gpt2", **OPTIONS)


@pytest.fixture(scope="module")
def arrays():
    backbone = fam_backbone("gpt2", **OPTIONS)
    backbone.enable_lora(2, ["query"])
    randomize(backbone, seed=1)
    return {variable.path: numpy(variable) for variable in backbone.trainable_variables}


def all_refused(contents, ending, fresh, folder):
    before = snapshot(fresh)
    for number, (what, content) in enumerate(contents):
        path = folder / f"{number}{ending}"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        refused_as(what, lambda path=path: fresh.load_lora_weights(path), "filepath", path.name)
        assert not fresh.lora_enabled and snapshot(fresh) == before, what


def changed(arrays, **changes):
    """Arrays of which the query's first kernel is changed."""
    return {name: changes["kernel"](array) if name == KERNEL else array for name, array in arrays.items()}


def wrong_arrays(arrays):
    """What no adapter of this model can hold, in either format."""
    second = KERNEL.replace("kernel_a", "kernel_b")
    yield "NaN", changed(arrays, kernel=lambda x: x * np.nan)
    yield "infinity", changed(arrays, kernel=lambda x: x + np.inf)
    yield "integers", changed(arrays, kernel=lambda x: x.astype("int32"))
    yield "another rank in one kernel", changed(arrays, kernel=lambda x: x[..., :1])
    yield "another shape", changed(arrays, kernel=lambda x: x[:1])
    yield "a scalar", changed(arrays, kernel=lambda x: np.array(1.0, "float32"))
    yield "one kernel without the other", {name: array for name, array in arrays.items() if name != second}
    yield "no kernels", {name: array for name, array in arrays.items() if "lora_kernel" not in name}
    yield "nothing", {}
    yield "an array too many", {**arrays, "token_embedding/embeddings": np.ones((50, 16), "float32")}
    yield (
        "a layer that is not there",
        {
            **arrays,
            "transformer_layer_7/query/lora_kernel_a": np.ones((16, 2), "float32"),
            "transformer_layer_7/query/lora_kernel_b": np.ones((2, 16), "float32"),
        },
    )


RANKS = [10**9, 2**63 - 1, 0, -2, 3]
NAMES = [[], ["query", "query"], ["query", "nothing"], ["nothing"], ["query", ""], ["layer_norm"], ["token_embedding"]]


def safetensors_contents(arrays):
    whole = adapter_safetensors(arrays)
    for what, wrong in wrong_arrays(arrays):
        yield what, adapter_safetensors(wrong)
    for rank in (*RANKS, True, 2.0, "2", None, [2], 1e300):
        yield f"rank {rank!r}", adapter_safetensors(arrays, rank=rank)
    for names in (*NAMES, "query", None, 5, {"query": 1}, [["query"]], [5]):
        yield f"names {names!r}", adapter_safetensors(arrays, names=names)
    for key in ("format", "rank", "target_layer_names", "sha256"):
        for value in (None, "", "text", "[" * 100_000, "9" * 5000):
            yield f"{key} {value!r:.20}", adapter_safetensors(arrays, **{key: value})
    yield "another attribute", adapter_safetensors(arrays, more="text")
    yield "without metadata", safetensors_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    yield "a long header", (2**62).to_bytes(8, "little") + whole[8:]
    yield "a header as long as the file", (len(whole) - 8).to_bytes(8, "little") + whole[8:]
    yield "a deep header", safetensors_file(b"[" * 1_000_000)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    for shape in ([2**40], [2**62, 4], [-1], [2**64], [1.5], "1", []):
        wrong = {**header, KERNEL: {**header[KERNEL], "shape": shape}}
        yield f"shape {shape}", safetensors_file(wrong, whole[8 + int.from_bytes(whole[:8], "little") :])
    for dtype in ("C64", "I64", "BOOL", "F8_E4M3", "F4", "text", None):
        wrong = {**header, KERNEL: {**header[KERNEL], "dtype": dtype}}
        yield f"dtype {dtype}", safetensors_file(wrong, whole[8 + int.from_bytes(whole[:8], "little") :])
    for offsets in ([0, 2**40], [2**40, 0], [0, 0], [-4, 0], [0], None):
        wrong = {**header, KERNEL: {**header[KERNEL], "data_offsets": offsets}}
        yield f"offsets {offsets}", safetensors_file(wrong, whole[8 + int.from_bytes(whole[:8], "little") :])


def test_safetensors_files_made_with_intent(arrays, fresh, tmp_path):
    all_refused(safetensors_contents(arrays), ".lora.safetensors", fresh, tmp_path)
    (tmp_path / "whole.lora.safetensors").write_bytes(adapter_safetensors(arrays))
    adapter_file.load(tmp_path / "whole.lora.safetensors")


def hdf5(arrays, change=None, rank=2, names=("query",), **attributes):
    """A writer of a file of format 1, which needs no checksum."""

    def write(path):
        with h5py.File(path, "w") as store:
            store.attrs.update({"rank": rank, "target_layer_names": names, **attributes})
            for name, array in arrays.items():
                store[name] = array
            if change is not None:
                change(store)

    return write


def replaced(**options):
    """A change of an HDF5 file: another dataset in place of the query's first kernel."""

    def change(store):
        values = store[KERNEL][()]
        del store[KERNEL]
        store.create_dataset(KERNEL, **{"data": values, **options})

    return change


def linked(link):
    def change(store):
        del store[KERNEL]
        store[KERNEL] = link(store)

    return change


def virtual(store):
    layout = h5py.VirtualLayout(store[KERNEL].shape, "f4")
    layout[...] = h5py.VirtualSource(".", "elsewhere", store[KERNEL].shape)
    store.move(KERNEL, "elsewhere")
    store.create_virtual_dataset(KERNEL, layout)


def doubled(store):
    """Groups that each hold the next one twice."""
    group = store
    for _ in range(25):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def hdf5_contents(arrays, folder):
    for what, wrong in wrong_arrays(arrays):
        yield what, hdf5(wrong)
    for rank in (*RANKS, True, 2.5, "2", [2], np.float32(2), h5py.Empty("i8")):
        yield f"rank {rank!r}", hdf5(arrays, rank=rank)
    for names in (*NAMES[1:], "nothing", 5, [5], [1.5], np.zeros((0,), "S5"), np.array([b"query"]), h5py.Empty("f4")):
        yield f"names {names!r}", hdf5(arrays, names=names)
    yield "another attribute", hdf5(arrays, more=1)
    yield "format 2 without a checksum", hdf5(arrays, format="keras_fam.adapter/2")
    yield "format 2 with another checksum", hdf5(arrays, format="keras_fam.adapter/2", sha256="0" * 64)
    yield "format 3", hdf5(arrays, format="keras_fam.adapter/3", sha256="0" * 64)
    yield "a checksum that is a number", hdf5(arrays, format="keras_fam.adapter/2", sha256=5)
    for dtype in ("float64", "float16", ">f4", "complex64", "bool", "S4"):
        yield dtype, hdf5(arrays, replaced(dtype=dtype, data=np.zeros((16, 4, 2), dtype)))
    yield "compressed", hdf5(arrays, replaced(compression="gzip"))
    yield "in chunks", hdf5(arrays, replaced(chunks=(1, 1, 1)))
    yield "a bomb", hdf5(arrays, replaced(data=None, shape=(2**29,), dtype="f4", compression="gzip", fillvalue=0))
    yield "never written", hdf5(arrays, replaced(data=None, shape=(2**40,), dtype="f4"))
    yield "an empty one", hdf5(arrays, replaced(data=h5py.Empty("f4")))
    yield "elsewhere", hdf5(arrays, replaced(data=None, shape=(4,), dtype="f4", external=[(folder / "more", 0, 16)]))
    yield "virtual", hdf5(arrays, virtual)
    yield "a soft link", hdf5(arrays, linked(lambda store: h5py.SoftLink("/" + KERNEL.replace("kernel_a", "kernel_b"))))
    yield "an external link", hdf5(arrays, linked(lambda store: h5py.ExternalLink("other.h5", "/a")))
    yield "a link to the root", hdf5(arrays, linked(lambda store: store["/"]))
    yield "a link to a group", hdf5(arrays, linked(lambda store: store["transformer_layer_0"]))
    yield "a type", hdf5(arrays, linked(lambda store: np.dtype("f4")))
    yield "deep groups", hdf5(arrays, lambda store: store.create_group("a/" * 100))
    yield "an attribute of an array", hdf5(arrays, lambda store: store[KERNEL].attrs.update(a=1))
    yield "two to the power of 25 paths", hdf5(arrays, doubled)


def test_hdf5_files_made_with_intent(arrays, fresh, tmp_path):
    all_refused(hdf5_contents(arrays, tmp_path), ".lora.h5", fresh, tmp_path)
    hdf5(arrays)(tmp_path / "whole.lora.h5")
    adapter_file.load(tmp_path / "whole.lora.h5")


@pytest.mark.parametrize("libver", ["v108", "latest"])
def test_hdf5_of_another_version(libver, arrays, fresh, tmp_path):
    with h5py.File(tmp_path / "new.lora.h5", "w", libver=libver) as store:
        store.attrs.update(rank=2, target_layer_names=["query"])
    refused(lambda: fresh.load_lora_weights(tmp_path / "new.lora.h5"), "filepath", "new", error=ValueError)


@pytest.mark.parametrize("ending", [".lora.h5", ".lora.safetensors", ".safetensors"])
def test_both_formats_hold_the_same(ending, arrays, tmp_path):
    """Many layers too, for which HDF5 needs a tree, and a scalar."""
    many = {f"layer_{index}/query/{name[-13:]}": array for name, array in arrays.items() for index in range(300)}
    many = {name: array for name, array in many.items() if "lora_kernel" in name} | {"gate": np.array(-6.0, "float32")}
    for each in (arrays, many):
        adapter_file.save(tmp_path / f"weights{ending}", each, 2, ["query"])
        loaded, rank, names = adapter_file.load(tmp_path / f"weights{ending}")
        assert (rank, names) == (2, ["query"]) and set(loaded) == set(each)
        assert all(np.array_equal(loaded[name], array) for name, array in each.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("ending", [".lora.h5", ".lora.safetensors"])
def test_every_dtype_comes_back(ending, dtype, tmp_path):
    backbone, restored = (fam_backbone("gpt2", stock={"dtype": dtype}) for _ in range(2))
    backbone.enable_lora(2)
    randomize(backbone, seed=4)
    backbone.save_lora_weights(tmp_path / f"weights{ending}")
    restored.load_lora_weights(tmp_path / f"weights{ending}")
    expected, found = weights_by_path(backbone), weights_by_path(restored)
    assert all(np.array_equal(found[v.path], expected[v.path]) for v in restored.trainable_variables)


@pytest.mark.parametrize("ending", [".lora.h5", ".lora.safetensors"])
def test_weights_that_could_not_be_loaded_are_not_saved(ending, tmp_path):
    backbone = fam_backbone("gpt2", **OPTIONS)
    backbone.enable_lora(2)
    backbone.trainable_variables[0].assign(numpy(backbone.trainable_variables[0]) * np.nan)
    refused(lambda: backbone.save_lora_weights(tmp_path / f"weights{ending}"), "NaN", error=ValueError)
    assert list(tmp_path.iterdir()) == []
