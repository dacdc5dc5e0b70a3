"""Truncated backpropagation through time for JAX and Flax: exact, tested, fast."""

from tbptt_jax import data
from tbptt_jax.cells import LSTM
from tbptt_jax.checkpoint import Checkpoints
from tbptt_jax.credit import Truncation, credit_matrix
from tbptt_jax.diagnostics import Bias, CreditByLag, compare_gradients, credit_by_lag, gradient_bias
from tbptt_jax.evaluation import evaluate, predict
from tbptt_jax.gradients import window_value_and_grad
from tbptt_jax.model import SequenceModel, Stack, functional
from tbptt_jax.train import TrainState, gradient, train_step
from tbptt_jax.types import Batch, Metrics, Model
from tbptt_jax.window import Window, WindowValue, forward

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "Batch",
    "Bias",
    "Checkpoints",
    "CreditByLag",
    "Metrics",
    "Model",
    "SequenceModel",
    "Stack",
    "TrainState",
    "Truncation",
    "Window",
    "WindowValue",
    "compare_gradients",
    "credit_by_lag",
    "credit_matrix",
    "data",
    "evaluate",
    "forward",
    "functional",
    "gradient",
    "gradient_bias",
    "predict",
    "train_step",
    "window_value_and_grad",
]
