"""The machine that a step runs on: devices, processes, memory, signals, and the cache of compiled programs."""
