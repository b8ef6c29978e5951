"""`python -m qslm` is the command line."""

from qslm.cli.main import run

if __name__ == "__main__":
    run()
