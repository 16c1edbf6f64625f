"""`python -m quire.server` is the `quire` command."""

from quire.server.cli import main

if __name__ == "__main__":
    main()
