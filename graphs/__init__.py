"""Ready graphs, known by the stem of their file: `lima2py run save_raw`.

Each is a starting point: copy one, change what it looks at, give its path instead of its name.
"""
