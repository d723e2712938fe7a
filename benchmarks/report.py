"""The table and the picture of what `run.py` measured."""

import statistics

import plan
from size import Size, products_per_token, stock_products_per_token


def _median(seconds):
    return statistics.median(seconds)


def _ratios(result, of, to):
    return [a / b for a, b in zip(result[of], result[to])]


def _spread(values, digits=3):
    return f"{_median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _memory_pair(first, second):
    return f"{first['mib'] / second['mib']:.2f} ({first['mib']:,.0f} to {second['mib']:,.0f} MiB)"


def _time_pair(first, second):
    a, b = _median(first["seconds"]), _median(second["seconds"])
    return f"{a / b:.2f} ({a:.1f} to {b:.1f} s)"


def _stream_memory(result):
    warm = len(result["mib"]) // 10
    return f"{max(result['mib'][warm:]) - result['mib'][warm]:+.1f} MiB"


def _generated(result):
    short, long = sorted(result, key=int)
    a, b = (_median(result[context]) for context in (long, short))
    return f"{a / b:.3f} ({a * 1e3:.1f} and {b * 1e3:.1f} ms)"


def _tokens_per_second(result, tokens=4096):
    return {name: tokens / _median(seconds) for name, seconds in result["seconds"].items()}


def _against_peers(results):
    """The best of our backends against the fastest peer, as lines of text."""
    speeds = {
        backend: _tokens_per_second(r["peers"]) for backend, r in results.items() if "seconds" in r.get("peers", {})
    }
    ours = {backend: by_name.pop("keras_fam") for backend, by_name in speeds.items()}
    peers = {name: speed for by_name in speeds.values() for name, speed in by_name.items()}
    if not ours or not peers:
        return []
    backend, peer = max(ours, key=ours.get), max(peers, key=peers.get)
    ratio = ours[backend] / peers[peer]
    return [f"Training, 4,096 tokens: keras_fam on {backend} is {ratio:.2f} times as fast as the fastest peer, {peer}."]


def _peers(result):
    return ", ".join(f"{name} {speed:,.0f}" for name, speed in _tokens_per_second(result).items())


def _arithmetic(of, to):
    """The ratio of two models' or lengths' products per token, each `(size, length)`."""
    return f"{products_per_token(*of) / products_per_token(*to):.2f}"


FAM, BSWA = Size(), Size(fam_length=0)
STOCK = f"≥ 2; arithmetic {stock_products_per_token(FAM, 8192) / products_per_token(FAM, 8192):.2f}"
RINGS = "Gemma 3, rings of 3 blocks in five of six layers / of 8 in all"

LOOP, XLA = ("compile, 64", "compile, unrolled"), ("compile, XLA", "compile, 64")

