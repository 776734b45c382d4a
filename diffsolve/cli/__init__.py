"""The command line `diffsolve`."""
