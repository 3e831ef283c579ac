"""Claims about the predictions of a regression: are they as wide as they should be, and as good as the teacher's?"""
