"""One adapter per producer of checkpoints: from its layout to plain weights, ranges and 2:4 records."""
