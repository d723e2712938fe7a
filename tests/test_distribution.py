"""Several devices: how variables lie on them, and that training, generation and streams give the same as on one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from helpers.in_two_processes import train
from helpers.models import FAMILIES, fam_backbone, numpy, stock_backbone
from helpers.on_a_mesh import NAMES, RUNS, SHAPE
from helpers.presets import gemma_preset
from helpers.refusals import refused
from helpers.training import ROWS, language_model

import keras_fam

BACKEND = keras.config.backend()
ROOT = Path(__file__).resolve().parent.parent
DATA, MODEL = NAMES


def only_on(backend, why):
    return pytest.mark.skipif(BACKEND != backend, reason=f"{why} is for {backend}")


def start(module, *arguments, **environment):
    """A process with this backend that runs one of the helpers."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-m", f"helpers.{module}", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output


def assert_same(path, expected, names=None):
    """The arrays in the file at `path` are those in `expected`, a file or a dict."""
    expected = dict(np.load(expected)) if isinstance(expected, os.PathLike) else expected
    with np.load(path) as found:
        assert set(found.files) == set(expected)
        for name in names or expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


# === Layout maps ===


def mesh(*shape):
    return keras.distribution.DeviceMesh(shape, NAMES, np.array([f"cpu:{i}" for i in range(np.prod(shape))]))


def axes_of(layout_map):
    return {pattern: layout.axes for pattern, layout in layout_map.items()}


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_what_kerashub_splits_is_split_alike(family):
    theirs = keras_hub.models.GemmaBackbone.get_layout_map(mesh(1, 1))
    ours = keras_fam.FAMBackbone.get_layout_map(mesh(1, 1), keras_hub.models.GemmaBackbone)
    split = [v.path for v in stock_backbone(family).variables if theirs[v.path] is not None]
    assert len(split) == 1 + 2 * 7
    assert all(ours[path].axes == theirs[path].axes for path in split)


def test_axes_that_do_not_divide_stay_whole():
    stock = stock_backbone("gemma")  # 4 query heads, 2 key heads, vocabulary 50, d = 16
    layout_map = keras_fam.FAMBackbone.get_layout_map(mesh(2, 4), stock)
    assert layout_map["token_embedding/embeddings"].axes == (None, DATA)
    assert layout_map["decoder_block_0/attention/query/kernel"].axes == (MODEL, DATA, None)
    assert layout_map["decoder_block_0/attention/key/kernel"].axes == (None, DATA, None)
    assert layout_map["decoder_block_0/attention/value/lora_kernel_a"].axes == (None, DATA, None)
    assert layout_map["decoder_block_0/carried_key"].axes == (DATA, None, None, None, None)
    assert layout_map["decoder_block_0/ffw_linear/kernel"].axes == (MODEL, DATA)
    assert keras_fam.FAMBackbone.get_layout_map(mesh(3, 1), stock)["fam_prompt/embeddings"].axes == (None, None)


def test_presets_and_models_with_memory_tell_what_divides(tmp_path):
    folder = gemma_preset(tmp_path / "stock")
    lm = keras_fam.FAMCausalLM.from_preset(folder, block_size=4, memory_segments=1, fam_length=3)
    lm.save_to_preset(tmp_path / "fam")
    expected = axes_of(keras_fam.FAMBackbone.get_layout_map(mesh(2, 4), lm.backbone.family.backbone))
    assert expected["token_embedding/embeddings"] == (MODEL, DATA)  # 44 rows
    assert expected["carried_state/valid"] == (DATA, None, None)
    for backbone in (folder, str(tmp_path / "fam"), lm.backbone):
        assert axes_of(keras_fam.FAMBackbone.get_layout_map(mesh(2, 4), backbone)) == expected


def test_other_names_of_dimensions():
    devices = keras.distribution.DeviceMesh((1, 1), ("rows", "heads"), np.array(["cpu:0"]))
    layout_map = keras_fam.FAMBackbone.get_layout_map(devices, keras_hub.models.GPT2Backbone, "heads", "rows")
    assert layout_map["transformer_layer_11/self_attention/query/kernel"].axes == ("rows", "heads", None)


