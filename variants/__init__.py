"""Variants: what is compared with MASA, or goes beyond it."""
