"""Where models go: placements, refusals and their reasons. Pure: it gets numbers and returns values."""
