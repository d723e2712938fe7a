"""A conversation in the terminal that has no end and remembers in a state of fixed size.

    KERAS_BACKEND=jax python examples/chat.py --preset ~/presets/gemma3_270m_it
    KERAS_BACKEND=jax python examples/chat.py --preset ~/presets/gemma3_270m_it --file talk.npz

With --file the conversation goes on where it ended, also days later. An empty line ends it. Without --preset a small
model is trained first, for about a minute, on text that ships with Python; it writes Python-like prose and no answers.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_hub
from perplexity import train_preset

import keras_fam


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="a preset's name, handle or folder, stock or with memory")
    parser.add_argument("--file", type=pathlib.Path, help="where the conversation is kept")
    parser.add_argument("--system", help="what the model is told before the first turn")
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--memory-segments", type=int)
    parser.add_argument("--fam-length", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300, help="training steps without --preset")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    memory = {name: getattr(options, name) for name in ("block_size", "memory_segments", "fam_length")}
    memory = {name: value for name, value in memory.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        preset = options.preset
        if preset is None:
            preset = train_preset(os.path.join(folder, "stock"), "gpt2", options.steps)
            memory = {"block_size": 64, "memory_segments": 1, "fam_length": 8, **memory}
        lm = keras_fam.FAMCausalLM.from_preset(preset, **memory)
    lm.compile(sampler=keras_hub.samplers.TopPSampler(p=0.9, k=40, temperature=0.8, seed=options.seed))
    if options.file and options.file.exists():
        chat = keras_fam.Chat.load(options.file, lm)
    else:
        chat = keras_fam.Chat(lm, system=options.system)
    print(f"format: {chat.format}; {chat.state}")
    while text := _asked():
        start, before = time.time(), chat.state.tokens
        chat.say(text, max_new_tokens=options.max_new_tokens, file=sys.stdout)
        read = chat.state.tokens[0] - before[0] if before else 0
        print(f"[{read} tokens in {time.time() - start:.1f} s; {chat.state}]")
        if options.file:
            chat.save(options.file)


def _asked():
    try:
        return input("> ").strip()
    except EOFError:  # The input has ended, and so does the chat.
        return ""


if __name__ == "__main__":
    main()
