"""What fine-tuning a Gemma with memory takes, by `keras_fam.training_memory`: the table of docs/finetune_gemma.md.

    KERAS_BACKEND=torch python benchmarks/gemma_memory.py

The models are made of their published sizes on torch's "meta" device, so that none is in memory.
"""

import functools

import keras
import keras_hub

import keras_fam

GEMMA3 = dict(
    vocabulary_size=262_144,
    head_dim=256,
    image_size=None,
    use_sliding_window_attention=True,
    use_query_key_norm=True,
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
)
GEMMA2 = dict(
    vocabulary_size=256_000,
    head_dim=256,
    use_sliding_window_attention=True,
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
    attention_logit_soft_cap=50.0,
    final_logit_soft_cap=30.0,
)
SIZES = ("num_layers", "hidden_dim", "num_query_heads", "num_key_value_heads", "intermediate_dim")
MODELS = {  # name: class, shared options, sizes, window
    "gemma3_270m": (keras_hub.models.Gemma3Backbone, GEMMA3, (18, 640, 4, 1, 2048), 512),
    "gemma3_1b": (keras_hub.models.Gemma3Backbone, GEMMA3, (26, 1152, 4, 1, 6912), 512),
    "gemma3_4b_text": (keras_hub.models.Gemma3Backbone, GEMMA3, (34, 2560, 8, 4, 10_240), 1024),
    "gemma2_9b_en": (keras_hub.models.GemmaBackbone, GEMMA2, (42, 3584, 16, 8, 28_672), 4096),
}
ROWS = [  # model, dtype, tokens of a step
    ("gemma3_270m", "float32", 1024),
    ("gemma3_270m", "bfloat16", 8192),
    ("gemma3_1b", "bfloat16", 8192),
    ("gemma3_4b_text", "bfloat16", 8192),
    ("gemma2_9b_en", "bfloat16", 8192),
    ("gemma2_9b_en", "bfloat16", 131_072),
]


@functools.cache
def language_model(name, dtype, rank):
    cls, shared, sizes, window = MODELS[name]
    with keras.device("meta"), keras.RematScope("full"):
        stock = cls(**shared, **dict(zip(SIZES, sizes)), sliding_window_size=window, dtype=dtype)
        backbone = keras_fam.FAMBackbone(stock, 1024, 3, 64, sink_token_id=2, memory_gate=-6.0)
        lm = keras_fam.FAMCausalLM(backbone)
        lm.enable_lora(rank)
    return lm


def main():
    fields = ("weights", "lora", "gradients", "optimizer", "activations", "loss", "total", "stream")
    print("| model | dtype | tokens | " + " | ".join(fields) + " |\n|" + "---|" * (3 + len(fields)))
    for name, dtype, length in ROWS:
        made = keras_fam.training_memory(language_model(name, dtype, rank=16), 1, length)
        values = " | ".join(f"{getattr(made, field) / 1e9:.2f}" for field in fields)
        print(f"| {name} | {dtype} | {length:,} | {values} |", flush=True)


if __name__ == "__main__":
    main()
