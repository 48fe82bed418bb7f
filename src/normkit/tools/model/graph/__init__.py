"""How the layers of a model are connected: recorded while it runs, and read from its symbolic graph if it has one."""
