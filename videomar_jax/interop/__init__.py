"""Reading and writing the weights of PyTorch releases."""
