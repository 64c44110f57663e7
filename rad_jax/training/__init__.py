"""Training: state, step, loop, and what they need of devices and disks."""
