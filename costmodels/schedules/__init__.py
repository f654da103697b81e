"""Pipeline schedules, one a file: the order of each rank's passes, and the time they take for arrays of stage profiles."""
