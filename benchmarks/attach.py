"""What a pretrained model loses when it is given blocks, a sink and FAM, with no training at all.

    KERAS_BACKEND=torch python benchmarks/attach.py table --text TEXT_FILE PRESET [PRESET ...]
    KERAS_BACKEND=torch python benchmarks/attach.py stream --text TEXT_FILE PRESET [PRESET ...]
    python benchmarks/attach.py report

`table` measures one text of 8,192 tokens, `stream` one of 100,000. Both write each figure to `docs/attach.json` as soon
as they have it, and leave out what is there. `report` writes the tables of `docs/attach.md` and `docs/attach.png` from
that file.
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
SHAPES = ((256, 1), (128, 1), (512, 1), (64, 0), (1024, 3))
# Of `from_preset` on a stock preset with rotary positions.
DEFAULTS = {
    "block_size": 1024,
    "memory_segments": 3,
    "fam_length": 64,
    "memory_gate": -9.0,
    "sink_token_id": True,
}
STREAMS = {
    "FAM": "one stream",
    "FAM, calibrated": "one stream, gates calibrated",
    "stock": "stock, windows of 2,048",
}
GATES = (-12.0, -9.0, -6.0, -5.0, -4.0, -3.0, 0.0)


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
    rows += [(f"default gate {gate:g}", {**DEFAULTS, "memory_gate": gate}) for gate in (-12.0, -9.0, -6.0)]
    return [*rows, ("default calibrated", {**DEFAULTS, "calibrated": True})]


class Measured:
    """A stock model, its text as ids, and the losses of models that are made of its layers."""

    def __init__(self, preset, text, calibration=None):
        import keras
        import keras_hub
        from keras import ops

        lm = keras_hub.models.CausalLM.from_preset(preset, dtype="float32")
        tokenizer = lm.preprocessor.tokenizer
        self.stock, self.start = lm.backbone, tokenizer.start_token_id
        self.ids = np.asarray(tokenizer.tokenize(text), "int32")
        self.calibration = None if calibration is None else [self.start, *map(int, tokenizer.tokenize(calibration))]
        hidden, target = keras.Input((self.stock.hidden_dim,)), keras.Input((), dtype="int32")
        logits = self.stock.token_embedding(hidden, reverse=True)
        loss = -ops.take_along_axis(ops.log_softmax(logits), target[:, None], axis=-1)[:, 0]
        self.head = keras.Model([hidden, target], loss)

    def memory(self, **arguments):
        """A `FAMBackbone` on the stock layers; `calibrated` if its gates are set on the text for that."""
        import keras

        import keras_fam

        keras.utils.set_random_seed(0)  # of the prompt's rows
        if arguments.get("sink_token_id"):
            arguments["sink_token_id"] = self.start
        calibrated = arguments.pop("calibrated", False)
        backbone = keras_fam.FAMBackbone(self.stock, **arguments)
        if calibrated:
            gates = keras_fam.FAMCausalLM(backbone).calibrate_gates(self.calibration)
            print("gates", np.round(gates, 1).tolist(), flush=True)
        return backbone

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
        if row in done or (only and row not in only) or (arguments.get("calibrated") and model.calibration is None):
            continue
        _store(("table", name, row), [*_mean(model.of_text(model.memory(**arguments), ids, every)), every])


def stream(model, name, options):
    """The defaults of `from_preset` as one stream, and the stock model's windows beside its two ends."""
    ids = model.ids[options.first : options.first + STREAM]
    spans = {"start": slice(CHUNK, CHUNK + TOKENS), "end": slice(STREAM - TOKENS, STREAM)}
    done = _stored().get("stream", {}).get(name, {})
    kind = "FAM" if model.calibration is None else "FAM, calibrated"
    if kind not in done:

        def every(first):
            return options.every if any(span.start <= first < span.stop for span in spans.values()) else 16

        found = model.of_stream(model.memory(**DEFAULTS, calibrated=model.calibration is not None), ids, every)
        for end, span in spans.items():
            inside = [losses for first, _, losses in found if span.start <= first < span.stop]
            _store(("stream", name, kind, end), _mean(np.concatenate(inside)))
        _store(("stream", name, kind, "chunks"), [float(np.mean(losses)) for *_, losses in found])
    for end, span in spans.items():
        if end not in done.get("stock", {}):
            _store(("stream", name, "stock", end), _mean(model.of_windows(ids[span], options.every)))


# === Report ===


