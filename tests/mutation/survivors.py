"""Faults that no test notices, and why none need: (module, line before, line after) -> a reason."""

EXPLAINED: dict[tuple[str, str, str], str] = {}
