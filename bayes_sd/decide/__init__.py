"""Decisions from a fit: draft schedules."""
