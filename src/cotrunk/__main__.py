"""`python -m cotrunk`."""

from .cli import main

main()
