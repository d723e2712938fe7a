"""What a pretrained model loses when it is given blocks, a sink and FAM, with no training at all.

    KERAS_BACKEND=torch python benchmarks/attach.py table --text TEXT_FILE PRESET [PRESET ...]
    KERAS_BACKEND=torch python benchmarks/attach.py stream --text TEXT_FILE PRESET [PRESET ...]
    python benchmarks/attach.py report

`table` measures one text of 8,192 tokens, `stream` one of 100,000. Both write each figure to `docs/attach.json` as soon as
they have it, and leave out what is there. `report` writes `docs/attach.md`'s tables and `docs/attach.png` from that file.
"""

import argparse
import json
from pathlib import Path

import numpy as np

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "attach.json"
WINDOW = 2048  # of the stock model, which reads each window anew, its start token first
TOKENS = 8192
CHUNK = 2048
STREAM = 49 * CHUNK
SHAPES = ((256, 1), (128, 1), (512, 1), (64, 0))
DEFAULTS = {"block_size": 256, "memory_segments": 1, "fam_length": 16, "memory_gate": -4.0, "sink_token_id": True}
GATES = (-6.0, -4.0, -3.0, 0.0)


def settings():
    """`(name, arguments of FAMBackbone)` of every row of the table; True for `sink_token_id` is the start token."""
    rows = []
    for size, segments in SHAPES:
        for sink in (True, None):
            name = f"BSWA {size} {segments}" + (" sink" if sink else "")
            rows.append((name, {"block_size": size, "memory_segments": segments, "sink_token_id": sink}))
    rows = [(name, {**arguments, "fam_length": 0}) for name, arguments in rows]
    for length in (16, 64):
        for gate in GATES:
            arguments = {"block_size": 256, "memory_segments": 1, "fam_length": length, "sink_token_id": True}
            rows.append((f"FAM {length} gate {gate:g}", {**arguments, "memory_gate": gate}))
    return rows


class Measured:
    """A stock model, its text as ids, and the losses of models that are made of its layers."""

    def __init__(self, preset, text):
        import keras
        import keras_hub
        from keras import ops

        lm = keras_hub.models.CausalLM.from_preset(preset, dtype="float32")
        tokenizer = lm.preprocessor.tokenizer
        self.stock, self.start = lm.backbone, tokenizer.start_token_id
        self.ids = np.asarray(tokenizer.tokenize(text), "int32")
        hidden, target = keras.Input((self.stock.hidden_dim,)), keras.Input((), dtype="int32")
        logits = self.stock.token_embedding(hidden, reverse=True)
        loss = -ops.take_along_axis(ops.log_softmax(logits), target[:, None], axis=-1)[:, 0]
        self.head = keras.Model([hidden, target], loss)

    def memory(self, **arguments):
        """A `FAMBackbone` on the stock layers."""
        import keras

        import keras_fam

        keras.utils.set_random_seed(0)  # of the prompt's rows
        if arguments.get("sink_token_id"):
            arguments["sink_token_id"] = self.start
        return keras_fam.FAMBackbone(self.stock, **arguments)

    def losses(self, hidden, targets, every=1):
        """Nats of every so many-th target: float `[targets / every]`. Logits are made for 256 places at a time."""
        return self.head.predict([hidden[::every], targets[::every]], batch_size=256, verbose=0)

    def of_windows(self, ids, every=1):
        """The stock model on windows of `WINDOW` tokens, each behind a start token: losses of all of `ids`."""
        found = []
        for first in range(0, len(ids), WINDOW - 1):
            targets = ids[first : first + WINDOW - 1]
            hidden = self.hidden(self.stock, np.concatenate([[self.start], targets[:-1]]))
            found.append(self.losses(hidden, targets, every))
        return np.concatenate(found)

    def of_text(self, backbone, ids, every=1):
        """A model that reads all of `ids` behind one start token."""
        return self.losses(self.hidden(backbone, np.concatenate([[self.start], ids[:-1]])), ids, every)

    def of_stream(self, backbone, ids, every):
        """Losses of a stream, of every so many-th token: `every` is a function of the place of a chunk."""
        state, found = backbone.initial_state(1), []
        inputs = np.concatenate([[self.start], ids[:-1]]).astype("int32")
        for first in range(0, len(ids), CHUNK):
            hidden, state = backbone.stream(inputs[None, first : first + CHUNK], state)
            step, targets = every(first), ids[first : first + CHUNK]
            found.append((first, step, self.losses(_array(hidden)[0], targets, step)))
        return found

    @staticmethod
    def hidden(backbone, ids):
        """Hidden states of one row of ids: `[tokens, d]`."""
        ids = np.asarray(ids, "int32")[None]
        return backbone.predict({"token_ids": ids, "padding_mask": np.ones_like(ids)}, verbose=0)[0]


def _array(tensor):
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _mean(losses):
    """Mean and its standard error, as if tokens were independent."""
    return [float(np.mean(losses)), float(np.std(losses) / np.sqrt(len(losses)))]


def _store(key, value):
    results = _stored()
    for part in key[:-1]:
        results = results.setdefault(part, {})
    results[key[-1]] = value
    RESULTS.write_text(json.dumps(_stored.cache, indent=1) + "\n")
    print(*key, value if not isinstance(value, list) else [round(x, 4) for x in value[:2]], flush=True)


def _stored():
    if not hasattr(_stored, "cache"):
        _stored.cache = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return _stored.cache


def table(model, name, options):
    done = _stored().get("table", {}).get(name, {})
    # Windows end where the text ends, so that all models are asked for the same tokens.
    ids = model.ids[options.first : options.first + TOKENS // (WINDOW - 1) * (WINDOW - 1)]
    only = options.only.split(",") if options.only else None
    every = options.every
    if "stock" not in done:
        _store(("table", name, "stock"), [*_mean(model.of_windows(ids, every)), every])
    for row, arguments in settings():
        if row in done or (only and row not in only):
            continue
        _store(("table", name, row), [*_mean(model.of_text(model.memory(**arguments), ids, every)), every])


def stream(model, name, options):
    """The defaults of `from_preset` as one stream, and the stock model's windows beside its two ends."""
    ids = model.ids[options.first : options.first + STREAM]
    spans = {"start": slice(CHUNK, CHUNK + TOKENS), "end": slice(STREAM - TOKENS, STREAM)}
    done = _stored().get("stream", {}).get(name, {})
    if "FAM" not in done:

        def every(first):
            return options.every if any(span.start <= first < span.stop for span in spans.values()) else 16

        found = model.of_stream(model.memory(**DEFAULTS), ids, every)
        for end, span in spans.items():
            inside = [losses for first, _, losses in found if span.start <= first < span.stop]
            _store(("stream", name, "FAM", end), _mean(np.concatenate(inside)))
        _store(("stream", name, "FAM", "chunks"), [float(np.mean(losses)) for *_, losses in found])
    for end, span in spans.items():
        if end not in done.get("stock", {}):
            _store(("stream", name, "stock", end), _mean(model.of_windows(ids[span], options.every)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["table", "stream", "report"])
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--text")
    parser.add_argument("--first", type=int, default=0, help="the first token of the text that is measured")
    parser.add_argument("--every", type=int, default=1, help="measure every so many-th token")
    parser.add_argument("--only", help="names of rows, with commas between")
    options = parser.parse_intermixed_args()
    if options.what == "report":
        return report()
    text = Path(options.text).read_text(encoding="utf-8")
    for preset in options.presets:
        {"table": table, "stream": stream}[options.what](Measured(preset, text), Path(preset).name, options)


if __name__ == "__main__":
    main()
