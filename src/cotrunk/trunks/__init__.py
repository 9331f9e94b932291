"""The trunk cache: outputs of trunks that were computed once, for prompts that come later."""
