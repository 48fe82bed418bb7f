"""The built-in suite, which `compare` trains without a task: data that needs no download, and small networks."""
