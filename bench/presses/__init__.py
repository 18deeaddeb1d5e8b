"""kvpress beside slots, on the same trials and in as many bytes."""
