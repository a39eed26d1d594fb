"""Calibration: images in, activation ranges out, in one pass and bounded memory."""
