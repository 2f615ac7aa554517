"""What can be done to a frame: correct, reshape, reduce, look."""
