"""What runs: a verb a module, each read -> transform -> write, ending in a frozen report."""

__version__ = "0.1.0"
