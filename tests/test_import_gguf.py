"""Tiny GGUF files become presets that stock KerasHub loads: config, weights, tokenizer, logits, and every refusal."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers import gguf_files
from helpers.gguf_reference import logits
from helpers.refusals import files
from keras import ops
from keras_hub.src.models.llama.llama_rotary_embedding import LlamaRotaryEmbedding

from keras_fam.tools.import_gguf import import_gguf, main

pytestmark = pytest.mark.shared_out

MODELS = {
    "gemma3": gguf_files.gemma3,
    "smollm2": gguf_files.smollm2,
    "llama3": gguf_files.llama3,
    "llama2": gguf_files.llama2,
}


class Imported:
    """A file's content, and the causal LM that stock KerasHub loads from the preset made of it."""

    def __init__(self, name, folder):
        self.metadata, self.tensors = MODELS[name]()
        self.stored = gguf_files.stored(self.tensors)
        path = gguf_files.write(folder / "model.gguf", self.metadata, self.tensors)
        self.folder = import_gguf(path, folder / "preset")
        self.lm = keras_hub.models.CausalLM.from_preset(str(self.folder))
        self.tokenizer = self.lm.preprocessor.tokenizer

    def ids(self, tokens):
        """Ids of tokens named as in the file."""
        return [self.metadata["tokenizer.ggml.tokens"].index(token) for token in tokens]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    models = {}

    def get(name):
        if name not in models:
            models[name] = Imported(name, tmp_path_factory.mktemp(name))
        return models[name]

    return get


@pytest.mark.parametrize(
    "name, prefix, expected",
    [
        (
            "gemma3",
            "Gemma3",
            {
                "num_layers": 7, "hidden_dim": 32, "intermediate_dim": 64, "num_query_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "query_head_dim_normalize": True, "use_query_key_norm": True,
                "use_post_ffw_norm": True, "use_post_attention_norm": True, "use_sliding_window_attention": True,
                "sliding_window_size": 4, "layer_norm_epsilon": 1e-6, "local_rope_scaling_factor": 1.0,
                "global_rope_scaling_factor": 8.0, "attention_logit_soft_cap": None, "final_logit_soft_cap": None,
            },
        ),
        (
            "smollm2",
            "Llama3",
            {"tie_word_embeddings": True, "rope_max_wavelength": 1e4, "rope_frequency_adjustment_factor": None},
        ),
        (
            "llama3",
            "Llama3",
            {
                "num_layers": 2, "hidden_dim": 32, "intermediate_dim": 64, "num_query_heads": 4,
                "num_key_value_heads": 2, "layer_norm_epsilon": 1e-5, "rope_max_wavelength": 5e5,
                "rope_frequency_adjustment_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
                "rope_pretraining_sequence_length": 8192, "tie_word_embeddings": False,
            },
        ),
        ("llama2", "Llama", {"tie_word_embeddings": False, "rope_frequency_adjustment_factor": 4.0}),
    ],
)  # fmt: skip
def test_classes_and_config(imported, name, prefix, expected):
    model = imported(name)
    parts = (model.lm, model.lm.backbone, model.lm.preprocessor, model.tokenizer)
    names = ("CausalLM", "Backbone", "CausalLMPreprocessor", "Tokenizer")
    assert [type(part) for part in parts] == [getattr(keras_hub.models, prefix + name) for name in names]
    for key, value in {**expected, "vocabulary_size": len(model.metadata["tokenizer.ggml.tokens"])}.items():
        assert getattr(model.lm.backbone, key) == value, key
    assert model.lm.preprocessor.add_start_token == model.metadata.get("tokenizer.ggml.add_bos_token", True)


def outputs_by_inputs(path, kernel):
    """A kernel of a backbone as the file has it: one row for each output."""
    if kernel.ndim == 1 or path.endswith("/embeddings"):
        return kernel
    if "attention_output" in path:  # n, h, d
        return kernel.reshape(-1, kernel.shape[-1]).T
    if kernel.ndim == 3 and "decoder_block" in path:  # Gemma's: n, d, h
        return np.concatenate([head.T for head in kernel])
    return kernel.reshape(len(kernel), -1).T  # d, n, h or d, f


def halves_joined(rows, dim=8):
    """Rows of interleaved heads in the order of halves: 0, 2, 4, 6, 1, 3, 5, 7 for a head of 8."""
    order = [head + place for head in range(0, len(rows), dim) for place in [*range(0, dim, 2), *range(1, dim, 2)]]
    return rows[order]


