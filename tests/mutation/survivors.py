"""Faults that change nothing a user could see: (module, operator, line before, line after) -> why."""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {}
