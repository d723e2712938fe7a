"""What differs between jax, tensorflow and torch. Nothing outside this folder asks for more than `on_jax_cpu`.

- Loops over blocks (`loops`). jax: `lax.scan`, compiled once. tensorflow: unrolled, or a `tf.while_loop` where there
  are many blocks or their number is not known. torch: a Python loop.
- Attention (`kernels`). jax on CPU: one head after another from some size on. torch: its fused kernel. Else all heads
  at once.
- Writing into a ring (`buffers.write`). torch: in place where allowed. jax and tensorflow: the compiler decides.
- Eager operations. jax compiles one for every new shape and keeps it, so `buffers.join` and `cut` go through the host.
- Recomputation (`rematerialize`). jax on CPU: a branch that waits for the gradient. torch: Keras's own, without kept
  frames. tensorflow: Keras's own.
- Inference (`compiled`). `jax.jit` of the variables' values, `tf.function`, `torch.no_grad`.
- Several devices (`devices`). jax: rows of a stream go where `keras.distribution` says.
- Parameters (`parameters`). torch: a model's variables are registered where torch asks for them.
- Dropout in loops (`random`). On all three the seeds are drawn outside.
"""

import keras


def on_jax_cpu() -> bool:
    """Whether XLA compiles for CPU, where it needs other ways than on accelerators."""
    if keras.config.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"
