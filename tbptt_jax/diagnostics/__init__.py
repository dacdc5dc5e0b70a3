"""What a truncation costs: credit by lag, and the bias of a plan's gradient."""
