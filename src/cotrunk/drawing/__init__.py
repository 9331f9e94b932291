"""How a run looks: trees as SVG, thumbnails as data URIs, numbers as words; for the page of a run and for notebooks."""
