"""Draw the credit matrices of the common truncations: which loss teaches which step.

python -m experiments.credit_matrices --output=docs/figures/credit_matrices.png
"""

import pathlib

import numpy as np
from absl import app, flags

import tbptt_jax as tbptt
from experiments import common

LENGTH = 12
PLANS = [
    ("full BPTT", tbptt.Truncation(LENGTH, LENGTH)),
    ("k1 = k2 = 4: chunks", tbptt.Truncation(4, 4)),
    ("k1 = k2 = 1: TBPTT(1, 1)", tbptt.Truncation(1, 1)),
    ("k1 = 2, k2 = 6: lookback", tbptt.Truncation(2, 6)),
    ("k1 = 4, k2 = 2: losses left out", tbptt.Truncation(4, 2)),
    ('k1 = 4, k2 = 4, anchor="loss"', tbptt.Truncation(4, 4, anchor="loss")),
]


def draw(output: str) -> None:
    """Draw all plans side by side."""
    figure, axes = common.figure(2, 3, width=7.5, height=5.4)
    for ax, (title, plan) in zip(axes.flat, PLANS, strict=True):
        matrix = tbptt.credit_matrix(plan, LENGTH)
        # Darker and lighter by turns, so that the intervals between updates can be told apart.
        shade = 0.55 + 0.35 * ((np.arange(LENGTH) // plan.k1) % 2 == 0)
        ax.imshow(matrix * shade[:, None], cmap="Blues", vmin=0, vmax=1)
        for t in np.flatnonzero(~matrix.any(1)):
            ax.plot([-0.5, t + 0.5], [t, t], color="0.6", linewidth=1.2, linestyle=":")
        ax.plot([-0.5, LENGTH - 0.5], [-0.5, LENGTH - 0.5], color="0.5", linewidth=0.6)
        for end in range(plan.k1, LENGTH, plan.k1):
            ax.axhline(end - 0.5, color="C3", linewidth=0.7)
        ax.set_xticks(np.arange(LENGTH + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(LENGTH + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="0.92", linewidth=0.5)
        ax.tick_params(which="both", length=0)
        ax.set(title=title, xticks=[0, 5, 11], yticks=[0, 5, 11])
        ax.set_xticklabels([1, 6, 12])
        ax.set_yticklabels([1, 6, 12])
        ax.title.set_fontsize(9)
    figure.supxlabel("step s whose use of the parameters gets gradient", fontsize=9)
    figure.supylabel("step t of the loss; a red line is an update", fontsize=9)
    try:
        pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output)
    except (OSError, ValueError) as error:  # ValueError: of what kind the file should be
        common.stop(f"--output: {output} cannot be written ({error}); give a .png, .svg or .pdf")
    print(f"saved {output}")


def main(argv: list[str]) -> None:
    """Draw."""
    common.begin(argv)
    draw(flags.FLAGS.output)


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/credit_matrices.png", "The picture's file.")
    app.run(main)
