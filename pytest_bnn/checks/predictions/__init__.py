"""Claims about the predictions themselves, whatever draws them."""
