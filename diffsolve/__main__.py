"""`python -m diffsolve`: the command line."""

from diffsolve.cli.app import app

if __name__ == "__main__":
    app(prog_name="diffsolve")
