"""Files that a run left: check them, and finish what was not finished."""
