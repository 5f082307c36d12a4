"""Where models come from: files, names and hubs, as one ``LoadedModel``."""
