"""Other libraries' objects from ours, and ours from theirs. Each imports the other library only when it is used."""
