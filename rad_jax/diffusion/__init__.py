"""Diffusion mathematics: schedules, the process and its samplers."""
