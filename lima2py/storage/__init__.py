"""Frames to files and back: HDF5/NeXus, one record for every frame."""
