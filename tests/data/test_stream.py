"""Documents in lanes: each step once, in order, whatever interrupts."""

import itertools
import json
from collections.abc import Iterator

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_jax as tbptt
from tbptt_jax.data import Stream


def host(batch):
    """In place of a device: a batch stays as it is."""
    return batch


def make(documents, **options):
    return Stream(documents, **{"place": host, **options})


def texts(*lengths):
    """Documents of which every step is another number."""
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end) for end, n in zip(ends, lengths, strict=True)]


def by_hand(orders, documents, lanes, steps):
    """Batches of (input, target, reset) step by step, None where there is nothing."""
    queue = [documents[i] for order in orders for i in order]
    current: list[Iterator[tuple]] = [iter(()) for _ in range(lanes)]
    found = []
    while True:
        batch = []
        for lane in range(lanes):
            row = []
            while len(row) < steps:
                step = next(current[lane], None)
                if step is None:
                    if not queue:
                        break
                    document = queue.pop(0).tolist()
                    pairs = itertools.pairwise(document)
                    current[lane] = iter([(*p, i == 0) for i, p in enumerate(pairs)])
                    continue
                row.append(step)
            batch.append(row + [None] * (steps - len(row)))
        if all(step is None for row in batch for step in row):
            return found
        found.append(batch)


def as_steps(batch):
    rows, steps = batch.inputs.shape
    exists = np.ones((rows, steps), bool) if batch.mask is None else batch.mask
    return [
        [
            (int(batch.inputs[r, t]), int(batch.targets[r, t]), bool(batch.reset[r, t]))
            if exists[r, t]
            else None
            for t in range(steps)
        ]
        for r in range(rows)
    ]


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    lanes=st.integers(1, 4),
    steps=st.integers(1, 5),
    passes=st.integers(1, 3),
    ahead=st.sampled_from([0, 2]),
    stop=st.integers(0, 30),
)
def test_batches_are_those_made_by_hand_and_a_stream_continues_from_any(
    lengths, lanes, steps, passes, ahead, stop
):
    documents = texts(*lengths)
    options = {"lanes": lanes, "steps": steps, "passes": passes, "ahead": ahead}
    expected = by_hand([range(len(lengths))] * passes, documents, lanes, steps)
    stream = make(documents, **options)
    found = [as_steps(batch) for batch in itertools.islice(stream, stop)]
    saved = json.loads(json.dumps(stream.state()))
    assert found == expected[:stop]
    assert found + [as_steps(batch) for batch in stream] == expected
    assert next(stream, None) is None
    again = make(documents, **options)
    again.restore(saved)
    assert [as_steps(batch) for batch in again] == expected[stop:]
    stream.restore(saved)  # one that was ahead goes back
    assert [as_steps(batch) for batch in stream] == expected[stop:]


def test_each_pass_has_an_order_of_its_own_and_a_seed_repeats_it():
    documents = texts(*[2] * 20)

    def order(seed):
        batches = make(documents, lanes=1, steps=4, passes=2, seed=seed)
        return np.concatenate([batch.inputs[0] for batch in batches]) // 2

    first, second = np.split(order(3), 2)
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(first) != list(second) != list(range(20))
    assert list(order(3)) == [*first, *second]
    assert list(order(4)) != [*first, *second]


def test_passes_without_end():
    stream = make(texts(3), lanes=1, steps=2, passes=None)
    batches = list(itertools.islice(stream, 50))
    assert len(batches) == 50
    assert all(batch.mask is None and batch.reset[0].tolist() == [True, False] for batch in batches)


def test_shares_are_rows_of_the_whole_at_one_position():
    documents, options = texts(4, 9, 3, 5, 8), {"lanes": 4, "steps": 3, "seed": 1}
    whole, *parts = (make(documents, **options, share=share) for share in ((0, 1), (0, 2), (1, 2)))
    count = 0
    for batch, *others in zip(whole, *parts, strict=True):
        count += 1
        for field in ("inputs", "targets", "reset"):
            rows = np.concatenate([getattr(other, field) for other in others])
            np.testing.assert_array_equal(rows, getattr(batch, field))
        assert [other.mask is None for other in others] == [batch.mask is None] * 2
        assert whole.state() == parts[0].state() == parts[1].state()
    assert count > 1


def test_pairs_of_pytrees():
    document = ({"word": np.arange(5), "tag": np.ones((5, 2), np.float32)}, np.arange(5) % 2)
    (batch,) = make([document], lanes=1, steps=5)
    assert batch.inputs["word"].tolist() == [[0, 1, 2, 3, 4]]
    assert batch.inputs["tag"].shape == (1, 5, 2)
    assert batch.targets.tolist() == [[0, 1, 0, 1, 0]]


class Source:
    """Random access as Grain's sources have it, which says what is read."""

    def __init__(self, documents):
        self.documents, self.read = documents, []

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        self.read.append(index)
        return self.documents[index]


def test_of_a_source_each_document_is_read_once_when_its_lane_begins():
    source = Source(texts(*[9] * 6))
    stream = make(source, lanes=2, steps=8, ahead=0)
    next(stream)
    assert source.read == [0, 1]
    next(stream)
    assert source.read == [0, 1, 2, 3]


