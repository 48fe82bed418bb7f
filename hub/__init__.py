"""normkit as a package for Hugging Face's ``kernels``; ``python -m hub.build`` puts it together."""
