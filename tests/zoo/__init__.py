"""Every image pipeline of the installed diffusers that can be built from a small configuration, on random weights.

`cases` holds the pipelines and their inputs, one file per family; `parts` and `assembly` are what the families share.
`loop` is the reference: it samples each image alone. `examination` compares cotrunk with it. `classes` lists the
pipeline classes, and why some are not built.
"""
