"""The formats of data sets: a table, and a module or a folder for each."""
