"""What everything else shares: names with options, argument checks, files, tensors."""
