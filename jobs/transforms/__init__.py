"""Pure DataFrame -> DataFrame functions that the verbs share: no I/O, no action, no clock, no settings."""
