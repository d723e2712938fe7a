"""What is measured, and how large: `{name of the measurement: (function of measure.py, its arguments)}`."""

SMALL = dict(
    hidden_dim=128, num_layers=2, num_heads=4, intermediate_dim=512, block_size=256, memory_segments=1, fam_length=16
)
# The peers' feed-forward is 4 d wide; a gated one with as many weights has two halves of 8 d / 3, here in whole rows of
# 32. As there, tokens see their own segment and the memory.
PEERS = dict(block_size=512, memory_segments=0, intermediate_dim=2752)
TINY = dict(SMALL, hidden_dim=16, num_heads=2, intermediate_dim=32, block_size=16, fam_length=4)
LENGTHS = (1024, 2048, 4096, 8192)


def full(backend):
    pairs = {
        f"{mode}, {b} against {a}": ("speed", dict(names=[a, b], length=8192, mode=mode, repeats=repeats))
        for a, b, mode, repeats in (
            ("bswa", "fam", "forward", 15),
            ("bswa", "fam", "train", 7),
            ("fam", "stock", "forward", 3),
        )
    }
    half = dict(names=["bswa", "fam"], length=8192, mode="forward", repeats=5, dtype="bfloat16")
    dense = {
        f"dense mask, {length}": ("speed", dict(names=["dense_bswa", "bswa"], length=length, mode="forward", repeats=5))
        for length in (2048, 4096, 8192)
    }
    curves = {
        f"curve, {name}, {length}": ("memory", dict(name=name, length=length, mode="train", repeats=2))
        for name in ("fam", "bswa", "stock")
        for length in LENGTHS
    }
    peers = ["keras_fam", "infini", "recurrent_memory", "block_recurrent"] if backend == "torch" else ["keras_fam"]
    plan = {
        **pairs,
        "bfloat16, fam against bswa": ("speed", half),
        **dense,
        **curves,
        "by length": ("speed_by_length", dict(name="fam", lengths=[8192, 65536], mode="forward", repeats=7)),
        "remat": ("memory", dict(name="fam", length=8192, mode="train", repeats=2, remat=True)),
        "stream": ("stream", dict(size=SMALL, tokens=1_000_000 // 4096 * 4096, chunk=4096, repeats=15)),
        "decode": ("decode", dict(contexts=[512, 16384], tokens=100)),
        "rings, forward": (
            "speed",
            dict(names=["short_rings", "long_rings"], length=8192, mode="forward", repeats=7),
        ),
        "rings, stream": ("rings", dict(names=["short_rings", "long_rings"], context=4096, tokens=100)),
        "generate, fam": ("generate", dict(name="fam", contexts=[512, 16384], tokens=257, repeats=3)),
        "generate, stock": ("generate", dict(name="stock", contexts=[512, 4096], tokens=257, repeats=3)),
        "peers": ("peers", dict(size=PEERS, names=peers, tokens=4096, repeats=7)),
    }
    if backend != "torch":
        size = dict(SMALL, block_size=64)
        for blocks in (8, 64):
            plan[f"compile, {blocks}"] = ("compile_time", dict(size=size, blocks=blocks))
    if backend == "tensorflow":
        plan["compile, unrolled"] = ("compile_time", dict(size=size, blocks=64, unrolled=64))
        plan["compile, XLA"] = ("compile_time", dict(size=size, blocks=64, jit_compile=True))
    return plan


def tiny(backend):
    """The same measurements on a tiny model, to see that they work."""
    plan = {}
    for name, (function, arguments) in full(backend).items():
        if name.startswith("curve") and not name.endswith("1024") or name.endswith(("4096", "8192")):
            continue  # The same with another length.
        arguments = dict(arguments, size=TINY)
        for key in ("length", "chunk", "context", "tokens"):
            if key in arguments:
                arguments[key] = max(arguments[key] // 128, 8)
        for key in ("lengths", "contexts"):
            if key in arguments:
                arguments[key] = [value // 128 for value in arguments[key]]
        if "blocks" in arguments:
            arguments["blocks"] = arguments["blocks"] // 4
        if "repeats" in arguments:
            arguments["repeats"] = 1
        if function == "stream":
            arguments.update(tokens=640, chunk=32)
        if function == "peers":
            arguments["tokens"] = 4 * TINY["block_size"]
        plan[name] = (function, arguments)
    return plan
