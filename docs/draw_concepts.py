"""Draws the pictures of docs/concepts.md from real attention maps, in about a minute of one core.

    KERAS_BACKEND=torch python docs/draw_concepts.py

Small models learn one task: a flag, one of eight tokens, stands somewhere in the first block; the last token of every
block asks for it. The pictures are of texts that the models were not trained on.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_hub
import matplotlib
import numpy as np

import keras_fam
from keras_fam.plots.attention import attention_map

matplotlib.use("Agg")
from matplotlib import pyplot as plt

START, ASK, FLAGS, FILLER, VOCABULARY = 1, 2, (3, 11), (11, 32), 32
BLOCK, BLOCKS, SEGMENTS, FAM = 8, 5, 1, 4


def model(**memory):
    stock = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=4,
        hidden_dim=48,
        intermediate_dim=128,
        head_dim=12,
    )
    return keras_fam.FAMCausalLM(
        keras_fam.FAMBackbone(stock, block_size=BLOCK, memory_segments=SEGMENTS, **memory), preprocessor=None
    )


def texts(random, rows, blocks):
    """Token ids `[rows, blocks * BLOCK]`, what follows each, and 1 where it is asked for."""
    ids = random.integers(*FILLER, (rows, blocks * BLOCK))
    flags = random.integers(*FLAGS, rows)
    ids[:, 0] = START
    ids[np.arange(rows), random.integers(1, BLOCK - 1, rows)] = flags
    asked = np.arange(ids.shape[1]) % BLOCK == BLOCK - 1
    ids[:, asked] = ASK
    targets = np.where(asked, flags[:, None], 0)
    return ids.astype("int32"), targets.astype("int32"), np.broadcast_to(asked, ids.shape).astype("float32")


def train(lm, steps, seed):
    random = np.random.default_rng(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    lm.compile(optimizer=keras.optimizers.AdamW(rate, global_clipnorm=1.0), loss=loss)
    for step in range(steps):
        ids, targets, weights = texts(random, 32, 2 if step < steps // 3 else BLOCKS)
        lm.train_on_batch({"token_ids": ids, "padding_mask": np.ones_like(ids)}, targets, weights)
    ids, targets, weights = texts(random, 256, BLOCKS)
    logits = lm.predict({"token_ids": ids, "padding_mask": np.ones_like(ids)}, verbose=0)
    right = logits.argmax(-1) == targets
    return [float(right[:, (tau + 1) * BLOCK - 1].mean()) for tau in range(BLOCKS)]


def save(figure, path):
    figure.savefig(path, dpi=75)
    print(path, os.path.getsize(path), "bytes", flush=True)


def map_picture(lm, ids, path, title, layer=0, head=0):
    figure = keras_fam.plot_attention(lm, ids, layer=layer, head=head)
    figure.axes[0].set_title(title)
    save(figure, path)


def gate_picture(lm, ids, path, layer, head):
    """One head's map with the gate open and nearly shut: the same weights."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    gate = lm.backbone.transformer_layers[layer].memory_gate
    trained = keras.ops.convert_to_numpy(gate)
    for axes, value in zip(panels, (0.0, -6.0)):
        gate.assign(value)
        weights, marks = attention_map(lm, ids, layer, head)
        share = sum(weights[ASK_ROW, start:stop].sum() for start, stop in marks if stop - start == FAM)
        axes.imshow(np.sqrt(weights), vmin=0, vmax=1, interpolation="nearest")
        for start, stop in marks:
            axes.axvspan(start - 0.5, stop - 0.5, facecolor="none", edgecolor="tab:red", linewidth=0.6)
        axes.set_title(f"gate {value:g}: FAM gets {share:.2f} of the last question", fontsize=11)
        axes.set_xlabel("keys: tokens, and FAM (red)")
    gate.assign(trained)
    save(figure, path)
    plt.close(figure)


ASK_ROW = 1 + FAM + (BLOCKS - 1) * (BLOCK + FAM) + BLOCK - 1  # behind the sink, the prompt, and whole blocks


def head_that_reads(lm, ids, layer):
    """The head that gives FAM most of the last question's attention."""
    shares = []
    for head in range(4):
        weights, marks = attention_map(lm, ids, layer, head)
        shares.append(sum(weights[ASK_ROW, start:stop].sum() for start, stop in marks if stop - start == FAM))
    return int(np.argmax(shares))


def state_picture(lm, random, path, blocks=40):
    """Bytes of the state and of a stock cache by tokens read, and how alike FAM is after different blocks."""
    ids, _, _ = texts(random, 1, blocks)
    state, sizes, memory = lm.initial_state(1), [], []
    for tau in range(blocks):
        _, state = lm.stream(ids[:, tau * BLOCK : (tau + 1) * BLOCK], state)
        sizes.append(sum(np.asarray(each).nbytes for each in arrays(state)))
        memory.append(np.asarray(keras.ops.convert_to_numpy(state.layers[1].fam)).ravel())
    memory = np.stack(memory) / np.linalg.norm(memory, axis=1, keepdims=True)
    read = BLOCK * np.arange(1, blocks + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    left.plot(read, np.array(sizes) / 1024, label="state of the stream")
    left.plot(
        read, read * 2 * 2 * 4 * 12 * 4 / 1024, label="keys and values of all tokens"
    )  # layers, K and V, h, c, float32
    left.set(xlabel="tokens read", ylabel="KiB", title="what is kept", ylim=0)
    left.legend()
    image = right.imshow(memory @ memory.T, vmin=0, vmax=1, interpolation="nearest", origin="lower")
    right.set(xlabel="after block", ylabel="after block", title="likeness (cosine) of layer 1's FAM")
    figure.colorbar(image, ax=right)
    save(figure, path)
    plt.close(figure)


def arrays(state):
    return [keras.ops.convert_to_numpy(each) for layer in state.layers for each in layer if each is not None]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "concepts")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ids = texts(np.random.default_rng(99), 1, BLOCKS)[0]
    models = {}
    for name, memory in {
        "block": dict(fam_length=0),
        "sink": dict(fam_length=0, sink_token_id=START),
        "fam": dict(fam_length=FAM, sink_token_id=START, memory_gate=0.0),
    }.items():
        keras.utils.set_random_seed(0)
        models[name] = model(**memory)
        right = train(models[name], options.steps, 0)
        print(f"{name}: right answers by block: {' '.join(f'{each:.2f}' for each in right)}", flush=True)
    lm = models["fam"]
    map_picture(
        models["block"], ids, options.out / "block.png", "block attention: its own block and one before", head=1
    )
    map_picture(models["sink"], ids, options.out / "sink.png", "with a sink (first column)", head=1)
    layer = 1
    head = head_that_reads(lm, ids, layer)
    map_picture(lm, ids, options.out / "fam.png", f"FAM: layer {layer}, head {head}", layer=layer, head=head)
    gate_picture(lm, ids, options.out / "gate.png", layer, head)
    state_picture(lm, np.random.default_rng(7), options.out / "state.png")


if __name__ == "__main__":
    main()
