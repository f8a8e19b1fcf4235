"""`python -m ul COMMAND`: see `ul.pipeline.commands`."""

from ul.base import arithmetic

arithmetic.fix()

from ul.pipeline.commands import main  # noqa: E402  # after what must come before numpy and torch

if __name__ == "__main__":
    main()
