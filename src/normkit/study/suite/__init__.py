"""What `compare` trains when the user brings nothing: data that needs no download, and small networks."""
