"""Claims about the KL term."""
