"""Every image pipeline of the installed diffusers that can be built from a small configuration, on random weights.

`cases` holds the pipelines and their inputs, one file per family; `loop` samples each image alone, as the yardstick;
`examination` compares cotrunk with it; `classes` says which pipeline classes there are and why some are not built.
"""
