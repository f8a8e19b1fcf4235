"""`python -m ul COMMAND`: see `ul.pipeline.commands`."""

import sys

from ul.base import arithmetic

arithmetic.fix()
# nbformat's checks of addresses load a grammar for international ones: 1.5 s a process, and no notebook has any.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

from ul.pipeline.commands import main  # noqa: E402  # after what must come before numpy and torch

if __name__ == "__main__":
    main()
