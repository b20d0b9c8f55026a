"""The command line: one module for each command, and the code that the commands share.

The modules here read arguments and print messages; the work itself is done in the other rooms.
This room may import all others.
"""
