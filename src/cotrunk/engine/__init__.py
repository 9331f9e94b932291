"""One call of a pipeline: fold, run and spread rows; count scheduler steps and let policies supply outputs.

Knows no prompts, no files and no rule of skipping.
"""