def test_what_is_refused():
    stock, get = keras_hub.models.GPT2Backbone, keras_fam.FAMBackbone.get_layout_map
    refused(lambda: get("mesh", stock), "device_mesh", "DeviceMesh", "str")
    refused(lambda: get(mesh(1, 1), stock, "heads"), "model_parallel_dim_name", "batch", "heads")
    refused(lambda: get(mesh(1, 1), stock, data_parallel_dim_name=3), "data_parallel_dim_name", "model", "3")
    refused(lambda: get(mesh(1, 1), stock, "batch"), "model_parallel_dim_name", "differ", "batch")
    refused(lambda: get(mesh(1, 1), {"num_layers": 2}), "backbone", "preset", "dict")
    refused(lambda: get(mesh(1, 1), keras_hub.models.BertBackbone), "backbone", "family", "BertBackbone")


def test_a_family_that_does_not_name_its_axes_is_refused():
    class SilentBackbone(keras_hub.models.GPT2Backbone):
        pass

    class SilentFamily(keras_fam.families.Family):
        backbone_cls = SilentBackbone

    keras_fam.register_family(SilentFamily)
    refused(lambda: keras_fam.FAMBackbone.get_layout_map(mesh(1, 1), SilentBackbone), "weight_axes", "SilentFamily")


# === jax: 8 devices, 4 for the rows of a batch and 2 for a model's parts ===

# Of a projection: its kernel, bias, and LoRA's kernels a and b.
HEADS_FIRST = ((MODEL, DATA, None), (MODEL, None), (MODEL, DATA, None), (None, None))
HIDDEN_FIRST = ((DATA, MODEL, None), (MODEL, None), (DATA, MODEL, None), (None, None))
OUT_OF_HEADS = ((MODEL, None, DATA), (DATA,), (MODEL, None, None), (None, DATA))
UP = ((DATA, MODEL), (MODEL,), (DATA, None), (None, MODEL))
DOWN = ((MODEL, DATA), (DATA,), (MODEL, None), (None, DATA))
GEMMA = {
    **dict.fromkeys(("query", "key", "value"), HEADS_FIRST),
    "attention_output": OUT_OF_HEADS,
    **dict.fromkeys(("ffw_gating", "ffw_gating_2"), UP),
    "ffw_linear": DOWN,
}
OTHERS = {
    **dict.fromkeys(("query", "key", "value"), HIDDEN_FIRST),
    "attention_output": OUT_OF_HEADS,
    **dict.fromkeys(("feedforward_gate_dense", "feedforward_intermediate_dense"), UP),
    "feedforward_output_dense": DOWN,
}
NAMED = {
    "token_embedding/embeddings": (MODEL, DATA),
    "token_embedding/reverse_embeddings": (DATA, MODEL),
    "position_embedding/embeddings": (None, DATA),
    "fam_prompt/embeddings": (None, DATA),
    "carried_state/started": (DATA,),
    "carried_state/position": (DATA,),
    "carried_state/valid": (DATA, None, None),
}
OF_LAYERS = {
    "last_fam": (None, DATA),
    "carried_fam": (DATA, None, None),
    "carried_key": (DATA, None, None, MODEL, None),
    "carried_value": (DATA, None, None, MODEL, None),
}
# Whole on every device: norms, scalars, seeds.
WHOLE = ("scale", "gamma", "beta", "memory_gate", "probability", "ready", "seed_generator_state")
WHOLE += ("iteration", "learning_rate")


def expected_axes(family, path, rank):
    """What the tests say of a variable; a name that they do not know is an error."""
    *_, layer, name = ["", *path.split("/")]
    if path in NAMED:
        return NAMED[path]
    if name in OF_LAYERS:
        return OF_LAYERS[name]
    if name in WHOLE:
        return (None,) * rank
    parts = ("kernel", "bias", "lora_kernel_a", "lora_kernel_b")
    return (GEMMA if family.startswith("gemma") else OTHERS)[layer][parts.index(name)]


@pytest.fixture(scope="module")
def on_a_mesh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={np.prod(SHAPE)}"
    finish(start("on_a_mesh", folder, XLA_FLAGS=flags))
    return folder


