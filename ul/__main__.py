"""`python -m ul COMMAND`: see `ul.pipeline.commands`."""

from ul.pipeline.commands import main

if __name__ == "__main__":
    main()
