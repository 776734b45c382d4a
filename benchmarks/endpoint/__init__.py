"""What `accuracy.py` measures with: problems with known answers, our configurations, the peers', tables and plot."""
