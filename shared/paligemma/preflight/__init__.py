"""Whether a training job fits hardware that is not there, how fast it can be at best, and what that costs."""
