"""Claims about the gradient of the training loss."""
