"""What is looked at on calibration text: which text it is, what networks and blocks are called with, who sees it."""
