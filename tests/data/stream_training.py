"""A training on files, to be killed and resumed: FOLDER of the files, FOLDER of checkpoints.

It prints the number of each batch when its checkpoint is on the disk.
"""

import hashlib
import pathlib
import sys

import jax
import numpy as np
import optax
from flax import nnx

import tbptt_jax as tbptt

PLAN = tbptt.Truncation(k1=3, k2=5)


def make_stream(folder: pathlib.Path) -> tbptt.data.Stream:
    documents = [
        part
        for file in sorted(folder.glob("*.npy"))
        for part in np.array_split(np.load(file, mmap_mode="r"), 3)
    ]
    return tbptt.data.Stream(documents, lanes=2, steps=6, passes=3, seed=5)


def start() -> tbptt.TrainState:
    rngs = nnx.Rngs(0)
    encoder, core = nnx.Embed(256, 2, rngs=rngs), tbptt.LSTM(2, 3, rngs=rngs)
    model = tbptt.SequenceModel(encoder, core, nnx.Linear(3, 256, rngs=rngs))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optax.adam(0.01), loss)


def main(files: pathlib.Path, folder: pathlib.Path) -> None:
    stream, state, done, digest = make_stream(files), start(), 0, hashlib.sha256()
    with tbptt.Checkpoints(folder, {"files": "a test"}) as checkpoints:
        like = tbptt.state_after(state, next(make_stream(files)), PLAN)
        saved = checkpoints.restore(like)
        if saved is not None:
            state, done = saved.tree, saved.progress["done"]
            stream.restore(saved.progress["stream"], state)
        for batch in stream:
            state, _ = tbptt.train_step(state, batch, PLAN)
            done += 1
            checkpoints.save(state, {"done": done, "stream": stream.state()})
            checkpoints.wait()
            print(done, flush=True)
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.stream)):
        digest.update(np.asarray(leaf).tobytes())
    print("end", done, digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
