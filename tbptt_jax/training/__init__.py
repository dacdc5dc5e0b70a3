"""The windows of a batch, one after the other, and what trains on them."""
