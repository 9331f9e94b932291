"""Group captioned images by similarity, for training and evaluation."""
