"""Rules that decide which denoiser evaluations an image skips, and what replaces them."""
