"""Truncated backpropagation through time for JAX and Flax: exact, tested, fast."""

from tbptt_jax import adapters, data
from tbptt_jax.cells.lstm import LSTM
from tbptt_jax.cells.unroll_check import check_unroll
from tbptt_jax.checkpoints.manager import Checkpoints, Saved
from tbptt_jax.diagnostics.bias import Bias, compare_gradients, gradient_bias
from tbptt_jax.diagnostics.lag import CreditByLag, credit_by_lag
from tbptt_jax.estimators.estimator import Estimator, WindowGradient, WindowLoss
from tbptt_jax.estimators.one_window import window_value_and_grad
from tbptt_jax.estimators.window import Window, WindowValue, forward
from tbptt_jax.models.functional import functional
from tbptt_jax.models.sequence_model import SequenceModel
from tbptt_jax.models.stack import Stack
from tbptt_jax.plans.placement import Interval, LookbackSize, Placement, WindowPlace
from tbptt_jax.plans.plan import Plan, credit_matrix, intervals
from tbptt_jax.plans.truncation import Truncation
from tbptt_jax.training.evaluate import evaluate, predict
from tbptt_jax.training.optimizers import accumulate
from tbptt_jax.training.state import TrainState
from tbptt_jax.training.step import gradient, lower, state_after, train_step
from tbptt_jax.training.stream import Stream
from tbptt_jax.types import Batch, Metrics, Model
from tbptt_jax.version import __version__ as __version__

__all__ = [
    "LSTM",
    "Batch",
    "Bias",
    "Checkpoints",
    "CreditByLag",
    "Estimator",
    "Interval",
    "LookbackSize",
    "Metrics",
    "Model",
    "Placement",
    "Plan",
    "Saved",
    "SequenceModel",
    "Stack",
    "Stream",
    "TrainState",
    "Truncation",
    "Window",
    "WindowGradient",
    "WindowLoss",
    "WindowPlace",
    "WindowValue",
    "accumulate",
    "adapters",
    "check_unroll",
    "compare_gradients",
    "credit_by_lag",
    "credit_matrix",
    "data",
    "evaluate",
    "forward",
    "functional",
    "gradient",
    "gradient_bias",
    "intervals",
    "lower",
    "predict",
    "state_after",
    "train_step",
    "window_value_and_grad",
]
