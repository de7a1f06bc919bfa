"""Settings for anybody's folder: what a config leaves open is read off the images and the machine.

A field is open where its value is None, or 'auto' in a field of words. docs/recipe.md has the measurements.
"""
from conic_jax.recipe.facts import Facts, look, plain_facts
from conic_jax.recipe.resolve import (
           Choice,
           apply,
           check_open,
           describe,
           is_open,
           open_fields,
           resolve,
           split_folders,
           stored,
)

__all__ = ['Choice', 'Facts', 'apply', 'check_open', 'describe', 'is_open', 'look', 'open_fields',
           'plain_facts', 'resolve', 'split_folders', 'stored']
