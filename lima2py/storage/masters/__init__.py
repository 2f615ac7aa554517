"""Masters: the frames of all nodes as one, and how they came about."""
