"""Observers that are shipped, each for one library, which is imported when it is used."""
