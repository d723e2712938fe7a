"""TransformerFAM's working memory for Keras 3, on jax, tensorflow and torch."""

from keras_fam import data, evaluation
from keras_fam._version import __version__
from keras_fam.families import register_family
from keras_fam.files.states import load_state, save_state
from keras_fam.layers.attention import FeedbackAttention
from keras_fam.layers.decoder_block import FAMDecoderBlock
from keras_fam.layers.prompt import FAMPrompt
from keras_fam.memory.state import LayerState, StreamState
from keras_fam.models.backbone import FAMBackbone
from keras_fam.models.causal_lm import FAMCausalLM
from keras_fam.models.chat import Chat
from keras_fam.models.summary import summary
from keras_fam.models.training_memory import training_memory
from keras_fam.plots.attention import plot_attention
from keras_fam.plots.loss import plot_loss_by_position
from keras_fam.training.callbacks import RandomStatePassingSchedule
from keras_fam.training.chunked_loss import ChunkedCrossentropy

__all__ = [
    "Chat",
    "ChunkedCrossentropy",
    "FAMBackbone",
    "FAMCausalLM",
    "FAMDecoderBlock",
    "FAMPrompt",
    "FeedbackAttention",
    "LayerState",
    "RandomStatePassingSchedule",
    "StreamState",
    "data",
    "evaluation",
    "load_state",
    "plot_attention",
    "plot_loss_by_position",
    "register_family",
    "save_state",
    "summary",
    "training_memory",
    "__version__",
]


def __dir__():
    return sorted(__all__)
