"""Blocks and commands between processes, over ZeroMQ and shared memory."""
