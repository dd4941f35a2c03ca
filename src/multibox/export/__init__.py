"""Export to deployment formats. Needs the `export` extra."""
