"""Are the predictions as good as the teacher's?"""
