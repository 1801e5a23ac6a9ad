"""Every byte in or out, one technology a module."""
