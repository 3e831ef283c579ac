"""What users hold: models, data and losses by name, and batches of any shape."""
