"""What outputs and targets mean: classes, two sides of a threshold, numbers, a class for each place."""
