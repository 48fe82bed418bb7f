"""What `compare` trains without a task: built-in data that needs no download, and small networks."""
