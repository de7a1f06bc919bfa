"""The recipe: settings that a config leaves open are chosen from the images and the machine.

A field is open if its value is None, or 'auto' for a string field. docs/recipe.md has the measurements.
"""
from conic_jax.recipe.facts import Facts, look, plain_facts
from conic_jax.recipe.resolve import (
  Choice,
  apply,
  check_open,
  describe,
  has_begun,
  is_open,
  open_fields,
  resolve,
  split_folders,
  stored,
)
from conic_jax.recipe.rules import UNUSED

__all__ = ['UNUSED', 'Choice', 'Facts', 'apply', 'check_open', 'describe', 'has_begun', 'is_open', 'look',
           'open_fields', 'plain_facts', 'resolve', 'split_folders', 'stored']
