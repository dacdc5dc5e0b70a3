"""Which loss sends gradient to which step?

python -m experiments.credit_matrices --output=docs/figures/credit_matrices.png

The credit matrices of the common truncations, side by side.
"""

import dataclasses
import pathlib

import numpy as np

import tbptt_jax as tbptt
from experiments import command, figures, files
from experiments.config import Options, flag
from experiments.figures import HeatMap
from experiments.files import stop

LENGTH = 12
PLANS = {
    "full BPTT": tbptt.Truncation(LENGTH, LENGTH),
    "k1 = k2 = 4: chunks": tbptt.Truncation(4, 4),
    "k1 = k2 = 1: TBPTT(1, 1)": tbptt.Truncation(1, 1),
    "k1 = 2, k2 = 6: lookback": tbptt.Truncation(2, 6),
    "k1 = 4, k2 = 2: losses left out": tbptt.Truncation(4, 2),
    'k1 = 4, k2 = 4, anchor="loss"': tbptt.Truncation(4, 4, anchor="loss"),
}


def heat_map(title: str, plan: tbptt.Truncation) -> HeatMap:
    """A credit matrix, light and dark by turns from update to update; losses left out are dots."""
    matrix, steps = tbptt.credit_matrix(plan, LENGTH), np.arange(LENGTH)
    shades = np.where(steps // plan.k1 % 2, 0.55, 0.9)
    unscored = np.tril(np.ones_like(matrix)) * ~matrix.any(1, keepdims=True)
    ticks = {step: str(step + 1) for step in (0, 5, 11)}
    texts, updates = np.where(unscored, "·", ""), range(plan.k1, LENGTH, plan.k1)
    return HeatMap(
        title, matrix * shades[:, None], "step s", "loss t", ticks, ticks, texts, rules=updates
    )


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Where the figure goes."""

    output: str = flag("runs/credit_matrices.png", "The figure's file.", 1)


def main(config: Config) -> None:
    """Draw."""
    maps = [heat_map(title, plan) for title, plan in PLANS.items()]
    title = "steps s that a loss t gives gradient to; a line is an update, a dot a loss left out"
    figure = figures.heat_maps([maps[:3], maps[3:]], ["share", "share"], title, (7.5, 5.6))
    path = pathlib.Path(config.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda file: figure.savefig(file, format=path.suffix[1:]))
    except (OSError, ValueError) as error:  # ValueError: the kind of file is unknown
        why = error.strerror if isinstance(error, OSError) else error
        stop(f"--output: {path} cannot be written ({why}); give a .png, .svg or .pdf")
    print(f"saved {path}")


if __name__ == "__main__":
    command.run(Config, main)
