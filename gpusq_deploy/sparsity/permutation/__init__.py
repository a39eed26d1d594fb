"""Order channels so that 2:4 keeps more."""
