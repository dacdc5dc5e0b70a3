"""Data that install with pip: one file of an installed package, read and never run."""

import hashlib
import importlib.util
import pathlib
from typing import NamedTuple

from experiments.files import DataError


class PackagedFile(NamedTuple):
    """A data file of a package."""

    module: str  # the package's name in `import`; it is found and not imported
    path: str  # inside the package's folder
    sha256: str  # of its content
    what: str  # the data, in words
    requirement: str  # the package's name and version for pip
    otherwise: str = ""  # what else can be done, for the end of a message

    def read(self) -> bytes:
        """The content.

        Raises:
          DataError: the package is not installed, or its file is not the known one.
        """
        install = f'pip install "{self.requirement}"'
        try:
            spec = importlib.util.find_spec(self.module)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f"{self.what} are not installed; {install}{self.otherwise}")
        path = pathlib.Path(spec.submodule_search_locations[0]) / self.path
        package = self.requirement.split("==")[0]
        if not path.is_file():
            raise DataError(
                f"the package {package} holds no {self.path}; {install} --force-reinstall"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise DataError(
                f"{path.name} of the package {package} is not the known file (sha256 {found}, "
                f"expected {self.sha256}); {install} --force-reinstall"
            )
        return content
