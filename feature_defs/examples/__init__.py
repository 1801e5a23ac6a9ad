"""Definitions that ship with Tidemark, to read and to run."""
