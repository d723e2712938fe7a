"""The notebooks run from the first cell to the last, as somebody would run them who opens them one after the other."""

import os
import re
import sys
from pathlib import Path

import keras
import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks need the `docs` extra")
nbformat = pytest.importorskip("nbformat", reason="notebooks need the `docs` extra")

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="notebooks choose their backend: torch")
EXPECTED = {
    "finetune": r"nats a token on held-out text: \d",
    "chat_and_stream": r"StreamState\(2 layers, 1 streams?, B=32",
    "sequence": r"right answers at the last step: (1.00|0.9\d)",
}


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all: most of a notebook's time is what it takes to import Keras."""
    from jupyter_client.manager import start_new_kernel

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(FOLDER), env=environment)
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook(kernel, name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    # Names of the notebook before are gone; modules stay.
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert re.search(EXPECTED[name], printed), printed


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(EXPECTED)
