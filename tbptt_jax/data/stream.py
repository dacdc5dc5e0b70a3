"""Documents of any number and length as one stream of batches, read as it is trained on."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from tbptt_jax.arguments import check_count, check_integer, check_numbers, first_line
from tbptt_jax.training.state import TrainState
from tbptt_jax.types import Batch, Tree

Json: TypeAlias = Any


class Documents(Protocol):
    """A sequence of documents: a list of arrays, or a random-access source of Grain.

    A document is an array [N, ...], of which each step's target is the next step, or a pair
    (inputs, targets) of arrays, or pytrees of arrays, [N, ...].
    """

    def __len__(self) -> int:
        """The number of documents."""
        ...

    def __getitem__(self, index: int, /) -> Tree:
        """A document; one that is memory-mapped is read where it is used."""
        ...


class Place(NamedTuple):
    """Where a lane is.

    Attributes:
      document: number of the document, or -1: none is left, or the next is not known yet.
      step: how many of its steps came already.
    """

    document: int
    step: int


class Position(NamedTuple):
    """Where a stream is: passes that are done, documents that this one has begun, and each lane."""

    passes: int
    begun: int
    lanes: tuple[Place, ...]


class Piece(NamedTuple):
    """Consecutive steps of a document that a lane gets: at `at`, from its step `start` on."""

    lane: int
    at: int
    place: Place
    steps: int


NOWHERE = Place(-1, 0)


class Stream(Iterator[Batch]):
    """Documents laid into lanes: an iterator of batches for training on streams.

    Each lane reads one document after the other and resets where one begins; which lane gets the
    next document depends on nothing but the lengths before it. Nothing is padded and nothing is
    dropped: the last batches of the last pass have a mask where lanes have run out. While a model
    trains on a batch, the next ones are read, and put onto the device.

    The position is saved with `state()` beside the `TrainState`, and `restore` continues with the
    batch after it, to the bit. With several processes each reads the lanes of its own devices and
    all have the same position, so that any number of processes resumes.

    Args:
      documents: what is read; `len` and `[i]` are all that is needed. For one long text of N steps
        on a disk, `np.array_split(np.load(path, mmap_mode="r"), lanes)` is a part for each lane,
        and `[np.load(path, mmap_mode="r") for path in paths]` a document of each file.
      lanes: B, of all processes together.
      steps: T of each batch.
      passes: over all documents; None: without end.
      seed: of the order of the documents, which differs from pass to pass; None: as they are.
      ahead: batches that a thread reads before they are asked for; 0: there is no thread.
      place: puts a batch onto the device, such as `spread`; None: `jax.device_put`. It is called in
        the caller's thread, one batch ahead.
      share: (number, of how many): which share of the lanes this process reads; None: that of the
        process.

    Raises:
      TypeError: a number is not an integer.
      ValueError: a number is too small, there is no document, or lanes do not divide among shares.

    Examples:
      Two lanes; the document in the second is over first, and the third follows it there:

      >>> documents = [np.arange(10, 16), np.arange(20, 23), np.arange(30, 34)]
      >>> stream = Stream(documents, lanes=2, steps=4, passes=1, place=lambda batch: batch)
      >>> first = next(stream)
      >>> first.inputs
      array([[10, 11, 12, 13],
             [20, 21, 30, 31]])
      >>> first.reset[1]
      array([ True, False,  True, False])
      >>> position = stream.state()
      >>> next(stream).mask
      array([[ True, False, False, False],
             [ True, False, False, False]])
      >>> stream.restore(position)
      >>> next(stream).targets
      array([[15,  0,  0,  0],
             [33,  0,  0,  0]])
    """

    def __init__(
        self,
        documents: Documents,
        *,
        lanes: int,
        steps: int,
        passes: int | None = 1,
        seed: int | None = None,
        ahead: int = 2,
        place: Callable[[Batch], Batch] | None = None,
        share: tuple[int, int] | None = None,
    ):
        self._documents, self._seed, self._passes = documents, seed, passes
        self._lanes = check_count("Stream", "lanes", lanes)
        self._steps = check_count("Stream", "steps", steps)
        self._ahead = check_count("Stream", "ahead", ahead, 0)
        if passes is not None:
            check_count("Stream", "passes", passes)
        if seed is not None:
            check_integer("Stream", "seed", seed)
        if len(documents) == 0:
            raise ValueError("Stream: documents must hold at least one document, got none")
        number, of = share or (jax.process_index(), jax.process_count())
        if lanes % of:
            raise ValueError(
                f"Stream: lanes must divide among the {of} shares, as of processes, got {lanes}"
            )
        self._own = range(number * lanes // of, (number + 1) * lanes // of)
        self._place = jax.device_put if place is None else place
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "tbptt_jax.Stream")
        self._due: collections.deque[concurrent.futures.Future] = collections.deque()
        self._ordered: tuple[int, np.ndarray] = (-1, np.zeros(0, int))  # a pass, and its order
        self._first = Position(0, 0, (NOWHERE,) * lanes)
        self._start(self._first)

    def _start(self, position: Position) -> None:
        """Continue from a position, and forget what was read for another one."""
        while self._due:
            concurrent.futures.wait([self._due.pop()])
        # Where the next batch begins that is returned, and the next that is read.
        self._position = self._read_position = position
        self._placed: collections.deque[tuple[Batch, Position]] = collections.deque()
        self._open: dict[int, tuple[Tree, Tree]] = {}

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          StopIteration: all passes are done.
          TypeError, ValueError: a document is none.
        """
        # One is on its way to the device while the one before it is trained on. Placed here, not
        # in the thread: where processes place a batch together, they do it in one order.
        while len(self._placed) < (2 if self._ahead else 1):
            found = self._next_read()
            if found is None:
                break
            self._placed.append((self._place(found[0]), found[1]))
        if not self._placed:
            raise StopIteration
        batch, self._position = self._placed.popleft()
        return batch

    def _next_read(self) -> tuple[Batch, Position] | None:
        """What `_read` returns, read ahead."""
        if not self._ahead:
            return self._read()
        while len(self._due) < self._ahead:
            self._due.append(self._pool.submit(self._read))
        found = self._due.popleft().result()
        self._due.append(self._pool.submit(self._read))
        return found

    def state(self) -> Json:
        """The position behind the last batch that was returned, as JSON: save it as progress."""
        passes, begun, lanes = self._position
        return {
            "documents": len(self._documents),
            "seed": self._seed,
            "passes": passes,
            "begun": begun,
            "lanes": [list(place) for place in lanes],
        }

    def restore(self, saved: Json, state: TrainState | None = None) -> None:
        """Continue from a position.

        Args:
          saved: what `state` returned.
          state: what trained up to there. Its stream is compared with the documents: it must have
            a row for each lane, and its lookback the steps before the position.

        Raises:
          ValueError: saved is no position, or one in other documents, of another seed or another
            number of lanes; or it is not where the state is.
        """
        try:
            lanes = tuple(Place(int(document), int(step)) for document, step in saved["lanes"])
            position = Position(int(saved["passes"]), int(saved["begun"]), lanes)
            theirs = len(lanes), int(saved["documents"]), saved["seed"]
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                "Stream.restore: saved must be what Stream.state returned, got "
                f"{type(saved).__name__} ({first_line(error)})"
            ) from None
        ours = self._lanes, len(self._documents), self._seed
        for name, there, here in zip(("lanes", "documents", "seed"), theirs, ours, strict=True):
            if there != here:
                raise ValueError(
                    f"Stream.restore: saved must be of a stream with the same {name}, got {there} "
                    f"and here {here}; make the stream as it was made before"
                )
        if state is not None:
            self._check(position, state)
        self._start(position)

    def _check(self, position: Position, state: TrainState) -> None:
        """Raise unless a state's stream ends where a position is."""
        stream = state.stream
        if stream is None or stream.lookback is None:
            if position != self._first:
                raise ValueError(
                    "Stream.restore: state must have trained up to the position, got one without a "
                    "stream; restore the state that was saved with it"
                )
            return
        rows = jax.tree.leaves(stream.carry)[0].shape[0]
        if rows != self._lanes:
            raise ValueError(
                f"Stream.restore: state must have a row for each of the {self._lanes} lanes, got "
                f"{rows}; restore the state that was saved with the position"
            )
        size = stream.lookback.mask.shape[1]
        for lane in self._own:
            place = position.lanes[lane]
            count = min(size, place.step)
            if count and not self._ends_there(place, count, lane, stream.lookback.inputs):
                raise ValueError(
                    f"Stream.restore: state must end at the position, step {place.step} of "
                    f"document {place.document} in lane {lane}, got other steps; restore the state "
                    "that was saved with it, from the same documents"
                )

    def _ends_there(self, place: Place, count: int, lane: int, lookback: Tree) -> bool:
        """Whether the last steps of a lane are those of its document before a place."""
        inputs, _ = self._document(place.document)

        def same(saw: jax.Array, document: np.ndarray) -> bool:
            row = _row(saw, lane)
            expected = document[place.step - count : place.step]
            return row is None or np.array_equal(row[-count:], np.asarray(expected, row.dtype))

        return all(jax.tree.leaves(jax.tree.map(same, lookback, inputs)))

    def _read(self) -> tuple[Batch, Position] | None:
        """The next batch and the position behind it; None: all passes are done."""
        pieces, position = self._plan(self._read_position)
        if not pieces:
            return None
        rows, shape = self._own.start, (len(self._own), self._steps)
        exists, reset = (np.zeros((self._lanes, self._steps), bool) for _ in range(2))
        sides: list[Tree] = []
        for side in (0, 1):  # inputs and targets
            example = self._document(pieces[0].place.document)[side]
            sides.append(jax.tree.map(lambda x: np.zeros((*shape, *x.shape[1:]), x.dtype), example))
        for lane, at, (document, start), count in pieces:
            exists[lane, at : at + count] = True
            reset[lane, at] |= start == 0
            if lane in self._own:
                for side, whole in zip(sides, self._document(document), strict=True):
                    _copy(side, (lane - rows, at), whole, start, count)
        mask = None if exists.all() else exists[self._own.start : self._own.stop]
        batch = Batch(*sides, mask=mask, reset=reset[self._own.start : self._own.stop])
        self._read_position = position
        in_use = {place.document for place in position.lanes}
        self._open = {number: found for number, found in self._open.items() if number in in_use}
        return batch, position

    def _plan(self, position: Position) -> tuple[list[Piece], Position]:
        """What the lanes of the next batch hold, and the position behind it."""
        pieces, lanes = [], list(position.lanes)
        passes, begun = position.passes, position.begun
        for lane, place in enumerate(position.lanes):
            at = 0
            while at < self._steps:
                if place == NOWHERE:
                    if begun == len(self._documents) and passes + 1 != self._passes:
                        passes, begun = passes + 1, 0
                    if begun == len(self._documents):
                        break
                    place, begun = Place(int(self._order(passes)[begun]), 0), begun + 1
                length = self._length(place.document)
                count = min(self._steps - at, length - place.step)
                pieces.append(Piece(lane, at, place, count))
                at, end = at + count, place.step + count
                place = NOWHERE if end == length else place._replace(step=end)
            lanes[lane] = place
        return pieces, Position(passes, begun, tuple(lanes))

    def _order(self, passes: int) -> np.ndarray:
        """The documents in the order of a pass."""
        if self._ordered[0] != passes:
            count = len(self._documents)
            rng = None if self._seed is None else np.random.default_rng((self._seed, passes))
            self._ordered = passes, np.arange(count) if rng is None else rng.permutation(count)
        return self._ordered[1]

    def _length(self, number: int) -> int:
        return len(jax.tree.leaves(self._document(number))[0])

    def _document(self, number: int) -> tuple[Tree, Tree]:
        """The inputs and targets of a document, as arrays that are read where they are used."""
        if number not in self._open:
            self._open[number] = _sides(number, self._documents[number])
        return self._open[number]


