"""`examples/finetune.py --preset PRESET --texts FOLDER`: killed and started again, it ends as if it had gone on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from helpers.presets import TEXT, gpt2_preset

import keras_fam

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="minutes: once is enough, tests of `fit` are on all backends"
)

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "finetune.py"
OPTIONS = "--block-size 4 --memory-segments 1 --fam-length 2 --rank 2 --sequence-length 8 --checkpoint-steps 2".split()


def command(folder, preset, output, *options):
    arguments = ["--preset", preset, "--texts", str(folder), "--output", str(output), *OPTIONS, *options]
    return [sys.executable, str(EXAMPLE), *arguments]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parent.parent)}
    made = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    folder, preset = tmp_path / "texts", gpt2_preset(tmp_path / "gpt2", num_layers=1, dropout=0.0)
    folder.mkdir()
    for index, text in enumerate(TEXT):
        (folder / f"{index}.txt").write_text(f"{text} " * 3)
    whole = run(folder, preset, tmp_path / "whole", "--steps", "8")
    assert "a training step" in whole and "best: step" in whole
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parent.parent)}
    arguments = command(folder, preset, tmp_path / "killed", "--steps", "8")
    process, saved = (
        subprocess.Popen(arguments, env=environment),
        tmp_path / "killed" / "backup" / "training_metadata.json",
    )
    for _ in range(1200):
        if saved.exists():
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    run(folder, preset, tmp_path / "killed", "--steps", "8")

    def history(name):
        return dict(json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines())

    killed, expected = history("killed"), history("whole")
    assert sorted(killed) == sorted(expected) == [0, 2, 4, 6, 8]
    for step, nats in expected.items():
        assert abs(killed[step] - nats) < 1e-4, (killed, expected)
    lm = keras_fam.FAMCausalLM.from_preset(preset, block_size=4, memory_segments=1, fam_length=2)
    lm.load_lora_weights(tmp_path / "killed" / "best.lora.safetensors")
    paths = sorted(folder.glob("*.txt"))
    assert min(abs(lm.perplexity(path, verbose=0).nats - min(killed.values())) for path in paths) < 1e-4
