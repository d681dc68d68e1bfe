"""What a training tells: to people (`progress`) and to machines (`metrics`). Knows no model and no JAX."""
