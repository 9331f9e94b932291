"""Everything cotrunk knows about particular classes of diffusers and transformers."""
