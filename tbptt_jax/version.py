"""The version of the library, which is also that of its distribution."""

__version__ = "0.2.0"
