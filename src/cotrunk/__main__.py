"""`python -m cotrunk`."""

from .cli.app import main

main()
