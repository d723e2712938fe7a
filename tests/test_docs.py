"""The pages of docs/ hold: their Python runs, what they quote is in the code, and what they name is there."""

import importlib
import inspect
import re
import socket
from pathlib import Path

import keras
import keras_hub
import pytest
from helpers.presets import gpt2_preset

import keras_fam

ROOT = Path(__file__).resolve().parent.parent
BACKEND = keras.config.backend()
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"(?:^<!-- (run|on|quote): (.+?) -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HERE = pytest.mark.skipif(BACKEND != "torch", reason="the same on all backends: tried on torch, which compiles nothing")
# In place of what takes long: fewer steps and tokens, and presets that are there.
SHORTER = [
    (r"max_new_tokens=\d+", "max_new_tokens=4"),
    (r"\bk=40\b", "k=5"),
    (r"range\(100\)", "range(1)"),
    (r"\b51\)", "4)"),
    (r"block_size=(256|64)\b", "block_size=32"),
    (r"memory_segments=2", "memory_segments=1"),
    (r"fam_length=(32|8)\b", "fam_length=4"),
    (r"sequence_length=512", "sequence_length=64"),
    (r"sequence_length = 1024", "sequence_length = 64"),
    (r"max_length=64", "max_length=8"),
    (r"epochs=2", "epochs=1"),
    (r"\b513\b", "65"),
]


def blocks(page):
    """`(kind, argument, code)` of every block of Python: kind is None, or "run", "on" or "quote" as a comment says."""
    return [match.groups() for match in BLOCK.finditer(page.read_text())]


def pages_that(wanted):
    return [pytest.param(page, id=page.stem) for page in PAGES if any(wanted(*block[:2]) for block in blocks(page))]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return gpt2_preset(tmp_path_factory.mktemp("presets") / "gpt2", max_sequence_length=64, num_layers=1)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the texts that the pages read."""
    monkeypatch.chdir(tmp_path)
    text = "the quick brown fox jumps over the lazy dog "
    Path("book.txt").write_text(text * 3)
    Path("books").mkdir()
    for index in range(2):
        Path(f"books/{index}.txt").write_text(text * (2 + index))


def shortened(code, preset):
    for name in ("gpt2_base_en", "gemma_2b_en", "PRESET_FOLDER", "presets/smollm2_135m"):
        code = code.replace(f'"{name}"', repr(preset))
    for long, short in SHORTER:
        code = re.sub(long, short, code)
    return code


@HERE
@pytest.mark.parametrize("page", pages_that(lambda kind, _: kind is None))
def test_a_page_s_program(page, place, preset, monkeypatch):
    """Its blocks one after the other, as a reader would run them; only the network is not there."""
    import kagglehub

    monkeypatch.setattr(kagglehub, "model_upload", lambda handle, folder: None)
    names = {"MyFamily": keras_fam.families.llama.LlamaFamily, "my_stock_backbone": gpt2()}
    for kind, _, code in blocks(page):
        if kind is None:
            exec(compile(shortened(code, preset), page.name, "exec"), names)


@pytest.mark.parametrize("page", pages_that(lambda kind, backend: kind == "on" and backend == BACKEND))
def test_a_backend_s_program(page, place, preset, request, monkeypatch):
    names = {"keras": keras, "keras_fam": keras_fam, "texts": ["the quick brown fox"] * 8}
    if BACKEND == "torch":
        import torch

        names |= {"torch": torch, "batches": [(torch.ones((2, 8), dtype=torch.int32), torch.ones((2, 8)).long())]}
        alone_in_a_group(monkeypatch)
        request.addfinalizer(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())
    if BACKEND == "tensorflow":
        import tensorflow

        names["tf"] = tensorflow
    for kind, backend, code in blocks(page):
        if kind == "on" and backend == BACKEND:
            exec(compile(shortened(code, preset), page.name, "exec"), names)


def alone_in_a_group(monkeypatch):
    """What torchrun tells a process: there is one, and this is it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))


def gpt2():
    return keras_hub.models.GPT2Backbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=512
    )


@HERE
def test_quotes():
    quotes = [(page, *block[1:]) for page in PAGES for block in blocks(page) if block[0] == "quote"]
    assert len(quotes) >= 4
    for page, path, code in quotes:
        assert code in (ROOT / path).read_text(), f"{page.name} quotes what is not in {path}:\n{code}"


def public_names():
    modules = (keras_fam, keras_fam.data, keras_fam.evaluation)
    return [f"{module.__name__}.{name}" for module in modules for name in module.__all__]


@HERE
def test_every_public_name_is_on_the_reference_page():
    page = (ROOT / "docs" / "reference.md").read_text()
    named = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(named) == len(set(named))
    documented = {*named, *re.findall(r"`(keras_fam\.(?:__version__|data|evaluation))`", page)}
    assert documented == set(public_names())
    for name in named:
        assert inspect.getdoc(resolve(name)), name
    for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)+)", page, re.MULTILINE):
        members = re.search(r"members: \[(.*?)\]", options, re.DOTALL)
        for member in re.split(r",\s*", members.group(1)) if members else ():
            assert inspect.getdoc(getattr(resolve(name), member)), f"{name}.{member}"


def resolve(dotted):
    """The object of a dotted name, its module imported."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:  # A class or a function: its module's name is shorter.
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@HERE
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_what_a_page_names_is_there(page):
    """Dotted names of the package; paths; the tests, scripts and options of commands."""
    text = page.read_text()
    for dotted in re.findall(r"`(keras_fam(?:\.\w+)+)`", text):
        resolve(dotted)
    for path in re.findall(r"`((?:keras_fam|tests|examples|benchmarks|docs|\.ci)/[\w/.]+)`", text):
        assert (ROOT / path.rstrip("/")).exists(), path
    for path, name in re.findall(r"`(test_\w+\.py)::(\w+)`", text):
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), f"{path}::{name}"
    for command in commands(text):
        script, options = command
        source = (ROOT / script).read_text()
        taken = {*re.findall(r'"(--[\w-]+)"', source + examples_behind(source))}
        for option in options:
            plain = option.strip("-").replace("-", "_")
            assert option in taken or re.search(rf"\b{plain}\b", source), f"{script} {option}"


def examples_behind(source):
    """The text of the examples that a script imports, whose options it may take."""
    paths = [ROOT / "examples" / f"{name}.py" for name in re.findall(r"^import (\w+)$", source, re.MULTILINE)]
    return "".join(path.read_text() for path in paths if path.exists())


def commands(text):
    """`(script, options)` of every `python SCRIPT` and `python -m MODULE` in blocks of shell."""
    for block in re.findall(r"^```(?:shell|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"python (-m keras_fam\.[\w.]+|[\w/]+\.py)(.*?)(?:#|&&|$)", line)
            if match and match.group(1) != "program.py":
                script = match.group(1).removeprefix("-m ")
                script = script if script.endswith(".py") else script.replace(".", "/") + ".py"
                yield script, re.findall(r"(?<= )(--[a-z][a-z-]*)", match.group(2))


@HERE
def test_sections_that_the_site_takes_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    taken = [name for page in PAGES for name in re.findall(r"<!-- readme: (.+?) -->", page.read_text())]
    assert sorted(taken) == ["Limits", "Options"]
    for name in taken:
        assert f"\n## {name}\n" in readme, name
