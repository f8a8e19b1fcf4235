"""Notebooks as stages, the site, what is written into README, and the command line."""

import sys

# nbformat's checks of addresses load a grammar for international ones: 1.5 s a process, and no notebook has any.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
