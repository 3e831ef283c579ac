"""The embedded teacher: weights, model card, and the script that made both."""
