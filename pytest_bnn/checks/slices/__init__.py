"""Claims about predictions, group by group."""
