"""One call of a pipeline: fold, run and spread rows; count scheduler steps and let policies supply outputs.

This package knows nothing of prompts, files or skipping rules.
"""
