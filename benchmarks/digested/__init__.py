"""The runs that digests.py makes."""
