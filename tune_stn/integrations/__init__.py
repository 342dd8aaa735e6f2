"""Callbacks for the training loops of other libraries, a file each; nothing is imported before it is asked for."""
