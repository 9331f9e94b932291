"""Captioned images become groups of similar ones, for training and evaluation."""