GEMMA3_NAMES = {
    "token_embedding/embeddings": "token_embd", "final_normalization/scale": "output_norm",
    "pre_attention_norm/scale": "attn_norm", "attention/query/kernel": "attn_q", "attention/key/kernel": "attn_k",
    "attention/value/kernel": "attn_v", "attention/query_norm/scale": "attn_q_norm",
    "attention/key_norm/scale": "attn_k_norm", "attention/attention_output/kernel": "attn_output",
    "post_attention_norm/scale": "post_attention_norm", "pre_ffw_norm/scale": "ffn_norm",
    "ffw_gating/kernel": "ffn_gate", "ffw_gating_2/kernel": "ffn_up", "ffw_linear/kernel": "ffn_down",
    "post_ffw_norm/scale": "post_ffw_norm",
}  # fmt: skip
LLAMA_NAMES = {
    "token_embedding/embeddings": "token_embd", "token_embedding/reverse_embeddings": "output",
    "sequence_output_layernorm/scale": "output_norm", "self_attention_layernorm/scale": "attn_norm",
    "self_attention/query/kernel": "attn_q", "self_attention/key/kernel": "attn_k",
    "self_attention/value/kernel": "attn_v", "self_attention/attention_output/kernel": "attn_output",
    "feedforward_layernorm/scale": "ffn_norm", "feedforward_gate_dense/kernel": "ffn_gate",
    "feedforward_intermediate_dense/kernel": "ffn_up", "feedforward_output_dense/kernel": "ffn_down",
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_weight(imported, name):
    model = imported(name)
    names = GEMMA3_NAMES if name == "gemma3" else LLAMA_NAMES
    seen = set()
    for variable in model.lm.backbone.variables:
        layer, _, rest = variable.path.partition("/")
        number = layer.removeprefix("decoder_block_").removeprefix("transformer_layer_")
        tensor = f"blk.{number}.{names[rest]}.weight" if number.isdigit() else f"{names[variable.path]}.weight"
        expected = model.stored[tensor]
        if name == "gemma3" and tensor.endswith("norm.weight"):
            expected = expected - 1
        if name != "gemma3" and ("attn_q" in tensor or "attn_k" in tensor):
            expected = halves_joined(expected)
        value = outputs_by_inputs(variable.path, ops.convert_to_numpy(variable))
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-7, err_msg=tensor)
        seen.add(tensor)
    assert seen == set(model.tensors) - {"rope_freqs.weight"}


