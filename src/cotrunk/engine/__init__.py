"""One call of a pipeline: fold, run and spread rows; count and predict scheduler steps.

Knows no prompts, no files and no rule of skipping.
"""
