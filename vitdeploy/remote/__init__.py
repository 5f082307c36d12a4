"""Another machine over SSH: what it is to do is shipped there, done there, and its result brought back."""
