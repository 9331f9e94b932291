"""From prompts to a plan: embed, group, choose branch points. Runs no denoiser."""
