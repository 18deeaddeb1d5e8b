"""Where models come from: GGUF files, safetensors folders, hubs and wheels."""
