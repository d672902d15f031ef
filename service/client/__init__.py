"""The client of a server, for programs: typed, sync and async. Knows HTTP and nothing of the server's insides."""
