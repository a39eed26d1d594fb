"""Accuracy in the task's own measure: several models on the same images, and how sure their differences are."""
