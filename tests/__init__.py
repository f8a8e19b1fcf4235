"""Tests, and what runs beside them (`python -m tests.bench`): in the arithmetic of the notebooks."""

from ul.base import arithmetic

arithmetic.fix()
