"""SAL, the search behind it, and other scores of a trained network."""
