"""Kills the proxy under load, and holds the database against what the callers saw and what upstream sent."""
