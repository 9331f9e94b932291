"""A run on disk, without a terminal: the job, its folder and its page."""