# What stands in the table, its goal, and how it follows from a backend's measurements.
ROWS = (
    (
        "FAM / BSWA, forward, 8,192 tokens",
        f"≤ 1.07; arithmetic {_arithmetic((FAM, 8192), (BSWA, 8192))}",
        lambda r: _spread(_ratios(r["forward, fam against bswa"], "fam", "bswa")),
    ),
    (
        "the same in bfloat16",
        "",
        lambda r: _spread(_ratios(r["bfloat16, fam against bswa"], "fam", "bswa")),
    ),
    (
        "FAM / BSWA, training step, 8,192",
        "≤ 1.08",
        lambda r: _spread(_ratios(r["train, fam against bswa"], "fam", "bswa")),
    ),
    (
        "seconds per token, 65,536 / 8,192, forward",
        f"≤ 1.05; arithmetic {_arithmetic((FAM, 65536), (FAM, 8192))}",
        lambda r: _spread([x / 8 for x in _ratios(r["by length"], "65536", "8192")]),
    ),
    *(
        (
            f"BSWA here / dense stock attention under its mask, {length:,}",
            goal,
            lambda r, length=length: _spread(_ratios(r[f"dense mask, {length}"], "bswa", "dense_bswa")),
        )
        for length, goal in ((2048, "≤ 1.0"), (4096, "falling"), (8192, "falling"))
    ),
    (
        "stock full attention / FAM, forward, 8,192",
        STOCK,
        lambda r: _spread(_ratios(r["forward, stock against fam"], "stock", "fam"), 2),
    ),
    *(
        (
            f"stock full attention / FAM, {what}, {length:,}",
            goal if cell is _time_pair else "",
            lambda r, length=length, cell=cell: cell(r[f"curve, stock, {length}"], r[f"curve, fam, {length}"]),
        )
        for length, goal in ((4096, ""), (8192, STOCK))
        for what, cell in (("training step", _time_pair), ("peak memory of that step", _memory_pair))
    ),
    *(
        (
            f"FAM with remat / without, {what}, 8,192",
            goal,
            lambda r, cell=cell: cell(r["remat"], r["curve, fam, 8192"]),
        )
        for what, goal, cell in (("peak memory of a training step", "≤ 0.5", _memory_pair), ("seconds", "", _time_pair))
    ),
    ("stream of 1,000,000 tokens: growth after a tenth", "≤ 16 MiB", lambda r: _stream_memory(r["stream"])),
    (
        "seconds a chunk of 4,096, after 1,000,000 / after 4,096",
        "1",
        lambda r: _spread(_ratios(r["stream"]["seconds"], "late", "early")),
    ),
    ("single-token `stream`, after 16,384 / after 512", "≤ 1.05", lambda r: _generated(r["decode"])),
    ("a token of `generate`, after 16,384 / after 512", "≤ 1.05", lambda r: _generated(r["generate, fam"])),
    ("the same, stock, after 4,096 / after 512", "", lambda r: _generated(r["generate, stock"])),
    (
        f"{RINGS}, forward, 8,192",
        "< 1",
        lambda r: _spread(_ratios(r["rings, forward"], "short_rings", "long_rings"), 2),
    ),
    (
        f"{RINGS}, single-token `stream`",
        "< 1",
        lambda r: _spread(_ratios(r["rings, stream"]["seconds"], "short_rings", "long_rings"), 2),
    ),
    (
        f"{RINGS}, a stream's state",
        "< 1",
        lambda r: "{short_rings:.1f} to {long_rings:.1f} MiB".format(**r["rings, stream"]["mib"]),
    ),
    ("training, tokens/s, 4,096 tokens in segments of 512", "> peers", lambda r: _peers(r["peers"])),
    (
        "compile time, 64 blocks / 8",
        "≤ 1.5",
        lambda r: f"{r['compile, 64']['seconds'] / r['compile, 8']['seconds']:.2f}",
    ),
    ("training, 64 blocks in a loop / unrolled, compile time", "", lambda r: _compiled(r, LOOP, "seconds", "s")),
    ("the same, seconds a step", "", lambda r: _compiled(r, LOOP, "step", "s")),
    ("the same, peak memory", "", lambda r: _compiled(r, LOOP, "mib", "MiB")),
    (
        "training, 64 blocks in a loop, with XLA / without, compile time",
        "",
        lambda r: _compiled(r, XLA, "seconds", "s"),
    ),
    ("the same, seconds a step", "", lambda r: _compiled(r, XLA, "step", "s")),
)


def _compiled(results, names, what, unit):
    one, other = (results[name][what] for name in names)
    return f"{one / other:.2f} ({other:,.2f} to {one:,.2f} {unit})"


def _cell(row, results):
    """The row's text; a dash where something was not measured, and why where it failed."""
    try:
        return row({name: _Measured(result) for name, result in results.items()})
    except _Failed as failed:
        return f"– ({failed})"
    except KeyError:  # It was not measured.
        return "–"


class _Failed(Exception):
    pass


class _Measured(dict):
    """A result that says so where it failed."""

    def __missing__(self, key):
        if "failed" in self:
            raise _Failed(self["failed"])
        raise KeyError(key)


def table(results):
    """Markdown: one row a goal, one column a backend; medians of ratios, with the smallest and largest."""
    lines = ["| what | goal | " + " | ".join(results) + " |", "|---|---|" + "---|" * len(results)]
    for what, goal, row in ROWS:
        lines.append(f"| {what} | {goal} | " + " | ".join(_cell(row, results[backend]) for backend in results) + " |")
    lines += ["", *_against_peers(results)]
    versions = {f"{name} {number}" for r in results.values() for name, number in r.get("versions", {}).items()}
    return "\n".join(lines) + f"\n\n{', '.join(sorted(versions))}.\n"


def draw(results, path):
    """Seconds per token and peak memory of a training step against length, one row of panels a quantity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(results), figsize=(3.6 * len(results), 6), sharex=True, sharey="row", squeeze=False
    )
    for column, (backend, measured) in enumerate(results.items()):
        for name, label, style in (("fam", "FAM", "o-"), ("bswa", "BSWA", "s--"), ("stock", "stock", "^:")):
            points = [(n, measured.get(f"curve, {name}, {n}", {})) for n in plan.LENGTHS]
            points = [(n, point) for n, point in points if "mib" in point]
            lengths = [n for n, _ in points]
            axes[0][column].plot(lengths, [_median(p["seconds"]) / n * 1e3 for n, p in points], style, label=label)
            axes[1][column].plot(lengths, [p["mib"] / 1024 for _, p in points], style, label=label)
        axes[0][column].set_title(backend)
        axes[1][column].set_xlabel("tokens")
        axes[1][column].set_xscale("log", base=2)
        axes[1][column].set_xticks(plan.LENGTHS, [f"{n:,}" for n in plan.LENGTHS])
        for row in axes:
            row[column].grid(alpha=0.3)
    for row in axes:
        row[0].set_ylim(bottom=0)  # Shared, so only once all is drawn.
    axes[0][0].set_ylabel("training, ms per token")
    axes[1][0].set_ylabel("peak memory of a step, GiB")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
