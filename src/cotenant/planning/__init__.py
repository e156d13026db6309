"""Where models go: placements, refusals and their reasons. Pure: functions of numbers."""
