"""Texts: where they are found, how they become numbers on disk, and how those are cut into splits and streams.

Nothing here knows of models or of the terminal.
"""
