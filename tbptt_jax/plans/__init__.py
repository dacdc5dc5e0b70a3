"""Truncation plans: which loss sends gradient to which step, and where the windows lie."""
