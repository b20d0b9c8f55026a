"""What a process and a disk need, whatever runs on them: errors, progress, signals, files and memory.

Nothing of models, photos or training lives here, and nothing that knows a setting.
This room imports no other room of `booth`.
"""
