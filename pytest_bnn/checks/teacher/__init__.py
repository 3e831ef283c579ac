"""Claims about what the teacher says."""
