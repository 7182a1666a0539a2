"""The machine a step runs on: its devices and processes, its memory, signals, and programs that were compiled on it before."""
