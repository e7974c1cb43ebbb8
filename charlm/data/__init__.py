"""Texts: finding them, encoding them as integers on disk, splitting them, and cutting them into batches.

This package knows nothing about models or the terminal.
"""
