"""The gradient of one window."""
