"""The engine behind CAR, Shapley, importance switch and sensitivity: many filter subsets, what did not change run once."""

MEMORY = 2 * 2**30  # bytes of cached activations, unless given
