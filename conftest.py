"""Puts the root of the repository on the import path of the tests."""
