"""Claims about who shares memory."""
