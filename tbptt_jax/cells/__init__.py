"""How a core runs over T steps, and the fastest way to do so for each cell."""
