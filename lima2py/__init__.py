"""Acquire detector frames, process them while they fly, save them: every one accounted for."""
