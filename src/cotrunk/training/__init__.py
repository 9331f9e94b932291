"""Fine-tuning for shared sampling (SAGE, section 2.3)."""
