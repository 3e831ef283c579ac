"""Claims about the network at its posterior mean."""
