"""Says whether a training job fits absent hardware, how fast it can run at best, and what it costs."""
