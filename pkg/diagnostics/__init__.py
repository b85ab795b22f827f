"""What the process tells of itself: its state, metrics, stacks, profiles and memory."""
