"""Calls with bad input, one file for each part of the library, and the messages that they raise."""
