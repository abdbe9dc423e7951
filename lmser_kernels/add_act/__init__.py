"""Sum of the two drives and a bias, and the activation, in one pass."""