def test_a_source_of_grain():
    grain = pytest.importorskip("grain.python")
    documents = texts(5, 4)
    dataset = grain.MapDataset.source(documents).map(lambda x: x + 100)
    (batch,) = make(dataset, lanes=2, steps=4)
    assert batch.inputs.tolist() == [[100, 101, 102, 103], [105, 106, 107, 0]]


def test_files_that_are_memory_mapped_are_read_where_they_are_used(tmp_path):
    np.save(tmp_path / "long.npy", np.arange(100_000, dtype=np.uint8))
    mapped = np.load(tmp_path / "long.npy", mmap_mode="r")
    stream = make(np.array_split(mapped, 4), lanes=4, steps=10)
    batch = next(stream)
    assert batch.inputs.dtype == np.uint8
    assert batch.inputs[:, 0].tolist() == mapped[::25_000].tolist()


def test_batches_are_put_onto_the_device():
    (batch,) = Stream(texts(4), lanes=1, steps=3)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "documents must hold at least one"),
        ([np.arange(4), np.arange(1)], {}, r"documents\[1\] must have at least 2 steps.*\[1\]"),
        ([np.array(["a", "b"])], {}, r"documents\[0\] must hold numbers"),
        ([(np.arange(3), np.arange(4))], {}, r"documents\[0\] must be inputs and targets of as"),
        ([(np.arange(3),) * 3], {}, r"documents\[0\] must be an array or the pair"),
        ([np.ones((4, 2)), np.ones((4, 3))], {}, "features of one shape"),
        ([np.arange(4)], {"lanes": 0}, "lanes must be at least 1"),
        ([np.arange(4)], {"steps": 0}, "steps must be at least 1"),
        ([np.arange(4)], {"passes": 0}, "passes must be at least 1"),
        ([np.arange(4)], {"ahead": -1}, "ahead must be at least 0"),
        ([np.arange(4)], {"lanes": 3, "share": (0, 2)}, "lanes must divide among the 2 shares"),
    ],
)
def test_bad_documents_and_options_are_named(documents, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        list(make(documents, **{"lanes": 2, "steps": 3, **options}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": [[0, 1]]}, "the same lanes, got 1 and here 2"),
        ({"documents": 5}, "the same documents, got 5 and here 3"),
        ({"seed": 1}, "the same seed, got 1 and here None"),
        ({"lanes": None}, "saved must be what Stream.state returned"),
    ],
)
def test_a_position_of_another_stream_is_refused(change, message):
    stream = make(texts(4, 5, 6), lanes=2, steps=3)
    next(stream)
    before = stream.state()
    with pytest.raises(ValueError, match=message):
        stream.restore({**before, **change})
    with pytest.raises(ValueError, match="saved must be what"):
        stream.restore("position")
    assert stream.state() == before


PLAN = tbptt.Truncation(k1=2, k2=4)


def start():
    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(
        nnx.Embed(30, 2, rngs=rngs), tbptt.LSTM(2, 3, rngs=rngs), nnx.Linear(3, 30, rngs=rngs)
    )
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optax.sgd(0.1), loss)


def trained(count):
    """A state, and the stream that it trained on."""
    stream, state = make(texts(9, 13, 8), lanes=2, steps=4), start()
    for batch in itertools.islice(stream, count):
        state, _ = tbptt.train_step(state, batch, PLAN)
    return state, stream


def test_a_position_belongs_to_the_state_that_was_saved_with_it():
    state, stream = trained(2)
    position = stream.state()
    stream.restore(position, state)
    next(stream)
    with pytest.raises(ValueError, match="state must end at the position, step 4 of document 2"):
        stream.restore(stream.state(), state)
    with pytest.raises(ValueError, match="got one without a stream"):
        stream.restore(position, start())
    make(texts(9, 13, 8), lanes=2, steps=4).restore(
        make(texts(9, 13, 8), lanes=2, steps=4).state(), start()
    )
    other = make([text + 1 for text in texts(9, 13, 8)], lanes=2, steps=4)
    with pytest.raises(ValueError, match="from the same documents"):
        other.restore(position, state)
    wide, _ = tbptt.train_step(start(), next(make(texts(5, 5, 5), lanes=3, steps=4)), PLAN)
    with pytest.raises(ValueError, match="a row for each of the 2 lanes, got 3"):
        stream.restore(position, wide)


def test_a_training_resumes_with_its_stream_to_the_bit(tmp_path):
    state, stream = trained(1)
    with tbptt.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, stream.state())
        rest = list(stream)
        assert len(rest) >= 2
        for batch in rest:
            state, _ = tbptt.train_step(state, batch, PLAN)
        checkpoints.wait()
        stream = make(texts(9, 13, 8), lanes=2, steps=4)
        saved = checkpoints.restore(tbptt.state_after(start(), rest[0], PLAN))
    assert saved is not None
    stream.restore(saved.progress, saved.tree)
    again = saved.tree
    for batch in stream:
        again, _ = tbptt.train_step(again, batch, PLAN)
    assert int(again.step) == int(state.step) > 2
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
