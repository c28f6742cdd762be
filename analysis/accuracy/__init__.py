"""Accuracy of placements on questions: what of it is kept, and whether the likelihood ranking is the accuracy ranking."""
