"""Measure the quality of images, alone and within their groups, with metric networks."""
