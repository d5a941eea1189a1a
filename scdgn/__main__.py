"""`python -m scdgn`, where the command is not on the path."""

from scdgn.cli import main

if __name__ == "__main__":
    main()
