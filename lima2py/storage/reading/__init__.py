"""Files of ours read again: as arrays, as a source of blocks, as pictures, as other formats."""
