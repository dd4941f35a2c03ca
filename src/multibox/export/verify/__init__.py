"""The proof of what was written: a file is run on pictures and compared with the network it came from."""
