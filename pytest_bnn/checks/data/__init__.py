"""Claims about the examples and labels that the other claims stand on."""
