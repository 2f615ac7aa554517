"""A process that hosts runs: acquisition nodes and processing nodes."""