@pytest.mark.parametrize("name", MODELS)
def test_logits(imported, name):
    model = imported(name)
    ids = np.random.default_rng(0).integers(0, model.lm.backbone.vocabulary_size, (1, 24))
    result = ops.convert_to_numpy(model.lm({"token_ids": ids, "padding_mask": np.ones_like(ids)}))
    expected = logits(model.metadata, model.stored, ids[0])
    np.testing.assert_allclose(result[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


TEXTS = {
    "plain": "the cat that",
    "non-ASCII": "é ça 你好 👩‍👧 𓂀",
    "digits": "1234 5 0.67",
    "spaces": "a  b   c ",
    "newlines": "the\n\ncat\na\r\n\tb",
}
PIECES = {
    "gemma3": (
        "the cat  \n\n<start_of_turn>1é你",
        ["the", "▁cat", "  ", "\n\n", "<start_of_turn>", "1", "é", "<0xE4>", "<0xBD>", "<0xA0>"],
    ),
    "smollm2": ("the cat\n\n<|im_start|>1", ["the", "Ġcat", "ĊĊ", "<|im_start|>", "1"]),
    "llama3": ("the cat\n\n<|start_header_id|>1", ["the", "Ġcat", "ĊĊ", "<|start_header_id|>", "1"]),
    "llama2": ("the cat1é", ["▁the", "▁cat", "1", "é"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer(imported, name):
    model = imported(name)
    text, pieces = PIECES[name]
    assert list(np.asarray(model.tokenizer.tokenize(text))) == model.ids(pieces)
    for each in [*TEXTS.values(), text]:
        assert model.tokenizer.detokenize(model.tokenizer.tokenize(each)) == each
    assert model.tokenizer.start_token_id == model.metadata["tokenizer.ggml.bos_token_id"]
    assert model.tokenizer.end_token_id == model.metadata["tokenizer.ggml.eos_token_id"]


def test_no_text_becomes_a_header_token_that_the_file_lacks(imported):
    model = imported("smollm2")
    for text in ("<|start_header_id|>", "a<|end_header_id|>\n"):
        ids = np.asarray(model.tokenizer.tokenize(text))
        assert ids.max() < model.lm.backbone.vocabulary_size
        assert model.tokenizer.detokenize(ids) == text


@pytest.mark.parametrize("name", ["gemma3", "smollm2"])
def test_parts_load_alone(imported, name):
    model = imported(name)
    backbone = keras_hub.models.Backbone.from_preset(str(model.folder))
    for loaded, variable in zip(backbone.variables, model.lm.backbone.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(loaded), ops.convert_to_numpy(variable))
    tokenizer = keras_hub.models.Tokenizer.from_preset(str(model.folder))
    text = PIECES[name][0]
    np.testing.assert_array_equal(tokenizer.tokenize(text), model.tokenizer.tokenize(text))


def test_what_keras_hub_does_not_keep():
    """Fails when KerasHub keeps these itself: `keep_in_config` can go then."""
    sizes = {"num_layers": 1, "num_query_heads": 1, "hidden_dim": 2, "intermediate_dim": 2, "num_key_value_heads": 1}
    backbone = keras_hub.models.LlamaBackbone(vocabulary_size=2, tie_word_embeddings=True, **sizes)
    assert "tie_word_embeddings" not in backbone.get_config()
    vocabulary = {"a": 0, "aa": 1, "<|start_header_id|>": 2, "<|end_header_id|>": 3}
    tokenizer = keras_hub.models.Llama3Tokenizer(vocabulary, ["a a"], bos_token="a", eos_token="a")
    assert not {"bos_token", "eos_token"} & tokenizer.get_config().keys()


def test_what_keras_hub_insists_on():
    """Fails when KerasHub takes a vocabulary without header tokens: `LLAMA3_HEADERS` can go then."""
    with pytest.raises(ValueError, match="header_id"):
        keras_hub.models.Llama3Tokenizer({"a": 0, "aa": 1}, ["a a"], bos_token="a", eos_token="a")


def test_what_keras_hub_ignores():
    """Fails when KerasHub's Llama divides positions: scaling by one factor needs no rule for frequencies then."""
    x = np.random.default_rng(0).normal(size=(1, 8, 1, 8))
    plain, scaled = (LlamaRotaryEmbedding(position_scaling_factor=factor)(x) for factor in (1.0, 4.0))
    np.testing.assert_array_equal(ops.convert_to_numpy(plain), ops.convert_to_numpy(scaled))


@pytest.fixture
def file(tmp_path):
    """Writes a variation of a model: `file("gemma3", {key: value}, {tensor: values})`; `None` takes one away."""

    def write(name, metadata=None, tensors=None):
        content = [
            {key: value for key, value in {**original, **(changes or {})}.items() if value is not None}
            for original, changes in zip(MODELS[name](), (metadata, tensors))
        ]
        return gguf_files.write(tmp_path / "model.gguf", *content)

    return write


def refused(path, *words):
    """Holds that the import raises a ValueError that names the file and says the words, and leaves nothing behind."""
    before = files(path.parent)
    with pytest.raises(ValueError) as caught:
        import_gguf(path, path.parent / "preset")
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)
    assert files(path.parent) == before and not (path.parent / "preset").exists()


ZEROS = np.zeros((32, 32), "float32")


@pytest.mark.parametrize(
    "name, tensors, word",
    [
        ("gemma3", {"blk.5.attn_q_norm.weight": None}, "missing"),
        ("gemma3", {"token_embd.weight": None}, "missing"),
        ("smollm2", {"blk.1.ffn_up.weight": None}, "missing"),
        ("gemma3", {"output.weight": ZEROS}, "no place"),
        ("gemma3", {"blk.7.attn_norm.weight": ZEROS[0]}, "no place"),
        ("smollm2", {"blk.0.attn_q.bias": ZEROS[0]}, "no place"),
        ("gemma3", {"blk.2.attn_k.weight": ZEROS[:16]}, "(32, 32). Received: (16, 32)"),
        ("llama3", {"output.weight": ZEROS}, "Received: (32, 32)"),
        ("llama3", {"rope_freqs.weight": np.array([1, 1, 2, 8], "float32")}, "rule"),
        ("llama3", {"rope_freqs.weight": np.array([1, 1, 8], "float32")}, "rule"),
        ("llama3", {"rope_freqs.weight": ZEROS}, "rule"),
    ],
)
def test_refuses_tensors(file, name, tensors, word):
    refused(file(name, tensors=tensors), *tensors, word)


def test_refuses_types_that_cannot_be_dequantized(file):
    path = file("smollm2", tensors={"output_norm.weight": ZEROS[0]})
    content = path.read_bytes()
    name = b"output_norm.weight"
    place = content.index(name) + len(name) + 4 + 8  # behind the number of dimensions and the one dimension
    path.write_bytes(content[:place] + (26).to_bytes(4, "little") + content[place + 4 :])
    refused(path, "output_norm.weight", "I32")


@pytest.mark.parametrize(
    "name, metadata, word",
    [
        ("gemma3", {"general.architecture": "gemma2"}, "gemma2"),
        ("gemma3", {"tokenizer.ggml.model": "gpt2"}, "gpt2"),
        ("gemma3", {"gemma3.block_count": None}, "missing"),
        ("gemma3", {"gemma3.block_count": 62}, "27B"),
        ("gemma3", {"gemma3.block_count": 7.0}, "type int. Received: 7.0"),
        ("gemma3", {"gemma3.rope.freq_base": 1e5}, "must be 1000000.0"),
        ("gemma3", {"gemma3.attention.layer_norm_rms_epsilon": 1e-5}, "must be 1e-06"),
        ("gemma3", {"gemma3.attention.value_length": 8}, "must be 16"),
        ("gemma3", {"gemma3.rope.scaling.type": "yarn"}, "must be linear"),
        ("smollm2", {"llama.rope.dimension_count": 4}, "must be 8"),
        ("smollm2", {"llama.expert_count": 8}, "must be 0"),
        ("smollm2", {"split.count": 2}, "several parts"),
        ("smollm2", {"tokenizer.ggml.tokens": ["a", "a"]}, "every token"),
        ("smollm2", {"tokenizer.ggml.merges": ["q qq"]}, "q qq"),
        ("gemma3", {"tokenizer.ggml.scores": [0.0]}, "tokenizer"),
    ],
)
def test_refuses_metadata(file, name, metadata, word):
    refused(file(name, metadata=metadata), word)


def test_refuses_a_vocabulary_without_its_special_tokens(file):
    tokens = [token.replace("<bos>", "<start>") for token in MODELS["gemma3"]()[0]["tokenizer.ggml.tokens"]]
    refused(file("gemma3", metadata={"tokenizer.ggml.tokens": tokens}), "<bos>")


@pytest.mark.parametrize("kept", [0, 3, 20, 1_000, 0.5, -1])
def test_refuses_a_truncated_file(file, kept):
    path = file("gemma3")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(path, "not a complete GGUF file", *(["tensor `"] if kept in (0.5, -1) else []))


def test_refuses_another_kind_of_file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model" * 100)
    refused(path, "not a complete GGUF file")


def test_refuses_a_folder_with_something_in_it(file, tmp_path):
    path = file("smollm2")
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "notes.txt").write_text("keep me")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="new or an empty folder"):
        import_gguf(path, tmp_path / "preset")
    assert files(tmp_path) == before


def test_nothing_is_left_of_a_write_that_fails(file, tmp_path, monkeypatch):
    path = file("smollm2")
    before = files(tmp_path)

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(keras_hub.models.Llama3Tokenizer, "save_assets", full)
    with pytest.raises(OSError, match="No space"):
        import_gguf(path, tmp_path / "preset")
    assert files(tmp_path) == before and not (tmp_path / "preset").exists()


def test_command_line(file, tmp_path, capsys):
    path = file("smollm2")
    (tmp_path / "preset").mkdir()
    main([str(path), "--out", str(tmp_path / "preset"), "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    for words in (f"Reading {path}", "Llama3: ", "num_layers 2", "`smollm`", f"Writing {tmp_path}", "Done: "):
        assert words in printed
    lm = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"), dtype="bfloat16")
    assert {keras.backend.standardize_dtype(v.dtype) for v in lm.variables} == {"bfloat16"}
    with pytest.raises(SystemExit) as caught:
        main([str(path), "--out", str(tmp_path / "preset")])
    assert caught.value.code == 1
    assert "new or an empty folder" in capsys.readouterr().err
