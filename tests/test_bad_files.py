"""Bad state files and LoRA files: refused by an error that names the argument, with nothing changed."""

import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, stock_backbone, weights_by_path
from helpers.refusals import refused, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fam
from keras_fam.families import _FAMILIES, backbone_classes

pytestmark = pytest.mark.shared_out

# === State files ===


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    """The bytes of a small state file."""
    backbone = fam_backbone("gpt2", block_size=1, memory_segments=0, fam_length=1, stock={"num_layers": 1})
    path = tmp_path_factory.mktemp("state") / "state.npz"
    keras_fam.save_state(path, backbone.initial_state(1))
    return path.read_bytes()


def loads(path, content):
    path.write_bytes(content)
    try:
        return keras_fam.load_state(path)
    finally:
        assert path.read_bytes() == content


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`.*nothing.npz"):
        keras_fam.load_state(tmp_path / "nothing.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"no state file", b"\x80\x04N."], ids=repr)
def test_files_that_hold_no_state(tmp_path, content):
    refused(lambda: loads(tmp_path / "state.npz", content), "path", "save_state", "state.npz", error=ValueError)


def test_other_numpy_files_and_folders(tmp_path):
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    np.savez(tmp_path / "header.npz", header=np.frombuffer(b'{"format": "other"}', "uint8"))
    np.savez(tmp_path / "short.npz", header=np.frombuffer(b'{"format": "keras_fam.StreamState/1"}', "uint8"))
    (tmp_path / "folder").mkdir()
    for path in sorted(tmp_path.iterdir()):
        refused(lambda path=path: keras_fam.load_state(path), "path", path.name, error=ValueError)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_truncated_state_files(share, tmp_path_factory, state_file):
    path = tmp_path_factory.getbasetemp() / "truncated.npz"
    content = state_file[: int(share * len(state_file))]
    refused(lambda: loads(path, content), "path", "truncated", error=ValueError)


@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_damaged_state_files(share, flip, tmp_path_factory, state_file):
    """One wrong byte: either it does not matter (a date, say), or it is a ValueError, and never another error."""
    content = bytearray(state_file)
    content[int(share * len(content))] ^= flip
    try:
        state = loads(tmp_path_factory.getbasetemp() / "damaged.npz", bytes(content))
    except ValueError as error:
        assert "`path`" in str(error)
    else:
        assert isinstance(state, keras_fam.StreamState)


# === LoRA ===


@pytest.mark.parametrize("rank", [0, -1, 2.0, "2", None])
@pytest.mark.usefixtures("unchanged")
def test_lora_rank(lm, rank):
    refused(lambda: lm.enable_lora(rank), "rank", rank)


@pytest.mark.parametrize("names", [[], ["query", "keys"], "query", ["layer_norm"], [3]], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_lora_targets(lm, names):
    refused(lambda: lm.enable_lora(2, names), "target_layer_names")


def test_enable_lora_twice():
    for backbone in (fam_backbone("gpt2"), fam_backbone("gemma")):
        backbone.enable_lora(2)
        before = snapshot(backbone)
        refused(lambda backbone=backbone: backbone.enable_lora(2), "enable_lora", "once", "rank 2")
        assert snapshot(backbone) == before


def test_enable_lora_on_a_backbone_that_came_with_it():
    stock = stock_backbone("gpt2")
    stock.enable_lora(2)
    backbone = keras_fam.FAMBackbone(stock, 4, 1, 3)
    before = snapshot(backbone)
    refused(lambda: backbone.enable_lora(2), "enable_lora")
    assert snapshot(backbone) == before


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory):
    backbone = fam_backbone("gpt2")
    backbone.enable_lora(2)
    path = tmp_path_factory.mktemp("lora") / "weights.lora.h5"
    backbone.save_lora_weights(path)
    return path


@pytest.mark.usefixtures("unchanged")
def test_saving_lora_weights(lm, tmp_path):
    refused(lambda: lm.save_lora_weights(tmp_path / "weights.lora.h5"), "enable_lora")
    backbone = fam_backbone("gpt2")
    backbone.enable_lora(2)
    refused(lambda: backbone.save_lora_weights(tmp_path / "weights.h5"), "filepath", ".lora.h5", "weights.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchanged")
def test_lora_files_that_are_none(lm, lora_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="`filepath`.*nothing.lora.h5"):
        lm.load_lora_weights(tmp_path / "nothing.lora.h5")
    whole = lora_file.read_bytes()
    for content in (b"", b"no LoRA file", whole[: len(whole) // 2], whole[:-1]):
        path = tmp_path / "bad.lora.h5"
        path.write_bytes(content)
        refused(lambda path=path: lm.load_lora_weights(path), "filepath", "bad.lora.h5", error=ValueError)
        assert path.read_bytes() == content
    lm.backbone.save_weights(tmp_path / "other.weights.h5")
    refused(lambda: lm.load_lora_weights(tmp_path / "other.weights.h5"), "filepath", "other", error=ValueError)


@pytest.mark.parametrize(
    "family, options",
    [("gpt2", {"fam_length": 2}), ("gpt2", {"stock": {"num_layers": 1}}), ("gpt2", {"fam_length": 0}), ("gemma", {})],
)
def test_lora_weights_of_another_model(lora_file, family, options):
    backbone = fam_backbone(family, **options)
    before = snapshot(backbone)
    refused(lambda: backbone.load_lora_weights(lora_file), "filepath", lora_file, error=ValueError)
    assert snapshot(backbone) == before and not backbone.lora_enabled


def test_lora_weights_of_another_rank_or_target(lora_file):
    for rank, names in ((3, None), (2, ["query"])):
        backbone = fam_backbone("gpt2")
        backbone.enable_lora(rank, names)
        before = weights_by_path(backbone)
        refused(lambda backbone=backbone: backbone.load_lora_weights(lora_file), "filepath", "rank 2", error=ValueError)
        assert all(np.array_equal(before[path], value) for path, value in weights_by_path(backbone).items())


def test_every_family_is_named():
    """The table of supported families that messages and this file go by."""
    names = {cls.__name__ for cls, _ in FAMILIES.values()}
    assert names == {each.__name__ for family in _FAMILIES for each in backbone_classes(family)}
    assert len(names) == 8
