"""Fine-tuning, and the divergence that it needs."""
