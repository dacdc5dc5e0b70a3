"""The faults that `tests.mutations` puts into the library: one table for each of its areas."""

from tests.faults import adapters, boundary, cells, files, numbers, plans, reports
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *plans.FAULTS,
    *numbers.FAULTS,
    *cells.FAULTS,
    *boundary.FAULTS,
    *reports.FAULTS,
    *files.FAULTS,
    *adapters.FAULTS,
)
