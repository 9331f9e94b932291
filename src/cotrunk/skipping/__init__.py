"""Rules that decide which denoiser evaluations an image skips, and predict their outputs."""
