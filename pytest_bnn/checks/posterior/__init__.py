"""Claims about the posterior itself: where its numbers come from."""
