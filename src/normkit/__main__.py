"""``python -m normkit``: the command line."""

from normkit.cli import app

if __name__ == "__main__":
    app(prog_name="normkit")
