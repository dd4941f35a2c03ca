"""Importers of other projects' weights: a module for each."""
