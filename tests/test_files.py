"""Temporaries of the living and the dead, folders that are exchanged, and what is kept of an old folder."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, weights_by_path
from helpers.refusals import files, refused

import keras_fam
from keras_fam.files import atomic, folders


def write(path, text):
    with atomic.atomic_write(path) as file:
        file.write(text.encode())


def fill(**texts):
    """A `fill` of `replace_folder`."""

    def filled(folder):
        for name, text in texts.items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)

    return filled


# === Temporaries ===


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    for kind in (atomic.PART, atomic.NEW, atomic.OLD):
        with open(atomic.temporary_name(str(tmp_path / "state.npz"), kind), "w") as file:
            file.write("left")
        os.makedirs(os.path.join(atomic.temporary_name(str(tmp_path / "state.npz"), kind), "below"))
    other = atomic.temporary_name(str(tmp_path / "other-state.npz"))
    for path in (other, tmp_path / ".keras_fam-notes-part-state.npz", tmp_path / ".state.npz"):
        with open(path, "w") as file:
            file.write("another's")
    write(tmp_path / "state.npz", "new")
    names = {"state.npz", os.path.basename(other), ".keras_fam-notes-part-state.npz", ".state.npz"}
    assert set(os.listdir(tmp_path)) == names and (tmp_path / "state.npz").read_text() == "new"


def test_what_is_being_written_is_not_removed(tmp_path):
    """By a save of the same file in between: in the same process, then in another one."""
    with atomic.atomic_write(tmp_path / "state.npz") as file:
        file.write(b"slow")
        write(tmp_path / "state.npz", "fast")
        assert (tmp_path / "state.npz").read_text() == "fast"
        script = (
            f"import runpy\nrunpy.run_path({atomic.__file__!r})['remove_leftovers']({str(tmp_path / 'state.npz')!r})"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "state.npz").read_text() == "slow"
    assert os.listdir(tmp_path) == ["state.npz"]


def test_a_folder_that_is_being_written_is_not_removed(tmp_path):
    path = tmp_path / "preset"

    def slow(folder):
        fill(a="slow")(folder)
        folders.replace_folder(path, fill(a="fast", b="fast"))
        assert files(path) == {"a": b"fast", "b": b"fast"}

    folders.replace_folder(path, slow)
    assert files(path) == {"a": b"slow", "b": b"fast"} and os.listdir(tmp_path) == ["preset"]


# === Folders ===


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def system(request, monkeypatch):
    """A system that exchanges folders in one step, or not."""
    if not request.param:
        monkeypatch.setattr(folders, "exchange", lambda first, second: False)
    elif sys.platform not in ("linux", "darwin"):
        pytest.skip("this system cannot exchange folders")


def test_linux_and_macos_exchange_folders(tmp_path):
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("this system cannot exchange folders")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").write_text("of a")
    assert folders.exchange(str(tmp_path / "a"), str(tmp_path / "b"))
    assert files(tmp_path) == {os.path.join("b", "file"): b"of a"}
    with pytest.raises(FileNotFoundError):
        folders.exchange(str(tmp_path / "a"), str(tmp_path / "c"))


@pytest.mark.usefixtures("system")
def test_what_is_kept_of_an_old_folder(tmp_path):
    path = tmp_path / "preset"
    folders.replace_folder(path, fill(a="old", b="old", c="old"))
    (path / "notes" / "empty").mkdir(parents=True)
    (path / "notes" / "text").write_text("mine")
    (path / "link").symlink_to("notes")
    (path / "broken").symlink_to("nowhere")
    os.chmod(path, 0o750)
    inode = (path / "notes" / "text").stat().st_ino
    folders.replace_folder(path, fill(a="new"), ["c", "text"])
    assert sorted(os.listdir(path)) == ["a", "b", "broken", "link", "notes"]
    assert (path / "a").read_text() == "new" and (path / "b").read_text() == "old"
    assert (path / "link" / "text").read_text() == "mine" and os.readlink(path / "link") == "notes"
    assert os.readlink(path / "broken") == "nowhere" and (path / "notes" / "empty").is_dir()
    assert path.stat().st_mode & 0o777 == 0o750 and (path / "notes" / "text").stat().st_ino == inode
    assert os.listdir(tmp_path) == ["preset"]


@pytest.mark.usefixtures("system")
def test_a_folder_without_a_place_leaves_the_old_one(tmp_path, monkeypatch):
    """Renaming fails, each time at another call: the old folder or the new one is there, with nothing beside it."""
    path, rename = tmp_path / "preset", os.rename
    for step in range(1, 4):
        folders.replace_folder(path, fill(a="old"))
        calls = []

        def failing(source, target, step=step, calls=calls):
            calls.append(source)
            if len(calls) == step:
                raise OSError("No space left on device")
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing)
            try:
                folders.replace_folder(path, fill(a="new"))
            except OSError as error:
                assert "No space" in str(error) and (path / "a").read_text() in ("old", "new")
            else:
                assert (path / "a").read_text() == "new"
        folders.replace_folder(path, fill(a="newer"))
        assert files(tmp_path) == {os.path.join("preset", "a"): b"newer"}


def test_the_folder_that_a_link_points_to_is_replaced(tmp_path):
    folders.replace_folder(tmp_path / "preset", fill(a="old"))
    (tmp_path / "latest").symlink_to("preset")
    folders.replace_folder(tmp_path / "latest", fill(a="new"))
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "preset" / "a").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["latest", "preset"]


def test_a_reader_starts_again_when_the_folder_was_replaced(tmp_path):
    path, attempts = tmp_path / "preset", []
    folders.replace_folder(path, fill(a="old", b="old"))

    def load():
        first = (path / "a").read_text()
        attempts.append(first)
        if len(attempts) == 1:
            folders.replace_folder(path, fill(a="new", b="new"))
        if len(attempts) == 2:
            folders.replace_folder(path, fill(a="newer", b="newer"))
            raise ValueError("weights of other shapes")
        return first, (path / "b").read_text()

    assert folders.read_folder(path, load) == ("newer", "newer") and attempts == ["old", "new", "newer"]
    with pytest.raises(ValueError, match="its own"):
        folders.read_folder(path, lambda: int("its own"))
    with pytest.raises(RuntimeError, match="replaced while"):
        folders.read_folder(path, lambda: folders.replace_folder(path, fill(a="x")))


# === Presets ===


def preset_backbone(block_size=4):
    return fam_backbone("gpt2", block_size=block_size, fam_length=2, seed=block_size, stock={"num_layers": 1})


def same(loaded, saved):
    expected, found = weights_by_path(saved), weights_by_path(loaded)
    return loaded.block_size == saved.block_size and all(
        np.array_equal(found[path], expected[path]) for path in expected
    )


def test_weights_in_shards_beside_a_single_file(tmp_path):
    """KerasHub reads a single file first: an old one beside new shards would be loaded."""
    single, sharded = preset_backbone(4), preset_backbone(2)
    single.save_to_preset(tmp_path / "preset")
    (tmp_path / "preset" / "model_card.weights.h5").write_text("mine")
    sharded.save_to_preset(tmp_path / "preset", max_shard_size=1e-5)
    assert not (tmp_path / "preset" / "model.weights.h5").exists()
    assert same(keras_fam.FAMBackbone.from_preset(str(tmp_path / "preset")), sharded)
    assert len(list((tmp_path / "preset").glob("model_0*.weights.h5"))) > 1
    single.save_to_preset(tmp_path / "preset")
    assert same(keras_fam.FAMBackbone.from_preset(str(tmp_path / "preset")), single)
    names = ["config.json", "metadata.json", "model.weights.h5", "model_card.weights.h5"]
    assert sorted(os.listdir(tmp_path / "preset")) == names


def test_a_backbone_over_a_language_model(tmp_path):
    """The task's file holds a configuration of the backbone too: the old one, with the new weights, was loaded."""
    old, new = keras_fam.FAMCausalLM(preset_backbone(4)), preset_backbone(2)
    old.save_to_preset(tmp_path / "preset")
    new.save_to_preset(tmp_path / "preset")
    assert same(keras_fam.FAMCausalLM.from_preset(str(tmp_path / "preset"), preprocessor=None).backbone, new)