def report():
    """The tables between the marks in `docs/attach.md`, and the picture."""
    results, path = _stored(), DOCS / "attach.md"
    text = path.read_text(encoding="utf-8")
    for name, lines in (
        ("table", _table_lines(results["table"])),
        ("stream", _stream_lines(results.get("stream", {}))),
    ):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    path.write_text(text, encoding="utf-8")
    _draw(results)


def _table_lines(found):
    models = list(found)
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    marks = {model: found[model]["stock"][0] for model in models}
    lines.append("| stock, windows of 2,048 (the mark) | " + " | ".join(f"{x:.3f}" for x in marks.values()) + " |")
    for row, _ in settings():
        cells = [f"{found[model][row][0] - marks[model]:+.3f}" if row in found[model] else "" for model in models]
        if any(cells):
            lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return lines


def label(row):
    """A row's name in words."""
    kind, *rest = row.split()
    if kind == "BSWA":
        return f"BSWA, B={int(rest[0]):,}, m={rest[1]}" + (", sink" if "sink" in rest else "")
    if kind == "default":
        gates = "gates calibrated" if rest == ["calibrated"] else f"gate {rest[1]}"
        return f"`from_preset`'s sizes: FAM, B=1,024, m=3, N=64, sink, {gates}"
    return f"FAM, B=256, m=1, N={rest[0]}, sink, gate {rest[2]}"


def _stream_lines(found):
    lines = ["| | tokens 2,048 to 10,240 | the last 8,192 |", "|---|---|---|"]
    for model, rows in found.items():
        for kind, name in STREAMS.items():
            if kind not in rows:
                continue
            cells = [f"{rows[kind][end][0]:.3f}" if end in rows.get(kind, {}) else "" for end in ("start", "end")]
            lines.append(f"| {model}, {name} | " + " | ".join(cells) + " |")
    return lines


def _draw(results):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    streams = results.get("stream", {})
    figure, axes = pyplot.subplots(1, 2 if streams else 1, figsize=(12, 5), layout="constrained", squeeze=False)
    left, right = axes[0, 0], axes[0, -1]
    models = list(results["table"])
    rows = [row for row, _ in settings() if any(row in results["table"][model] for model in models)]
    for model, marker in zip(models, "os"):
        found = results["table"][model]
        points = [(found[row][0] - found["stock"][0], place) for place, row in enumerate(rows) if row in found]
        left.plot(*zip(*points), marker, label=model)
    left.set_yticks(range(len(rows)), [label(row).replace("`", "") for row in rows], fontsize=8)
    left.invert_yaxis()
    left.axvline(0, color="gray", linewidth=1)
    left.set_xscale("symlog", linthresh=0.1)
    ticks = ["-0.1", "-0.05", "0", "0.05", "0.1", "0.2", "0.5", "1", "2"]
    left.set_xticks([float(tick) for tick in ticks], ticks)
    left.set_xlabel("nats a token above the stock model in windows of 2,048 (linear to 0.1, then logarithmic)")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    for (model, found), color in zip(streams.items(), ("C0", "C1")):
        for kind, style in (("FAM", "-"), ("FAM, calibrated", ":")):
            if kind in found:
                chunks = found[kind]["chunks"]
                label_ = f"{model}, {STREAMS[kind]}, FAM untrained"
                right.plot(np.arange(len(chunks)) * CHUNK, chunks, style, color=color, label=label_)
        for end, place in (("start", CHUNK), ("end", STREAM - TOKENS)):
            if end in found.get("stock", {}):
                label_ = f"{model}, stock, windows of 2,048" if end == "start" else None
                right.plot([place, place + TOKENS], [found["stock"][end][0]] * 2, "--", color=color, label=label_)
    if streams:
        right.set_xlabel("tokens read")
        right.set_ylabel("nats a token, mean over 2,048")
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    figure.savefig(DOCS / "attach.png", dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["table", "stream", "report"])
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--text")
    parser.add_argument("--first", type=int, default=0, help="the first token of the text that is measured")
    parser.add_argument("--every", type=int, default=1, help="measure every so many-th token")
    parser.add_argument("--calibrate", help="a text on which gates are calibrated, for rows and a stream of their own")
    parser.add_argument("--only", help="names of rows, with commas between")
    options = parser.parse_intermixed_args()
    if options.what == "report":
        return report()
    text = Path(options.text).read_text(encoding="utf-8")
    calibration = Path(options.calibrate).read_text(encoding="utf-8") if options.calibrate else None
    for preset in options.presets:
        model = Measured(preset, text, calibration)
        {"table": table, "stream": stream}[options.what](model, Path(preset).name, options)


if __name__ == "__main__":
    main()