def _sides(number: int, document: Tree) -> tuple[Tree, Tree]:
    """The inputs and targets of a document.

    Raises:
      TypeError, ValueError: it is none.
    """
    if not isinstance(document, tuple):
        array = np.asanyarray(document)
        check_numbers("Stream", f"documents[{number}]", array)
        if array.ndim == 0 or len(array) < 2:
            raise ValueError(
                f"Stream: documents[{number}] must have at least 2 steps, since each one's target "
                f"is the next, got shape {list(array.shape)}"
            )
        return array[:-1], array[1:]
    if len(document) != 2:
        raise ValueError(
            f"Stream: documents[{number}] must be an array or the pair (inputs, targets), got "
            f"{len(document)} parts"
        )
    inputs, targets = (jax.tree.map(np.asanyarray, part) for part in document)
    lengths = {array.shape[:1] for array in jax.tree.leaves((inputs, targets))}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            f"Stream: documents[{number}] must be inputs and targets of as many steps, at least "
            f"one, got arrays of {sorted(lengths)}"
        )
    return inputs, targets


def _copy(side: Tree, at: tuple[int, int], whole: Tree, start: int, count: int) -> None:
    """Copy consecutive steps of a document into a row of a batch."""
    row, first = at
    for target, source in zip(jax.tree.leaves(side), jax.tree.leaves(whole), strict=True):
        if source.shape[1:] != target.shape[2:]:
            raise ValueError(
                "Stream: documents must have features of one shape, got "
                f"{list(source.shape[1:])} and {list(target.shape[2:])}"
            )
        target[row, first : first + count] = source[start : start + count]


def _row(array: jax.Array, lane: int) -> np.ndarray | None:
    """A row of an array [B, ...]; None: it is on another process."""
    for shard in array.addressable_shards:
        rows = range(*shard.index[0].indices(array.shape[0]))
        if lane in rows:
            return np.asarray(shard.data)[lane - rows.start]
    return None
