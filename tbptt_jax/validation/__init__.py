"""What a batch must be: shapes, values and streams, and functions that keep to one step."""
