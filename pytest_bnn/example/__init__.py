"""The ResNet18 that shows all of it: weights, images, digits."""
