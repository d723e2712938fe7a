"""Property 6: the backends agree with each other, in outputs and in gradients."""

import os
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from helpers.gradients import loss_and_gradients
from helpers.models import EVERY_PART, fam_backbone, forward, inputs, token_ids
from keras import ops


def outputs_and_gradients(family):
    """Everything that backends are compared in, of one model with LoRA, on text with padding."""
    backbone = fam_backbone(family, stock={"dropout": 0.0}, truncate_bptt=3)
    ids = token_ids(2, 19)
    mask = np.ones_like(ids)
    mask[1, 14:] = 0
    head = np.random.default_rng(2).standard_normal((2, 19, 16)).astype("float32")
    loss, gradients = loss_and_gradients(
        backbone, inputs(ids, mask), lambda hidden: ops.mean(hidden * ops.convert_to_tensor(head)), training=True
    )
    hidden = forward(backbone, ids, mask)
    # An untied head has no part in hidden states: no gradient, or one of zeros.
    gradients = {path: g for path, g in gradients.items() if not path.endswith("reverse_embeddings")}
    return {"loss": np.asarray(loss), "hidden": hidden, **{f"gradient of {path}": g for path, g in gradients.items()}}


@pytest.mark.skipif(keras.config.backend() == "torch", reason="torch is what the others are compared with")
def test_agreement_with_torch(tmp_path):
    if find_spec("torch") is None:
        pytest.fail("torch is not installed: install keras-fam with all three backends to test it")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, capture_output=True)
    for family in EVERY_PART:
        here = outputs_and_gradients(family)
        with np.load(tmp_path / f"{family}.npz") as there:
            assert set(here) == set(there.files)
            for name in there.files:
                np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-5, err_msg=f"{family}: {name}")


if __name__ == "__main__":
    for name in EVERY_PART:
        np.savez(os.path.join(sys.argv[1], f"{name}.npz"), **outputs_and_gradients(name))
