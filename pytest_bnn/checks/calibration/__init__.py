"""Do the labels follow the predicted distribution?"""
