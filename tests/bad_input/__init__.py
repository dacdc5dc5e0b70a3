"""The table of bad input: a file for each part of the library."""
