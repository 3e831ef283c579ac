"""Is the model uncertain where it should be?"""
