"""Imports a GGUF file as a KerasHub preset.

    python -m keras_fam.tools.import_gguf model.gguf --out preset_folder

Architectures: `gemma3` (text) and `llama` (Llama 2 and 3, SmolLM2 and others of the type).
"""

import argparse
import os
import shutil
from pathlib import Path

import keras
import keras_hub

from keras_fam.checks import check_choice, check_path
from keras_fam.tools.gguf_file import GGUFFile
from keras_fam.tools.gguf_models import check_tensors, model_in
from keras_fam.tools.gguf_tokenizers import adds_start_token, build_tokenizer, keep_in_config

DTYPES = ("float32", "bfloat16", "float16")


def import_gguf(path, out, dtype="float32"):
    """Writes the model in a GGUF file as a KerasHub preset: backbone, tokenizer, preprocessor and causal LM.

    Quantized tensors are dequantized. The preset is stock KerasHub: loading it needs neither this package nor `gguf`.

    Args:
        path: str or path. The GGUF file.
        out: str or path. Folder of the preset: must not exist, or be empty.
        dtype: str, `"float32"`, `"bfloat16"` or `"float16"`. Type of the stored weights.

    Returns:
        The folder, a `Path`. It appears when it is complete; an error leaves nothing behind.

    Raises:
        FileExistsError: if `out` is a file or a folder with something in it.
        FileNotFoundError: if there is no file at `path`.
        ValueError: if the file is no GGUF file or is cut short, is of another architecture, lacks a tensor, has one
            too many or of the wrong shape, or describes a model that KerasHub does not have.

    Example:

    ```python
    import keras_hub
    from keras_fam.tools.import_gguf import import_gguf

    folder = import_gguf("gemma-3-270m-q4_k_m.gguf", "gemma3_270m")
    model = keras_hub.models.CausalLM.from_preset(str(folder))
    ```
    """
    check_path("path", path)
    check_choice("dtype", dtype, DTYPES)
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be an existing file. Received: path={str(path)!r}.")
    out = Path(check_path("out", out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"`out` must be a new or an empty folder. Received: {out}")
    print(f"Reading {path}", flush=True)
    task = _build(GGUFFile(path), dtype)
    print(f"Writing {out}", flush=True)
    _save(task, out)
    print(f"Done: {task.backbone.count_params():,} parameters, {task.backbone.vocabulary_size:,} tokens", flush=True)
    return out


def _build(file, dtype):
    """The causal LM with the file's weights."""
    family, config, weights = model_in(file)
    check_tensors(file, weights)
    classes = {
        part: getattr(keras_hub.models, family + part) for part in ("Backbone", "CausalLMPreprocessor", "CausalLM")
    }
    preprocessor = classes["CausalLMPreprocessor"](
        build_tokenizer(file, family, config["vocabulary_size"]), add_start_token=adds_start_token(file)
    )
    print(f"{family}: " + ", ".join(f"{key} {value}" for key, value in config.items()), flush=True)
    backbone = classes["Backbone"](**config, dtype=dtype)
    if "tie_word_embeddings" in config:
        keep_in_config(backbone, {"tie_word_embeddings": config["tie_word_embeddings"]})
    _assign(backbone, file, weights)
    return classes["CausalLM"](backbone=backbone, preprocessor=preprocessor)


def _assign(backbone, file, weights):
    variables = {variable.path: variable for variable in backbone.variables}
    progress = keras.utils.Progbar(len(variables), unit_name="tensor")
    for name, weight in weights.items():
        if weight.variable is None:
            continue
        variables.pop(weight.variable).assign(weight.convert(file.array(name)))
        progress.add(1)
    if variables:
        raise RuntimeError(f"This KerasHub has weights that are not known here: {sorted(variables)}")


def _save(task, out):
    """Writes a preset beside `out` and moves it into place when it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}-unfinished-{os.getpid()}")
    try:
        task.save_to_preset(str(unfinished))
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # Not there if all went well; must not hide what went wrong.


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m keras_fam.tools.import_gguf", description=__doc__.split("\n")[0])
    parser.add_argument("file", help="GGUF file of a Gemma 3 (text) or Llama-type model")
    parser.add_argument("--out", required=True, help="folder of the preset: new or empty")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the stored weights")
    options = parser.parse_args(arguments)
    try:
        import_gguf(options.file, options.out, options.dtype)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
