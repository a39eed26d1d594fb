"""What a bundle becomes for others to deploy: pure functions from what is known of a model to files."""
