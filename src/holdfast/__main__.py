"""``python -m holdfast``, which is also how launchers of several processes start it."""

from holdfast.cli.main import app

if __name__ == "__main__":
    app(prog_name="holdfast")
