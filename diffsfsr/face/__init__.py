"""From a file to an aligned face and its mask."""
