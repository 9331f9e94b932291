"""Fine-tune a model for shared sampling (SAGE, section 2.3)."""
