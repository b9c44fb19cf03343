"""Observers for other libraries, one module for each; the library is imported when its observer is used."""
