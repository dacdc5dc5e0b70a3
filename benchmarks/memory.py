"""Memory of a training step against the length of the sequence, as the compiler counts it.

python -m benchmarks.memory

An LSTM with 128 units, batch 8, a loss at every step. `temporary` is what a compiled `train_step`
needs beyond its arguments and results; nothing is run.
"""

import numpy as np
from absl import app, flags
from tqdm import tqdm

import tbptt_jax as tbptt
from benchmarks.per_loss import make_state
from experiments import figures, trainer
from experiments.run import versions

ROWS = 8
# Of windows of 100 steps, and of one window over the whole sequence.
SHORT = {
    "k1 = k2 = 100": tbptt.Truncation(100, 100),
    "k1 = 100, k2 = 300": tbptt.Truncation(100, 300),
    'k1 = k2 = 100, anchor="loss"': tbptt.Truncation(100, 100, "loss"),
}


def whole(length: int) -> dict[str, tbptt.Truncation]:
    """Plans with one update for the whole sequence."""
    return {
        "full BPTT": tbptt.Truncation(length, length),
        "k1 = T, k2 = 100": tbptt.Truncation(length, 100),
        'k1 = T, k2 = 100, anchor="loss"': tbptt.Truncation(length, 100, "loss"),
        "the same, block = 100": tbptt.Truncation(length, 100, "loss", block=100),
    }


def temporary(plan: tbptt.Truncation, length: int) -> int:
    """Temporary bytes of a step."""
    tokens = np.zeros((ROWS, length), np.int32)
    batch = tbptt.Batch(tokens, tokens)
    return trainer.temporary_bytes(make_state(), batch, plan)


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    lengths = [int(n) for n in flags.FLAGS.lengths]
    plans = {name: [plan] * len(lengths) for name, plan in SHORT.items()}
    for name in whole(1):
        plans[name] = [whole(length)[name] for length in lengths]
    rows = [
        [name, *(f"{temporary(p, n) / 2**20:,.1f}" for p, n in zip(row, lengths, strict=True))]
        for name, row in tqdm(plans.items(), "plans", leave=False)
    ]
    print(" ".join(f"{name} {version}," for name, version in versions().items()))
    print(figures.table(["temporary MiB", *(f"T = {n:,}" for n in lengths)], rows))


if __name__ == "__main__":
    flags.DEFINE_list("lengths", ["1000", "10000", "100000"], "Lengths of the sequence.")
    app.run(main)
