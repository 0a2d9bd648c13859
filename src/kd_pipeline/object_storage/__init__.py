"""Folders of a project that are kept on object storage: a local mirror, and what is sent where."""
