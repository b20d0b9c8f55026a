"""The command line: one module for each command, and what they share.

What a command does beyond its arguments and its words lives in the other rooms.
This room may import all others.
"""