def test_a_preset_that_was_moved_away_is_found(tmp_path):
    """As a process killed between two renamings leaves it, where folders cannot be exchanged."""
    old, new, path = preset_backbone(4), preset_backbone(2), str(tmp_path / "preset")
    for model, kind in ((old, atomic.OLD), (new, atomic.NEW)):
        model.save_to_preset(path)
        os.rename(path, atomic.temporary_name(path, kind))
    assert same(keras_fam.FAMBackbone.from_preset(path), new)
    old.save_to_preset(path)
    assert os.listdir(tmp_path) == ["preset"]


def test_a_file_where_a_preset_should_go(tmp_path):
    (tmp_path / "preset").write_text("mine")
    for model in (preset_backbone(), keras_fam.FAMCausalLM(preset_backbone())):
        refused(lambda model=model: model.save_to_preset(tmp_path / "preset"), "preset_dir", "preset", error=ValueError)
    assert files(tmp_path) == {"preset": b"mine"}


def test_a_model_file_replaces_what_a_killed_save_left(tmp_path):
    lm = keras_fam.FAMCausalLM(preset_backbone())
    with open(atomic.temporary_name(str(tmp_path / "lm.keras")), "w") as file:
        file.write("half")
    lm.save(tmp_path / "lm.keras")
    assert os.listdir(tmp_path) == ["lm.keras"]
    assert same(keras.saving.load_model(tmp_path / "lm.keras").backbone, lm.backbone)
