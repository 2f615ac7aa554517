"""Detector plugins that come with lima2py, one folder a family; README.md says how to add one."""
