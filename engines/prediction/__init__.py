"""How long an engine takes on a GPU that isn't here: a prediction from its layer list and the GPU's data sheet."""
