"""What tests share: plain loops of the papers, peers, closed forms."""

import diffsolve as ds

PATHS = [*ds.paths.names(), "ddpm(zero_terminal_snr=True)", "rectified(shift=3.0)"]
"""A spec of every path, and of the two options that reach alpha = 0 or move the clock."""
