"""Checks imported presets on a text, by hand:

    KERAS_BACKEND=jax python tests/real/check_import.py --text TEXT_FILE FOLDER [FOLDER ...]

Prints a table: loss on the text, on the same words shuffled, round trips of the tokenizer; then greedy text, to be
read by a person. Ends with status 1 if a round trip fails or order makes no difference.
"""

import argparse
import sys
from pathlib import Path

import keras_hub
from measure import broken_round_trips, continued, nats_per_token, shuffled_words, start_and_text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="preset folders")
    parser.add_argument("--text", required=True, help="a text file")
    parser.add_argument("--length", type=int, default=2048, help="tokens, the start token included")
    parser.add_argument("--prompt", default="The old man looked out over the sea and")
    options = parser.parse_args()
    text = Path(options.text).read_text(encoding="utf-8")
    rows, generated, good = [], [], True
    for folder in options.folders:
        model = keras_hub.models.CausalLM.from_preset(folder, dtype="float32")
        loss, shuffled = (
            nats_per_token(model, start_and_text(model, t, options.length)) for t in (text, shuffled_words(text))
        )
        broken = broken_round_trips(model.preprocessor.tokenizer)
        rows.append((Path(folder).name, f"{loss:.3f}", f"{shuffled:.3f}", ", ".join(broken) or "all"))
        generated.append(continued(model, options.prompt, 64))
        good &= not broken and loss + 1 < shuffled
    print("| preset | nats a token | words shuffled | round trips |\n| --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    for row, continuation in zip(rows, generated):
        print(f"\n{row[0]}: {continuation}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
