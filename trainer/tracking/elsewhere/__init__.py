"""Further trackers, each of a library that an extra brings; they write files and speak to no server."""
