"""Writes the tables of `docs/remember.md` and `docs/remember.png` from `docs/remember/*.json`.

python benchmarks/remember/report.py
"""

import json
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
TEXT = {
    "untrained_full": "full attention, windows of 2,048, not trained",
    "untrained_bswa": "BSWA, B=64, m=0, not trained",
    "text_full": "full attention, windows of 2,048, LoRA",
    "text_bswa": "BSWA, B=64, m=0, LoRA",
    "text": "FAM, N=64, B=64, m=0, LoRA",
}
KEYS = {"key": "rate 1e-3", "key2": "rate 4e-4, another seed"}


def load():
    return {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "remember").glob("*.json"))}


def text_table(found):
    """Losses, and the share of the gap between BSWA and full attention that FAM closes, each trained the same."""
    places = list(found["text"]["text"]["by_place"])
    lines = [f"| | all | {' | '.join(places)} |", "|---" * (len(places) + 2) + "|"]
    losses = {name: [found[name]["text"]["all"], *found[name]["text"]["by_place"].values()] for name in TEXT}
    lines += [f"| {label} | {' | '.join(f'{x:.3f}' for x in losses[name])} |" for name, label in TEXT.items()]
    bswa, fam, full = (losses[name] for name in ("text_bswa", "text", "text_full"))
    closed = [(b - f) / (b - a) for b, f, a in zip(bswa, fam, full)]
    # In its first block a text has no memory yet.
    lines.append(f"| share of the gap closed | {closed[0]:.2f} | | {' | '.join(f'{x:.2f}' for x in closed[2:])} |")
    return "\n".join(lines)


def key_table(found, measure):
    distances = list(found["key"][measure])
    shares = ("whole",) if measure == "hold" else ("whole", "old")
    lines = [f"| blocks | {' | '.join(distances)} |", "|---" * (len(distances) + 1) + "|"]
    for name, label in KEYS.items():
        for share in shares:
            values = [found[name][measure][distance][share] for distance in distances]
            kind = "" if measure == "hold" else ", the new key" if share == "whole" else ", the old key"
            lines.append(f"| {label}{kind} | {' | '.join(f'{x:.2f}' for x in values)} |")
    return "\n".join(lines)


def learning_table(found):
    """Whole keys by step of training."""
    steps = [entry for entry in found["key"]["log"] if "hold" in entry]
    lines = [f"| step | {' | '.join(str(entry['step']) for entry in steps)} |", "|---" * (len(steps) + 1) + "|"]
    for name, label in KEYS.items():
        held = [entry["hold"] for entry in found[name]["log"] if "hold" in entry]
        for distance in ("1", "4", "16"):
            shares = " | ".join(f"{each[distance]['whole']:.2f}" for each in held)
            lines.append(f"| {label}, {distance} block{'' if distance == '1' else 's'} | {shares} |")
    return "\n".join(lines)


def draw(found, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
    for name, label in KEYS.items():
        hold = found[name]["hold"]
        left.plot([int(x) for x in hold], [each["whole"] for each in hold.values()], "o-", label=label)
    left.set(xscale="log", xlabel="blocks of 64 tokens since the key", ylabel="whole keys right", ylim=(-0.03, 1.03))
    for name, label in TEXT.items():
        by_place = found[name]["text"]["by_place"]
        ends = [int(place.split("-")[1]) for place in by_place]
        style = "--" if name.startswith("untrained") else "-"
        right.plot(ends, by_place.values(), f"o{style}", label=label, markersize=3)
    right.set(xscale="log", xlabel="tokens from the start of the text, up to", ylabel="nats a token")
    for axes in (left, right):
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    found, page = load(), DOCS / "remember.md"
    tables = {
        "text": text_table(found),
        "hold": key_table(found, "hold"),
        "overwrite": key_table(found, "overwrite"),
        "learning": learning_table(found),
    }
    written = page.read_text()
    for name, table in tables.items():
        before, _, rest = written.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        written = f"{before}<!-- {name} -->\n{table}\n{end}{after}"
    page.write_text(written)
    draw(found, DOCS / "remember.png")


if __name__ == "__main__":
    main()
