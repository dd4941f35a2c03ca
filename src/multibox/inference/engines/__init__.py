"""Engines: a table, and a module for each."""
