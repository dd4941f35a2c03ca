"""`python -m multibox`."""

from multibox.cli import main

main()
