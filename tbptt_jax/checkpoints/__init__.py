"""A training on disk: saved in the background, verified, restored bit for bit."""