@only_on("jax", "keras.distribution")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_variable_lies_where_it_should(on_a_mesh, family):
    found = json.loads((on_a_mesh / "layouts.json").read_text())[family]
    models = {path: layout for path, layout in found.items() if not path.startswith("adam/")}
    split = 0
    for path, (shape, axes, part) in models.items():
        assert tuple(axes) == expected_axes(family, path, len(shape)), path
        sizes = {None: 1, **dict(zip(NAMES, SHAPE))}
        assert part == [size // sizes[axis] for size, axis in zip(shape, axes)], path
        split += any(axes)
    # All that a model of this family has, and nothing that two names could stand for.
    made = fam_backbone(family, stateful_batch_size=4, memory_gate=0.0, sink_token_id=1)
    made.enable_lora(2)
    stable = {v.path for v in made.variables if "seed_generator" not in v.path}
    assert stable == {path for path in models if not re.search("seed_generator|random_state_passing|last_fam", path)}
    assert split > len(stable) / 2


@only_on("jax", "keras.distribution")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimizer_s_variables_lie_beside_the_weights(on_a_mesh, family):
    found = json.loads((on_a_mesh / "layouts.json").read_text())[family]
    weights = {f"adam/{path.replace('/', '_')}": axes for path, (_, axes, _) in found.items()}
    slots = {path: axes for path, (_, axes, _) in found.items() if path.endswith(("_momentum", "_velocity"))}
    assert len(slots) > 20
    for path, axes in slots.items():
        assert axes == weights[path.rpartition("_")[0]], path


@only_on("jax", "keras.distribution")
@pytest.mark.parametrize(
    "family, kind, work",
    [(f, kind, work.__name__) for f, runs in RUNS.items() for kind in runs if kind != "one" for work in runs[kind]],
)
def test_results_are_those_of_one_device(on_a_mesh, family, kind, work):
    one, many = (on_a_mesh / f"{family} {each} {work}.npz" for each in ("one", kind))
    with np.load(one) as expected:
        names = [name for name in expected.files if not name.startswith("axes")]
    assert_same(many, one, names)
    if work == "served":  # Each device keeps the streams of its own rows, and the keys of its own heads.
        axes = {"data": (DATA, None, None, None), "model": (DATA, None, MODEL, None)}[kind]
        assert [None if axis == "None" else axis for axis in np.load(many)["axes of key"]] == list(axes)


@only_on("jax", "keras.distribution")
def test_the_page_s_example(tmp_path):
    """On the devices that there are."""
    page = (ROOT / "docs" / "distribution.md").read_text()
    code = re.search(r"<!-- run: model parallel -->\n```python\n(.*?)```", page, re.DOTALL).group(1)
    names = {"texts": ["the quick brown fox"] * 2}
    exec(code.replace("gemma_2b_en", gemma_preset(tmp_path / "gemma", num_layers=1)), names)
    assert names["lm"].backbone.lora_enabled and keras.distribution.distribution() is None


# === tensorflow, torch ===


@only_on("tensorflow", "MirroredStrategy")
def test_mirrored_strategy_trains_like_one_device(tmp_path):
    finish(start("on_mirrored_devices", tmp_path))
    assert_same(tmp_path / "mirrored.npz", tmp_path / "one.npz")


@only_on("torch", "DistributedDataParallel")
def test_distributed_data_parallel_trains_like_one_process(tmp_path):
    finish(*(start("in_two_processes", tmp_path, rank) for rank in range(2)))
    lm = language_model("gpt2", ROWS, lora=True)
    expected = train(lm, lm, slice(None))
    for rank in range(2):
        rows = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
        own = {path: value[rows] if "carried" in path else value for path, value in expected.items()}
        assert_same(tmp_path / f"{rank}.npz", own)


@only_on("torch", "torch's list of parameters")
def test_torch_finds_every_variable(tmp_path):
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2"))
    for model in (lm, lm.backbone):
        assert {id(p) for p in model.parameters()} == {id(v.value) for v in model.variables}
    lm.enable_lora(2)
    for model in (lm, lm.backbone):
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {id(p) for p in trained} == {id(v.value) for v in lm.trainable_variables}
    path = lm.backbone.fam_prompt.embeddings.path
    parameters = dict(lm.named_parameters())
    name = next(name for name in parameters if name.endswith(path))
    np.testing.assert_array_equal(parameters[name].detach().numpy(), numpy(lm.backbone.fam_prompt.embeddings))
