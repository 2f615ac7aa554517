"""Conformance suites and strategies, for us and for authors of plugins."""
