"""Recurrent networks as pure functions over a parameter pytree."""
