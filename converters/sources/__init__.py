"""Where published tensors come from: safetensors files, torch files, the Hub. Headers first, then tensor by tensor."""
