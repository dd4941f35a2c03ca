"""Pictures: found, read, drawn on."""
