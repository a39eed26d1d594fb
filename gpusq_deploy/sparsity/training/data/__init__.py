"""Where training samples come from, and how they are split."""
