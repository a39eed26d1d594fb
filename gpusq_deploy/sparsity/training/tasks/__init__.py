"""What a model is for: its answers, their losses, and the measure that scores them."""
