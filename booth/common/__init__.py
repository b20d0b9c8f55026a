"""Helpers for any process: errors, progress, signals, files and memory.

Nothing about models, photos or training belongs here, and nothing that knows a setting.
This room imports no other room of `booth`.
"""
